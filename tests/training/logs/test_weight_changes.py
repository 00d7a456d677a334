"""How far weights moved, against norms taken by numpy on the whole tensors."""

import json
import math

import numpy as np
import pytest
import torch

from tests.support.toy_models import (
    EMBEDDING,
    HIDDEN,
    VOCAB,
    ToyLanguageModel,
    groups_of,
    lm_groups_of,
    new_model,
    new_task,
    same,
)
from ulmfit_pipe.training.layer_groups import split_layer_groups
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.logs import weight_changes as module
from ulmfit_pipe.training.logs.weight_changes import WeightChange, copy_weights, weight_changes


@pytest.fixture
def states():
    """Return a model with batch norms, its state, and another in which everything but the embeddings has moved."""
    model = new_model(norm="batch")
    before = copy_weights(model)
    noise = torch.Generator().manual_seed(3)
    after = {
        name: value + 0.1 * torch.rand(value.shape, generator=noise) if value.is_floating_point() else value + 1
        for name, value in before.items()
    }
    after["embeddings.weight"] = before["embeddings.weight"].clone()
    return model, before, after


def relative_of(rows):
    return {row.name: row.relative for row in rows}


def test_a_tensors_change_is_the_norm_of_the_difference_over_the_norm_before(states):
    model, before, after = states
    changes = weight_changes(before, after, groups_of(model))
    assert [row.name for row in changes.tensors] == [name for name, _ in model.named_parameters()]
    for row in changes.tensors:
        old, new = before[row.name].double().numpy(), after[row.name].double().numpy()
        assert row.norm_before == pytest.approx(np.linalg.norm(old))
        assert row.norm_change == pytest.approx(np.linalg.norm(new - old))
        assert row.size == old.size
    weight = next(row for row in changes.tensors if row.name == "body.0.weight")
    assert weight.group == "body"
    assert weight.relative == pytest.approx(weight.norm_change / weight.norm_before)
    assert 0.01 < weight.relative < 1


def test_a_groups_change_is_that_of_all_its_numbers_taken_together(states):
    model, before, after = states
    changes = weight_changes(before, after, groups_of(model))
    assert [row.name for row in changes.groups] == ["embeddings", "body", "middle", "head"]
    for group, row in zip(groups_of(model), changes.groups, strict=True):
        old = np.concatenate([before[name].double().numpy().ravel() for name, _ in group.parameters])
        new = np.concatenate([after[name].double().numpy().ravel() for name, _ in group.parameters])
        assert row.relative == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old))
        assert row.size == old.size
    assert changes.groups[0].relative == 0


def test_running_statistics_are_listed_apart_and_counters_not_at_all(states):
    model, before, after = states
    changes = weight_changes(before, after, groups_of(model))
    assert [row.name for row in changes.buffers] == [
        f"{owner}.1.running_{kind}" for owner in ("body", "middle") for kind in ("mean", "var")
    ]
    mean, variance = changes.buffers[:2]
    assert (mean.group, mean.relative) == ("body", math.inf)  # means start at zero
    assert variance.relative == pytest.approx(
        float((after["body.1.running_var"] - 1).norm() / math.sqrt(HIDDEN)), rel=1e-5
    )


def test_zero_norms_are_told_from_one_another(states):
    model, before, after = states
    before["head.bias"] = torch.zeros(4)
    after["body.1.bias"] = before["body.1.bias"].clone()  # batch norm's bias starts at zero, and stays
    changes = relative_of(weight_changes(before, after, groups_of(model)).tensors)
    assert changes["head.bias"] == math.inf
    assert changes["body.1.bias"] == 0
    assert weight_changes(before, before, groups_of(model)).groups[3].relative == 0


def test_what_is_new_has_no_change_and_counts_in_no_groups_norms(states):
    model, before, after = states
    del before["head.weight"], before["head.bias"], before["middle.0.bias"]
    changes = weight_changes(before, after, groups_of(model), new=["head.weight", "head.bias", "middle.0.bias"])
    found = relative_of(changes.tensors)
    assert (found["head.weight"], found["middle.0.bias"]) == (None, None)
    head, middle = changes.groups[3], changes.groups[2]
    assert (head.relative, head.norm_before, head.size) == (None, None, 6 * 4 + 4)
    kept = [row for row in changes.tensors if row.group == "middle" and row.name != "middle.0.bias"]
    assert middle.norm_before == pytest.approx(math.hypot(*[row.norm_before for row in kept]))
    assert "(1 of 4 tensors new)" in str(changes)


def test_large_tensors_are_summed_in_pieces_and_low_precision_in_float64(states, monkeypatch):
    model, before, after = states
    whole = weight_changes(before, after, groups_of(model))
    monkeypatch.setattr(module, "PIECE", 4)
    pieces = weight_changes(before, after, groups_of(model))
    assert [row.norm_change for row in pieces.tensors] == pytest.approx([row.norm_change for row in whole.tensors])
    half = weight_changes(
        {name: value.bfloat16() if value.is_floating_point() else value for name, value in before.items()},
        after,
        groups_of(model),
    )
    row = next(row for row in half.tensors if row.name == "head.weight")
    old = before["head.weight"].bfloat16().double().numpy()
    assert row.norm_change == pytest.approx(np.linalg.norm(after["head.weight"].double().numpy() - old))


