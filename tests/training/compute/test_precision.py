"""Formats that a machine lacks are refused; loss scaling, clipping and the schedule meet in the right order; what must
be computed in float32 is.
"""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.support.toy_models import (
    ToyBatches,
    groups_of,
    new_metric,
    new_model,
    new_phase,
    new_task,
    text_rows,
    weights_of,
)
from ulmfit_pipe.training import loop, lr_finder
from ulmfit_pipe.training.compute import precision
from ulmfit_pipe.training.compute.precision import (
    check_precision,
    cpu_precision,
    refuse_silent_float32,
    tf32_allowed,
    tf32_note,
)
from ulmfit_pipe.training.distributed import global_norms, launch
from ulmfit_pipe.training.loop import evaluate, fit
from ulmfit_pipe.training.metrics import MultiLabelMetric
from ulmfit_pipe.training.objectives import ClassificationObjective, activation_penalty
from ulmfit_pipe.training.optim import build_optimizer
from ulmfit_pipe.training.records import TrainingOptions
from ulmfit_pipe.training.schedules import Schedule

ALL = (0, 1, 2, 3)
HALF = torch.bfloat16


# ---- what the machine has


@pytest.mark.parametrize("format", ["no", "bf16"])
def test_every_machine_computes_in_float32_and_bf16(format):
    check_precision(format)


@pytest.mark.parametrize(
    ("supported", "instructions", "expected", "words"),
    [
        (True, {"avx512_bf16": True}, "bf16", None),
        (True, {"amx_bf16": True}, "bf16", None),
        (True, {}, "bf16", "no bf16 instructions, so mixed_precision 'bf16' may be slower than 'no'"),
        (False, {"avx512_bf16": True}, "no", "which this one lacks: the run computes in float32"),
    ],
)
def test_bf16_is_computed_where_the_processor_has_it_and_told_where_it_does_not_pay(
    monkeypatch, supported, instructions, expected, words
):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(precision.torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", **instructions}, raising=False
    )
    computed, line = cpu_precision("bf16")
    assert computed == expected
    assert (words in line) if words else line == ""
    assert cpu_precision("no") == ("no", "")


def test_a_run_asked_for_bf16_on_a_processor_without_it_says_so_and_computes_in_float32(monkeypatch, fresh_accelerator):
    monkeypatch.setattr(launch, "_has_device", lambda: False)
    monkeypatch.setattr(launch, "cpu_precision", lambda asked: ("no", f"{asked} is not there"))
    monkeypatch.setenv(launch.OF_ACCELERATE_LAUNCH, "bf16")
    said = []
    assert launch.new_accelerator(mixed_precision="bf16", say=said.append).mixed_precision == "no"
    assert said == ["bf16 is not there"]
    assert launch.new_accelerator().mixed_precision == "no"


def test_an_unknown_format_is_refused():
    with pytest.raises(ValueError, match="mixed_precision must be one of no, fp16, bf16, fp8, got 'int4'"):
        check_precision("int4")


def test_fp16_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'fp16' needs a GPU .on a CPU it would silently compute in float32.; use 'bf"):
        check_precision("fp16")


def test_fp16_of_an_accelerator_on_the_cpu_is_refused_too():
    accelerator = Accelerator(cpu=True, mixed_precision="fp16")  # says nothing, and computes in float32
    assert accelerator.scaler is None
    with pytest.raises(ValueError, match="mixed_precision 'fp16' needs a GPU"):
        refuse_silent_float32(accelerator)
    model = new_model()
    with pytest.raises(ValueError, match="mixed_precision 'fp16' needs a GPU"):
        fit(model, groups_of(model), new_phase(3), new_task(), accelerator=accelerator, options=TrainingOptions())


def test_deepspeed_scales_losses_itself():
    refuse_silent_float32(
        SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, mixed_precision="fp16", scaler=None)
    )


