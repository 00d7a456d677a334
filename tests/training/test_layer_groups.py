import pytest
import torch
from torch import nn

from tests.support.toy_models import ToyLanguageModel, groups_of, lm_groups_of, new_model
from ulmfit_pipe.training.layer_groups import (
    describe_frozen,
    freeze,
    freeze_map,
    freeze_to,
    is_norm,
    norm_parameter_names,
    resolve_index,
    set_trainable,
    split_layer_groups,
    train_mode,
    trainable_indices,
    unfreeze,
)


def test_every_parameter_is_in_exactly_one_group():
    model = new_model()
    groups = groups_of(model)
    names = [name for group in groups for name, _ in group.parameters]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert len(names) == len(set(names))
    assert [group.num_parameters for group in groups] == [13 * 5, 5 * 7 + 7 + 14, 7 * 6 + 6 + 12, 6 * 4 + 4]


def test_a_parameter_in_no_group_is_named():
    with pytest.raises(ValueError, match=r"'middle\.0\.weight' is in no layer group; add a prefix .*'head'"):
        split_layer_groups(new_model(), [["embeddings"], ["body"], ["head"]])


def test_a_parameter_in_two_groups_is_named_with_both():
    with pytest.raises(ValueError, match=r"'body\.0\.weight' is in 2 layer groups \(low and high\)"):
        split_layer_groups(new_model(), [["embeddings", "body"], ["body", "middle", "head"]], names=["low", "high"])


def test_a_prefix_that_matches_nothing_is_named_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"'boddy' matches no parameter.*'body\.0'"):
        split_layer_groups(new_model(), [["embeddings"], ["boddy"], ["middle"], ["head"]])


def test_a_prefix_ends_at_a_dot():
    model = nn.ModuleDict({"layer1": nn.Linear(2, 3), "layer10": nn.Linear(3, 5)})
    low, high = split_layer_groups(model, [["layer1"], ["layer10"]])
    assert [name for name, _ in low.parameters] == ["layer1.weight", "layer1.bias"]
    assert [name for name, _ in high.parameters] == ["layer10.weight", "layer10.bias"]


@pytest.mark.parametrize(
    ("prefixes", "names", "words"),
    [
        ([], None, "at least one layer group, got an empty list"),
        ([["embeddings"], ["body"]], ["one"], "got 1 names for 2 layer groups"),
        ([["embeddings", "body"], ["middle", "head"]], ["a", "a"], r"must differ, got \['a', 'a'\]"),
    ],
)
def test_lists_that_do_not_fit_are_refused(prefixes, names, words):
    with pytest.raises(ValueError, match=words):
        split_layer_groups(new_model(), prefixes, names=names)


def test_tied_weights_count_once_in_the_group_of_their_first_name():
    groups = lm_groups_of(ToyLanguageModel())
    assert [name for name, _ in groups[1].parameters] == ["embeddings.weight", "lm_head.bias"]
    assert groups[1].num_parameters == 13 * 5 + 13


def test_a_group_of_tied_weights_alone_is_refused():
    model = ToyLanguageModel()
    model.lm_head.bias = None
    with pytest.raises(ValueError, match=r"group 1 \(lm_head\) holds no parameter that is not tied"):
        split_layer_groups(model, [["embeddings", "lstm"], ["lm_head"]])


def test_a_norm_with_statistics_but_no_parameters_must_be_in_a_group_too():
    model = nn.ModuleDict({"low": nn.Linear(2, 3), "norm": nn.BatchNorm1d(3, affine=False), "head": nn.Linear(3, 5)})
    with pytest.raises(ValueError, match="'norm' keeps running statistics but is in no layer group"):
        split_layer_groups(model, [["low"], ["head"]])
    groups = split_layer_groups(model, [["low", "norm"], ["head"]])
    freeze(groups)
    train_mode(model, groups)
    assert not model["norm"].training


@pytest.mark.parametrize("n", [4, -5, 100, 1.0, True, None])
def test_freeze_to_out_of_range_raises_and_changes_nothing(n):
    groups = groups_of(new_model())
    freeze_to(groups, 2)
    with pytest.raises(
        ValueError, match=r"freeze_to\(.*\) is out of range: the model has 4 layer groups, so n may be -4"
    ):
        freeze_to(groups, n)
    assert trainable_indices(groups) == (2, 3)


@pytest.mark.parametrize(("n", "trained"), [(0, (0, 1, 2, 3)), (-1, (3,)), (-2, (2, 3)), (3, (3,)), (-4, (0, 1, 2, 3))])
def test_freeze_to_counts_as_fastai_does(n, trained):
    groups = groups_of(new_model())
    freeze_to(groups, n)
    assert trainable_indices(groups) == trained
    assert resolve_index(groups, n) == trained[0]
    assert all(p.requires_grad == (group.index in trained) for group in groups for _, p in group.parameters)