def test_a_tied_weight_is_copied_and_compared_once():
    model = ToyLanguageModel()
    before = copy_weights(model)
    assert "lm_head.weight" not in before
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    assert torch.equal(before["embeddings.weight"] * 1.5, model.lm_head.weight)  # the copy stayed
    changes = weight_changes(before, model.state_dict(), lm_groups_of(model))
    assert relative_of(changes.tensors)["embeddings.weight"] == pytest.approx(0.5)
    assert [row.name for row in changes.tensors].count("embeddings.weight") == 1
    assert changes.buffers == ()
    assert changes.groups[1].size == VOCAB * EMBEDDING + VOCAB


def test_the_table_has_a_line_a_group_with_what_moved_most(states):
    model, before, after = states
    after["head.weight"] = before["head.weight"] * 1.25
    after["head.bias"] = before["head.bias"]
    header, _, *lines = str(weight_changes(before, after, groups_of(model))).splitlines()
    assert header.split() == "layer group parameters change its tensor that moved most".split()
    assert lines[0].split() == ["embeddings", str(VOCAB * EMBEDDING), "unchanged"]
    assert lines[3].split()[0] == "head"
    assert lines[3].endswith("head.weight 25%")
    assert lines[4].split()[:2] == ["(buffers)", str(2 * HIDDEN + 2 * (HIDDEN - 1))]


def test_the_long_table_has_a_line_a_tensor_and_buffer(states):
    model, before, after = states
    changes = weight_changes(before, after, groups_of(model))
    lines = changes.describe(tensors=True).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["embeddings", "embeddings.weight", "body"]
    assert len(lines) == 2 + 4 + len(changes.tensors) + len(changes.buffers)
    assert sum(" (buffer) " in line for line in lines) == 4
    assert any(line.split()[0] == "body.1.running_mean" and line.endswith("from zero") for line in lines)
    assert repr(changes) == str(changes)


def test_the_record_is_strict_json_with_null_for_new_and_for_infinite(states):
    model, before, after = states
    before["head.bias"] = torch.zeros(4)
    record = weight_changes(before, after, groups_of(model), new=["head.weight"]).to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    rows = {row["name"]: row for row in record["tensors"]}
    assert rows["head.weight"] == {
        "name": "head.weight",
        "group": "head",
        "size": 24,
        "norm_before": None,
        "norm_change": None,
        "relative": None,
    }
    assert (rows["head.bias"]["relative"], rows["head.bias"]["norm_before"]) == (None, 0)
    assert set(record) == {"groups", "tensors", "buffers"}


def test_states_that_are_not_of_one_model_are_refused_by_name(states):
    model, before, after = states
    groups = groups_of(model)
    lacking = {name: value for name, value in before.items() if name != "head.bias"}
    with pytest.raises(ValueError, match=r"the state before lacks 'head.bias' of layer group 'head'; .*new=\[...\]"):
        weight_changes(lacking, after, groups)
    with pytest.raises(ValueError, match="the state after lacks 'head.bias'"):
        weight_changes(before, lacking, groups)
    with pytest.raises(ValueError, match=r"'head.bias' has the shape \(9,\) before and \(4,\) after; the two states"):
        weight_changes({**before, "head.bias": torch.zeros(9)}, after, groups)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(states, number):
    model, before, after = states
    broken = {**after, "body.0.bias": torch.full((HIDDEN,), number)}
    with pytest.raises(ValueError, match="'body.0.bias' holds NaN or infinity after, so how far it moved is unknown"):
        weight_changes(before, broken, groups_of(model))
    with pytest.raises(ValueError, match="'body.0.bias' holds NaN or infinity before"):
        weight_changes(broken, after, groups_of(model))


def test_a_change_of_nothing_is_zero_even_from_zero():
    assert WeightChange("a", "g", 3, 0.0, 0.0).relative == 0
    assert WeightChange("a", "g", 3, 2.0, 0.5).relative == 0.25


def test_a_learner_tells_what_moved_since_its_snapshot(accelerator):
    model = new_model()
    learner = Learner(model, groups_of(model), new_task(), accelerator=accelerator, say=lambda _line: None)
    with pytest.raises(ValueError, match=r"nothing to compare with: call snapshot\(\) before training"):
        learner.weight_changes()
    learner.snapshot()
    before = copy_weights(model)
    learner.fit(1, 1e-2)
    changes = learner.weight_changes()
    assert [row.relative for row in changes.groups[:3]] == [0, 0, 0]  # frozen up to the head
    assert changes.groups[3].relative > 0
    assert same(before, copy_weights(model)) == [name for name in before if not name.startswith("head")]
    learner.snapshot()
    assert all(row.relative == 0 for row in learner.weight_changes().tensors)


def test_a_learner_keeps_no_second_copy_unless_asked(accelerator):
    model = new_model()
    learner = Learner(model, groups_of(model), new_task(), accelerator=accelerator, say=lambda _line: None)
    learner.fit(1, 1e-2)
    assert learner._snapshot is None


def test_changes_are_drawn_by_their_own_name(states, tmp_path):
    model, before, after = states
    figure = weight_changes(before, after, groups_of(model)).plot(tmp_path / "change.png", title="Mine")
    assert figure.axes[0].get_title() == "Mine"
    assert (tmp_path / "change.png").read_bytes().startswith(b"\x89PNG")


def test_parameters_in_no_group_are_left_out(states):
    model, before, after = states
    part = [group for group in groups_of(model) if group.name == "head"]
    assert [row.name for row in weight_changes(before, after, part).tensors] == ["head.weight", "head.bias"]
    one = split_layer_groups(model, [[""]], names=["all"])
    assert len(weight_changes(before, after, one).buffers) == 4