def test_fp8_is_refused_where_there_is_no_gpu_an_old_one_or_no_torchao(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    needs = r"mixed_precision 'fp8' needs a GPU of compute capability 8.9 or higher \(Ada, Hopper, ...\)"
    with pytest.raises(ValueError, match=f"{needs}; this machine has none: use 'bf16' or 'no'"):
        check_precision("fp8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    with pytest.raises(ValueError, match=f"{needs}; this one's is 8.6, on which fp16 would silently be used"):
        check_precision("fp8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match="needs the package torchao, .*; install it .pip install torchao., or use"):
        check_precision("fp8")
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda _name: SimpleNamespace())
    check_precision("fp8")


# ---- TF32


def test_tf32_is_switched_for_a_block_and_put_back():
    backends = torch.backends

    def switches():
        return [part.fp32_precision for part in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)]

    before = switches()
    with tf32_allowed(True):
        assert switches() == ["tf32"] * 3
    with pytest.raises(ZeroDivisionError), tf32_allowed(False):
        assert switches() == ["ieee"] * 3
        raise ZeroDivisionError
    with tf32_allowed(None):
        assert switches() == before
    assert switches() == before
    assert torch.get_float32_matmul_precision() == "highest"  # it raises where old names and new ones were mixed


def test_an_older_torch_has_other_names_for_it():
    matmul, cudnn = SimpleNamespace(allow_tf32=False), SimpleNamespace(allow_tf32=True)
    with tf32_allowed(True, SimpleNamespace(cuda=SimpleNamespace(matmul=matmul), cudnn=cudnn)):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (True, True)
    assert (matmul.allow_tf32, cudnn.allow_tf32) == (False, True)


def test_training_has_the_choice_and_leaves_the_switches_as_they_were(accelerator):
    seen = []

    class Looking(ClassificationObjective):
        def __call__(self, *args):
            seen.append(torch.backends.cuda.matmul.fp32_precision)
            return super().__call__(*args)

    model, task = new_model(), new_task()
    task = SimpleNamespace(**{**vars(task), "objective": Looking()})
    before = torch.backends.cuda.matmul.fp32_precision
    fit(model, groups_of(model), new_phase(3), task, accelerator=accelerator, options=TrainingOptions(tf32=True))
    assert set(seen) == {"tf32"}
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_a_choice_that_changes_nothing_is_told(monkeypatch):
    assert tf32_note(None, torch.device("cpu")) == ""
    assert tf32_note(True, torch.device("cpu")) == (
        "tf32 true changes nothing here: TF32 is a format of NVIDIA GPUs, and this run computes on a CPU in float32"
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    assert tf32_note(False, torch.device("cuda")) == (
        "tf32 false changes nothing here: TF32 needs a GPU of compute capability 8.0 or higher (Ampere)"
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    assert tf32_note(True, torch.device("cuda")) == ""


# ---- loss scaling: torch's own, on a CPU


def scaling_accelerator(initial_scale):
    """Return an accelerator that trains in fp16 on the CPU with a real loss scaler, as one does on a GPU."""
    accelerator = Accelerator(cpu=True, mixed_precision="fp16")
    accelerator.native_amp = True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=initial_scale, growth_interval=10**6)
    return accelerator


def optimizer_of_a_gpu(*args, **options):
    """Return the optimizer without torch's fused step, which takes skipping over; a GPU has none by default."""
    optimizer = build_optimizer(*args, **options)
    optimizer._step_supports_amp_scaling = False
    for group in optimizer.param_groups:
        group["fused"] = None
    return optimizer


def train_with_scaling(monkeypatch, initial_scale, *, epochs=1, **options):
    """Return the steps, the weights before each attempt, and the gradient's norm at each step that was taken."""
    weights, norms = [], []
    original = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))
        return original(self, *args, **kwargs)

    class Looking(ClassificationObjective):
        def __call__(self, model, *args):
            if model.training:
                weights.append(weights_of(model))
            return super().__call__(model, *args)

    model, task = new_model(), new_task(40)
    task = SimpleNamespace(**{**vars(task), "objective": Looking()})
    phase = new_phase(*ALL, schedule=Schedule.one_cycle(), epochs=epochs)
    accelerator = scaling_accelerator(initial_scale)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "build_optimizer", optimizer_of_a_gpu)
        patched.setattr(torch.optim.AdamW, "step", spy)
        records, steps = fit(
            model, groups_of(model), phase, task, accelerator=accelerator, options=TrainingOptions(**options)
        )
    return SimpleNamespace(
        steps=steps, weights=weights, norms=norms, record=records[-1], scale=accelerator.scaler.get_scale()
    )


