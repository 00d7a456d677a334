"""What the stages of one run share."""

import time
from dataclasses import dataclass

import pytest
import torch

from ulmfit_pipe.stages.presets import PRESETS
from ulmfit_pipe.stages.run_context import RunContext, deadline_after


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
def test_fp16_without_a_gpu_is_refused():
    with pytest.raises(ValueError, match="mixed_precision 'fp16' needs a GPU .*; use 'bf16' or 'no'"):
        RunContext(mixed_precision="fp16").accelerator  # noqa: B018


def test_a_deadline_is_so_many_seconds_from_now():
    assert deadline_after(None) is None
    assert deadline_after(60) - time.monotonic() == pytest.approx(60, abs=1)
    with pytest.raises(ValueError, match="max_seconds must be positive, got -1; leave it out for no limit"):
        deadline_after(-1)
