"""What the stages of one run share."""

import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from ulmfit_pipe.settings.checks import added_setting
from ulmfit_pipe.stages import context as run_context
from ulmfit_pipe.stages.context import RunContext, deadline_after
from ulmfit_pipe.stages.presets import PRESETS

CPU = SimpleNamespace(device=torch.device("cpu"), is_main_process=True)


@dataclass(frozen=True)
class Numbers:
    epochs: int = 3
    num_workers: int | None = None


def test_a_start_seeds_every_generator():
    context = RunContext(seed=4)
    context.start()
    first = torch.rand(3)
    context.start()
    assert torch.equal(torch.rand(3), first)


def test_lines_go_where_they_are_asked_to():
    said = []
    RunContext(say=said.append).tell("a line")
    assert said == ["a line"]


def test_code_that_a_model_brings_is_reported_by_the_main_process_alone():
    said = []
    for main in (True, False):
        context = RunContext(say=said.append)
        context._accelerator = SimpleNamespace(is_main_process=main)
        for allowed in (True, False):
            context.tell_of_remote_code(SimpleNamespace(trust_remote_code=allowed))
    assert said == ["trust_remote_code is on: Python code that comes with the model may run here"]


def test_the_identity_holds_what_the_result_depends_on(tiny_language_model_folder):
    context = RunContext(preset="paper", seed=2, mixed_precision="bf16")
    identity = context.identity(Numbers(num_workers=7), model=str(tiny_language_model_folder), data="d")
    assert identity.pop("model").startswith("folder with digest ")
    assert identity == {
        "settings": {"epochs": 3},
        "preset": "paper",
        "seed": 2,
        "mixed_precision": "bf16",
        "data": "d",
    }


@dataclass(frozen=True)
class MoreNumbers(Numbers):
    lr_decay: float | None = None
    head: str = added_setting("own")


def test_a_setting_that_came_later_counts_only_where_it_is_set():
    context = RunContext(preset="fastai")
    old = context.identity(MoreNumbers(), model=None, data="d")["settings"]
    assert old == {"epochs": 3, "lr_decay": 2.6}  # null is the preset's
    new = context.identity(MoreNumbers(lr_decay=1.5, head="other"), model=None, data="d")["settings"]
    assert new == {"epochs": 3, "lr_decay": 1.5, "head": "other"}


def test_auto_is_settled_by_the_model_and_the_rest_of_the_context_stays():
    context = RunContext(seed=4, deadline=12.5)
    assert context.preset == "auto"
    assert (context.for_model("bert").preset, context.for_model("awd_lstm").preset) == ("transformer", "fastai")
    settled = context.for_model("bert")
    assert (settled.seed, settled.deadline, settled.recipe) == (4, 12.5, PRESETS["transformer"])
    assert settled.for_model("bert") is settled


def test_auto_has_no_numbers_before_the_model_is_known():
    words = "preset 'auto' has no values before the model is known; call RunContext.for_model"
    with pytest.raises(ValueError, match=words):
        RunContext().recipe  # noqa: B018


def test_options_are_the_presets_with_changes():
    optimizer = PRESETS["scripts-2018"].lm_optimizer
    context = RunContext(preset="fastai", deadline=12.5, progress=False)
    options = context.options(optimizer, accumulation_steps=2, frozen_dropout="off", train_norm=None)
    assert (options.betas, options.weight_decay, options.decoupled) == ((0.8, 0.99), 1e-7, False)
    assert (options.max_grad_norm, options.accumulation_steps, options.frozen_dropout) == (0.3, 2, "off")
    assert (options.train_norm, options.deadline, options.progress) == (True, 12.5, False)
    assert context.options(optimizer, train_norm=False).train_norm is False


def test_one_process_has_the_whole_share():
    assert RunContext().shares() == {"rank": 0, "world_size": 1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_fp16_and_fp8_without_a_gpu_are_refused(precision):
    with pytest.raises(ValueError, match=f"mixed_precision '{precision}' needs a GPU .*use 'bf16' or 'no'"):
        RunContext(mixed_precision=precision).accelerator  # noqa: B018


def test_options_hold_how_the_machine_is_used_and_the_identity_what_changes_the_result(monkeypatch):
    said = []
    context = RunContext(preset="fastai", tf32=False, gradient_checkpointing=True, say=said.append)
    options = context.options(PRESETS["fastai"].lm_optimizer)
    assert (options.tf32, options.gradient_checkpointing, options.compile) == (False, True, False)
    identity = context.identity(Numbers(), model=None, data="d")
    assert identity["tf32"] is False
    assert not {"gradient_checkpointing", "compile"} & set(identity)
    compiling = RunContext(preset="fastai", compile=True)
    assert compiling.identity(Numbers(), model=None, data="d")["compile"] is True
    assert compiling.options(PRESETS["fastai"].lm_optimizer).compile is True
    monkeypatch.setattr(run_context, "new_accelerator", lambda **_options: CPU)
    context.accelerator  # noqa: B018
    assert said == [
        "tf32 false changes nothing here: TF32 is a format of NVIDIA GPUs, and this run computes on a CPU in float32"
    ]


def test_a_deadline_is_so_many_seconds_from_now():
    assert deadline_after(None) is None
    before = time.monotonic()
    assert before + 60 <= deadline_after(60) <= time.monotonic() + 60
    with pytest.raises(ValueError, match="max_seconds must be positive, got -1; leave it out for no limit"):
        deadline_after(-1)


def test_what_the_processes_are_about_to_do_is_compared_but_for_the_progress_bar(monkeypatch):
    compared = []
    monkeypatch.setattr(
        run_context, "find_alike", lambda _accelerator, find, describe: compared.append(describe(find()))
    )
    context = RunContext(_accelerator=CPU)
    context.check_alike(Numbers())
    assert compared == []  # one process is alone
    monkeypatch.setenv("WORLD_SIZE", "2")
    context.check_alike(Numbers(epochs=4))
    context.check_alike({"data": "digest", "progress": True})
    assert compared == [{"epochs": 4, "num_workers": None}, {"data": "digest"}]