def test_steps_skipped_for_an_overflow_move_neither_weights_nor_schedule(monkeypatch):
    run = train_with_scaling(monkeypatch, 2.0**19)  # too large for half precision: the first steps overflow
    numbers = [*(step.step for step in run.steps), run.record.step]
    taken = [after - before for before, after in pairwise(numbers)]
    assert set(taken) == {0, 1}
    assert taken[0] == 0
    assert sum(taken) == len(run.norms) == run.record.step
    assert run.scale == 2.0 ** (19 - taken.count(0))  # the scaler halved it as often as a step was left out
    for moved, before, after in zip(taken, run.weights, run.weights[1:], strict=False):
        assert torch.equal(before["head.weight"], after["head.weight"]) == (not moved)
    for moved, before, after in zip(taken, run.steps, run.steps[1:], strict=False):
        assert (before.lrs == after.lrs) == (not moved)
    assert all(map(math.isfinite, run.norms))


def test_gradients_are_unscaled_before_they_are_clipped(monkeypatch):
    plain = train_with_scaling(monkeypatch, 2.0**8)
    clipped = train_with_scaling(monkeypatch, 2.0**8, max_grad_norm=0.02)
    assert min(plain.norms) > 0.02
    assert clipped.norms == pytest.approx([0.02] * 10, rel=1e-3)
    assert max(plain.norms) < 5  # of the loss itself; the scaled one's is 256 times as large
    loose = train_with_scaling(monkeypatch, 2.0**8, max_grad_norm=5.0)
    assert loose.norms == pytest.approx(plain.norms)  # clipped by the scaled norm they would be smaller


def test_loss_scaling_takes_the_steps_of_the_same_training_without_it(monkeypatch):
    scaled = train_with_scaling(monkeypatch, 2.0**8, epochs=2)
    accelerator = Accelerator(cpu=True, mixed_precision="fp16")
    accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("cpu", init_scale=1.0), True
    model = new_model()
    phase = new_phase(*ALL, schedule=Schedule.one_cycle(), epochs=2)
    _, steps = fit(model, groups_of(model), phase, new_task(40), accelerator=accelerator, options=TrainingOptions())
    assert [step.loss for step in scaled.steps] == pytest.approx([step.loss for step in steps], abs=2e-3)
    assert [step.lrs for step in scaled.steps] == [step.lrs for step in steps]


def test_a_sweep_of_the_learning_rate_leaves_the_loss_scale_as_it_was(monkeypatch):
    accelerator, scales = scaling_accelerator(2.0**19), []

    class Looking(ClassificationObjective):
        def __call__(self, *args):
            scales.append(accelerator.scaler.get_scale())
            return super().__call__(*args)

    model, task = new_model(), new_task(40)
    task = SimpleNamespace(**{**vars(task), "objective": Looking()})
    monkeypatch.setattr(lr_finder, "build_optimizer", optimizer_of_a_gpu)
    before = accelerator.scaler.state_dict()
    for _ in range(2):  # the second one finds a scaler that was used before
        lr_finder.lr_find(
            model, groups_of(model), task, accelerator=accelerator, options=TrainingOptions(), num_steps=40
        )
        assert accelerator.scaler.state_dict() == before
    assert min(scales) < scales[0] == before["scale"]  # steps did overflow
    assert scales[: len(scales) // 2] == scales[len(scales) // 2 :]


# ---- what stays float32


@pytest.mark.bf16
def test_norms_are_computed_in_float32_and_rounded_once():
    inputs = torch.randn(6, 7, generator=torch.Generator().manual_seed(0)).mul(3).add(40).to(HALF)  # 40 +- 3 in 8 bits
    for norm in (nn.BatchNorm1d(7), nn.LayerNorm(7)):
        with torch.autocast("cpu", dtype=HALF):
            given = norm(inputs)
        exact = type(norm)(7)(inputs.float())
        torch.testing.assert_close(given.float(), exact.to(given.dtype).float(), rtol=2**-7, atol=1e-6)
        assert all(value.dtype == torch.float32 for value in norm.state_dict().values() if value.is_floating_point())


@pytest.mark.bf16
def test_the_norm_over_several_processes_is_computed_in_float32(monkeypatch):
    inputs = torch.randn(6, 7, generator=torch.Generator().manual_seed(0)).mul(3).add(40).to(HALF)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    monkeypatch.setattr(torch.distributed, "all_gather", lambda shares, own: shares[0].copy_(own))
    norm, plain = nn.BatchNorm1d(7), nn.BatchNorm1d(7)
    with global_norms.global_batch_norms(norm, SimpleNamespace(num_processes=2)), torch.autocast("cpu", dtype=HALF):
        given = norm(inputs)
    exact = plain(inputs.float())
    assert given.dtype == HALF
    assert torch.equal(given, exact.to(HALF))
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var)