def test_freeze_on_one_group_raises():
    groups = split_layer_groups(new_model(), [[""]])
    with pytest.raises(ValueError, match="this model has 1 layer group; split it into at least two"):
        freeze(groups)


@pytest.mark.parametrize("trainable", [[], [4], [-1]])
def test_training_no_group_or_an_unknown_one_is_refused(trainable):
    with pytest.raises(ValueError, match=r"non-empty subset of 0\.\.3, got"):
        set_trainable(groups_of(new_model()), trainable)


def test_freezing_drops_gradients_and_unfreezing_trains_all():
    model = new_model()
    groups = groups_of(model)
    model(torch.zeros(2, 3, dtype=torch.long)).logits.sum().backward()
    freeze(groups)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (not name.startswith("head"))
    unfreeze(groups)
    assert not any(freeze_map(groups).values())


def test_train_norm_leaves_norms_of_frozen_groups_training():
    model = new_model(norm="batch")
    groups = groups_of(model)
    freeze(groups, train_norm=True)
    moving = [name for name, frozen in freeze_map(groups).items() if not frozen]
    assert moving == ["body.1.weight", "body.1.bias", "middle.1.weight", "middle.1.bias", "head.weight", "head.bias"]
    assert trainable_indices(groups) == (3,)


def test_the_line_about_freezing_names_groups_and_counts():
    groups = groups_of(new_model())
    freeze_to(groups, -2)
    assert describe_frozen(groups) == "frozen: embeddings, body | trains: middle, head (88 of 209 parameters)"


class PreLayerNormAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(2, 2)


class OtherRMSNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))


class LayerNormWithActivation(OtherRMSNorm):
    def __init__(self):
        super().__init__()
        self.activation = nn.Sequential(nn.ReLU(), nn.Identity())


class NormedScale(OtherRMSNorm):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.ReLU(), nn.PReLU())


@pytest.mark.parametrize(
    ("module", "norm"),
    [
        (nn.BatchNorm1d(2), True),
        (nn.InstanceNorm2d(2, affine=True), True),
        (nn.GroupNorm(1, 2), True),
        (nn.LayerNorm((2, 3)), True),
        (nn.RMSNorm(2), True),
        (OtherRMSNorm(), True),
        (LayerNormWithActivation(), True),
        (NormedScale(), False),
        (PreLayerNormAttention(), False),
        (nn.Linear(2, 2), False),
    ],
)
def test_norms_are_told_by_type_and_others_libraries_by_name(module, norm):
    assert is_norm(module) is norm


def test_a_norm_listed_by_its_parameters_is_still_a_norm():
    model = nn.ModuleDict({"linear": nn.Linear(2, 3), "norm": nn.LayerNorm(3)})
    groups = split_layer_groups(model, [["linear"], ["norm.weight", "norm.bias"]])
    assert norm_parameter_names(groups[1]) == {"norm.weight", "norm.bias"}


def test_frozen_batch_norm_is_held_after_every_train_call():
    model = new_model(norm="batch")
    groups = groups_of(model)
    freeze_to(groups, 2)
    for _ in range(2):
        model.train()
        train_mode(model, groups)
        assert not model.body[1].training
        assert model.middle[1].training
        assert model.body[2].training  # dropout stays on


def test_train_norm_keeps_norms_of_frozen_groups_in_training():
    model = new_model(norm="batch")
    groups = groups_of(model)
    freeze(groups, train_norm=True)
    train_mode(model, groups, train_norm=True)
    assert model.body[1].training


class Nest(nn.Module):
    """Dropout between the groups and beside them, as in AWD-LSTM."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.ModuleDict({"low": nn.Linear(2, 3), "drop": nn.Dropout(), "high": nn.Linear(3, 3)})
        self.head = nn.Sequential(nn.Dropout(), nn.Linear(3, 5))


def test_frozen_dropout_off_puts_frozen_groups_and_what_lies_between_them_in_evaluation_mode():
    model = Nest()
    groups = split_layer_groups(model, [["backbone.low"], ["backbone.high"], ["head"]])
    freeze(groups)
    train_mode(model, groups, frozen_dropout="off")
    assert not any(module.training for module in model.backbone.modules())
    assert model.training
    assert model.head[0].training
    freeze_to(groups, 1)
    train_mode(model, groups, frozen_dropout="off")
    assert not model.backbone["low"].training
    assert model.backbone["drop"].training
    train_mode(model, groups, frozen_dropout="on")
    assert model.backbone["low"].training


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frozen_dropout": "of"}, r"must be one of \('on', 'off'\), got 'of'"),
        ({"frozen_dropout": "off", "train_norm": True}, "which train_norm=True contradicts"),
    ],
)
def test_unclear_policies_are_refused(options, words):
    model = new_model()
    with pytest.raises(ValueError, match=words):
        train_mode(model, groups_of(model), **options)
