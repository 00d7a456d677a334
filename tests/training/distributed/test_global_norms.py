"""Batch norm over processes against torch's own on the whole batch.

Real processes are in training/distributed/test_several_processes.py.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.support.toy_models import new_model
from ulmfit_pipe.training.distributed.global_norms import (
    accumulation_note,
    batch_norms_of,
    global_batch_norms,
    uncounted_rows,
)
from ulmfit_pipe.training.objectives import ClassificationObjective, SequenceObjective, TokenObjective

SEVERAL = SimpleNamespace(num_processes=2)  # what is asked for; the group below has one, which then holds all rows
NORMS = {
    "rows": (lambda: nn.BatchNorm1d(5), (7, 5)),
    "rows in time": (lambda: nn.BatchNorm1d(5, momentum=0.3), (2, 5, 3)),
    "maps": (lambda: nn.BatchNorm2d(5, eps=1e-2), (2, 5, 3, 4)),
    "plain average": (lambda: nn.BatchNorm1d(5, momentum=None), (7, 5)),
    "no parameters": (lambda: nn.BatchNorm1d(5, affine=False), (7, 5)),
    "no statistics": (lambda: nn.BatchNorm1d(5, track_running_stats=False), (7, 5)),
}


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory):
    """A process group of one, over gloo."""
    store = tmp_path_factory.mktemp("store") / "file"
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def twins(kind):
    build, shape = NORMS[kind]
    torch.manual_seed(0)
    norm = build().double()
    if norm.affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm, copy.deepcopy(norm), [3 * torch.randn(shape, dtype=torch.float64) + 8 for _ in range(3)]


def run(norm, inputs):
    """Run forward and backward; return the output, the inputs' gradient and what the norm holds afterwards."""
    inputs = inputs.clone().requires_grad_()
    output = norm(inputs)
    (output * torch.arange(output.numel()).reshape(output.shape).sin()).sum().backward()
    gradients = {f"{name}.grad": parameter.grad.clone() for name, parameter in norm.named_parameters()}
    return {"output": output, "inputs.grad": inputs.grad, **gradients, **norm.state_dict()}


@pytest.mark.parametrize("kind", NORMS)
def test_outputs_gradients_and_running_statistics_are_torchs(kind):
    ours, torchs, batches = twins(kind)
    with global_batch_norms(ours, SEVERAL):
        for inputs in batches:
            mine, theirs = run(ours, inputs), run(torchs, inputs)
            assert mine.keys() == theirs.keys()
            for name, value in theirs.items():
                torch.testing.assert_close(mine[name], value, rtol=1e-9, atol=1e-11, msg=name)
    assert "forward" not in ours.__dict__ and not hasattr(ours, "global_batch")
    torch.testing.assert_close(ours(batches[0]), torchs(batches[0]), rtol=1e-9, atol=1e-11)


def test_half_precision_comes_back_in_half_and_is_normalized_in_single():
    norm, inputs = nn.BatchNorm1d(5), torch.randn(7, 5).bfloat16()
    expected = copy.deepcopy(norm)(inputs.float()).bfloat16()
    with global_batch_norms(norm, SEVERAL):
        output = norm(inputs)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected)


def test_in_evaluation_the_running_statistics_are_used_as_ever():
    norm, torchs, (inputs, *_) = twins("rows")
    with global_batch_norms(norm, SEVERAL):
        assert torch.equal(norm.eval()(inputs), torchs.eval()(inputs))


def test_uncounted_rows_move_no_statistics_and_get_no_gradient_of_them():
    norm, _, (inputs, *_) = twins("rows")
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    with global_batch_norms(norm, SEVERAL), uncounted_rows(norm), pytest.raises(ValueError, match="at least 2 rows"):
        norm(inputs)  # of all processes' rows none counts
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


def test_a_single_row_over_all_processes_is_refused():
    norm = nn.BatchNorm1d(5)
    with global_batch_norms(norm, SEVERAL):
        with pytest.raises(
            ValueError, match="needs at least 2 rows in a batch over all processes, got 1; use a larger"
        ):
            norm(torch.randn(1, 5))


def test_with_one_process_nothing_is_touched():
    model = new_model(norm="batch")
    with global_batch_norms(model, SimpleNamespace(num_processes=1)):
        assert not any("forward" in module.__dict__ or hasattr(module, "global_batch") for module in model.modules())


def test_norms_that_look_after_themselves_are_left_alone():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.SyncBatchNorm(3), nn.LayerNorm(3), nn.InstanceNorm1d(3))
    assert batch_norms_of(model) == [model[0]]


def test_the_norms_are_put_back_when_the_block_raises():
    model = new_model(norm="batch")
    with pytest.raises(RuntimeError, match="stop"), global_batch_norms(model, SEVERAL):
        raise RuntimeError("stop")
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_where_accumulation_is_exact_nothing_is_said():
    plain = ClassificationObjective()
    assert accumulation_note(new_model(), plain, 4) == ""
    assert accumulation_note(new_model(norm="batch"), ClassificationObjective(alpha=2.0), 1) == ""
    assert accumulation_note(new_model(), TokenObjective(), 4) == ""
    assert accumulation_note(new_model(), SequenceObjective(), 1) == ""


def test_where_accumulation_is_not_exact_the_reason_is_said():
    plain = ClassificationObjective()
    assert accumulation_note(new_model(norm="batch"), plain, 4) == (
        "accumulation_steps 4: batch norm (body.1 and 1 more) takes its statistics over one micro-batch, so this is "
        "close to, but not the same as, a batch 4 times as large"
    )
    assert "batch norm (0) takes" in accumulation_note(nn.Sequential(nn.BatchNorm1d(2)), plain, 2)
    for penalties in ({"alpha": 2.0}, {"beta": 1.0}):
        assert accumulation_note(new_model(), ClassificationObjective(**penalties), 2) == (
            "accumulation_steps 2: AR and TAR are means over the tokens of one micro-batch, so this is close to, but "
            "not the same as, a batch 2 times as large"
        )
    assert accumulation_note(new_model(), SequenceObjective(), 4) == (
        "accumulation_steps 4: micro-batches are successive windows of the same rows of text, which carry a state, so "
        "this is close to, but not the same as, a batch 4 times as large"
    )