@pytest.mark.bf16
def test_losses_are_those_of_the_same_logits_in_float32():
    logits = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)).to(HALF)
    labels = torch.arange(300) % 5
    model = SimpleNamespace(training=False)
    several = F.one_hot(labels, 5).float()

    def loss(objective, targets):
        with torch.autocast("cpu", dtype=HALF):
            answer = SimpleNamespace(logits=logits)
            call = type("Model", (), {"training": False, "__call__": lambda _self, **_inputs: answer})()
            return objective(call, {"labels": targets}, None)

    assert not model.training
    single = loss(ClassificationObjective(), labels)
    assert single.loss_sum.dtype == single.logits.dtype == torch.float32
    assert float(single.loss_sum) == float(F.cross_entropy(logits.float(), labels, reduction="sum"))
    multi = loss(ClassificationObjective(multi_label=True), several)
    exact = F.binary_cross_entropy_with_logits(logits.float(), several, reduction="none").mean(1).sum()
    assert (multi.loss_sum.dtype, float(multi.loss_sum)) == (torch.float32, float(exact))


@pytest.mark.bf16
def test_penalties_are_those_of_the_same_outputs_in_float32():
    outputs = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0)).to(HALF)
    with torch.autocast("cpu", dtype=HALF):
        given = activation_penalty(outputs, outputs, alpha=2.0, beta=1.0)
    wide = outputs.float()
    exact = 2 * wide.square().mean() + (wide[:, 1:] - wide[:, :-1]).square().mean()
    assert given.dtype == torch.float32
    assert float(given) == pytest.approx(float(exact), rel=1e-6)


@pytest.mark.bf16
def test_scores_are_taken_of_float32_logits_and_their_softmax_in_float64():
    metric = MultiLabelMetric(2)
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    with torch.autocast("cpu", dtype=HALF):
        metric.update(logits.to(HALF), torch.eye(2), torch.tensor(1.0), 2)
        probabilities, _ = metric.rows()
    assert probabilities.dtype.name == "float64"
    assert probabilities.tolist() == torch.sigmoid(logits.double()).tolist()


@pytest.mark.bf16
def test_a_model_under_bf16_gives_the_loop_float32_and_keeps_float32_weights():
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = new_model(norm="batch")
    seen = []

    class Looking(ClassificationObjective):
        def __call__(self, *args):
            output = super().__call__(*args)
            seen.append((output.logits.dtype, output.loss_sum.dtype))
            return output

    task = new_task()
    task = SimpleNamespace(**{**vars(task), "objective": Looking()})
    fit(model, groups_of(model), new_phase(*ALL), task, accelerator=accelerator, options=TrainingOptions())
    metrics = evaluate(model, ToyBatches(text_rows(3)), Looking(), new_metric(), accelerator)
    assert set(seen) == {(torch.float32, torch.float32)}
    assert math.isfinite(metrics["loss"])
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}


# ---- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("format", ["fp16", "bf16"])
def test_half_precision_on_a_gpu_trains_and_keeps_float32_weights(format):
    accelerator = Accelerator(mixed_precision=format)
    if format == "fp16":
        accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**24)  # too large: the first steps overflow
    model, kinds = new_model(), []
    model.head.register_forward_hook(lambda _m, _i, out: kinds.append(out.dtype))
    phase = new_phase(*ALL, schedule=Schedule.one_cycle(), epochs=8)
    options = TrainingOptions(max_grad_norm=1.0)
    records, steps = fit(model, groups_of(model), phase, new_task(40), accelerator=accelerator, options=options)
    assert set(kinds) == {torch.float16 if format == "fp16" else HALF}
    assert records[-1].train_loss < records[0].train_loss
    taken = [after - before for before, after in pairwise([*(step.step for step in steps), records[-1].step])]
    assert taken[0] == (0 if format == "fp16" else 1)
    assert set(taken) == ({0, 1} if format == "fp16" else {1})
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
