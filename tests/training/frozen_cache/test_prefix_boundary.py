import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from tests.support.toy_models import (
    CLASSES,
    EMBEDDING,
    HIDDEN,
    VOCAB,
    ToyOutput,
    groups_of,
    new_model,
    text_rows,
    token_rows,
)
from ulmfit_pipe.models.layer_groups.group_specs import layer_group_specs
from ulmfit_pipe.training.frozen_cache.prefix_boundary import FrozenPart, find_boundary, frozen_below, left_as_found
from ulmfit_pipe.training.frozen_cache.row_tensors import PrefixError
from ulmfit_pipe.training.layer_groups import set_trainable, split_layer_groups
from ulmfit_pipe.training.objectives import ClassificationObjective, SequenceObjective
from ulmfit_pipe.training.records import TrainingOptions


def boundary_of(model, groups, *trained, batch=None, objective=None, **options):
    """Find the boundary of a model whose groups train as said; groups are prefixes, or made already."""
    groups = split_layer_groups(model, groups) if isinstance(groups[0], list) else groups
    settings = TrainingOptions(**options)
    set_trainable(groups, trained, train_norm=settings.train_norm)
    batch = text_rows(8) if batch is None else batch
    objective = objective or ClassificationObjective()
    with left_as_found(model):
        return find_boundary(model, groups, lambda: objective(model, batch, None), options=settings)


class Net(nn.Module):
    """An embedding, a body and a head that a function of these three connects."""

    def __init__(self, connect, *, body=None):
        super().__init__()
        self.embeddings = nn.Embedding(VOCAB, EMBEDDING)
        self.body = body or nn.Linear(EMBEDDING, HIDDEN)
        self.head = nn.Linear(HIDDEN, CLASSES)
        self.connect = connect

    def forward(self, input_ids):
        return ToyOutput(self.connect(self, input_ids))


# ---- where it is


def test_it_is_the_first_module_that_trains_and_what_goes_into_it():
    model = new_model()
    boundary = boundary_of(model, groups_of(model), 2, 3)
    assert (boundary.name, boundary.place) == ("middle", (0, 0))
    assert [part.name for part in boundary.frozen if "." not in part.name] == ["embeddings", "body"]


def test_a_backbones_blocks_are_split_where_the_first_trained_one_begins():
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=12, num_labels=3
    )
    model = BertForSequenceClassification(config)
    specs = layer_group_specs(model)
    groups = split_layer_groups(model, [spec.prefixes for spec in specs], names=[spec.name for spec in specs])
    batch = text_rows(8) | {"attention_mask": torch.ones(8, 3, dtype=torch.long), "labels": torch.arange(8) % 3}
    for first, name in [(1, "bert.encoder"), (3, "bert.encoder.layer.2"), (4, "bert.pooler")]:
        boundary = boundary_of(model, groups, *range(first, 5), batch=batch, frozen_dropout="off")
        assert (boundary.name, boundary.place) == (name, (0, 0))
        frozen = [part.name for part in boundary.frozen]
        assert ("bert.encoder" in frozen) == (first == 4) and ("bert.encoder.layer.1" in frozen) == (first > 2)


def test_groups_frozen_between_trained_ones_are_behind_the_boundary():
    model = new_model()
    groups = groups_of(model)
    set_trainable(groups, (1, 3))
    assert [group.name for group in frozen_below(groups)] == ["embeddings"]
    boundary = boundary_of(model, groups, 1, 3)
    assert (boundary.name, [part.name for part in boundary.frozen]) == ("body", ["embeddings"])


def test_looking_for_it_leaves_the_model_as_it_was():
    model = new_model(norm="batch", dropout=0.3).train()
    model.middle.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    torch.manual_seed(5)
    following = torch.rand(3)
    torch.manual_seed(5)
    boundary_of(model, groups_of(model), 2, 3, frozen_dropout="off")
    assert torch.equal(torch.rand(3), following)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all("forward" not in module.__dict__ and not module._forward_pre_hooks for module in model.modules())


# ---- the shapes of modules that are left out


class Spread(nn.Module):
    """Returns a tensor of the shape that a function of the input's gives, and counts its calls."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.calls = shape, 0

    def forward(self, rows):
        self.calls += 1
        return torch.ones(self.shape(*rows.shape))


def left_out(part, *given):
    """Return what a part returns for an input of a shape when it is left out, and whether it ran for it."""
    calls = part.module.calls
    with part.replaced(left_out=True):
        output = part.module(torch.ones(given))
    return tuple(output.shape), part.module.calls > calls


def learned(shape, *given):
    part = FrozenPart("part", Spread(shape))
    with part.replaced(left_out=False):
        for one in given:
            part.module(torch.ones(one))
    return part


def test_sizes_follow_the_inputs_or_stay_as_they_were():
    assert left_out(learned(lambda rows, width: (rows, width, 5), (2, 3), (4, 7)), 9, 11) == ((9, 11, 5), False)


def test_two_explanations_that_disagree_let_the_module_run_and_that_settles_it():
    part = learned(lambda rows, width: (rows, width), (2, 5))  # 5 for the input's 5, or 5 always?
    assert left_out(part, 2, 5) == ((2, 5), False)
    assert left_out(part, 2, 6) == ((2, 6), True)
    assert left_out(part, 2, 8) == ((2, 8), False)


def test_calls_with_another_number_of_dimensions_are_kept_apart():
    part = learned(lambda *sizes: (sizes[0], 6), (2, 3), (4, 3))
    assert left_out(part, 4, 3) == ((4, 6), False)
    assert left_out(part, 4, 3, 1) == ((4, 6), True)


def test_a_module_has_its_own_forward_back_afterwards():
    layer = nn.Linear(3, 5)
    with FrozenPart("layer", layer).replaced(left_out=True):
        assert "forward" in layer.__dict__
    assert "forward" not in layer.__dict__
    own = layer.forward = lambda rows: rows
    with FrozenPart("layer", layer).replaced(left_out=True):
        pass
    assert layer.forward is own


def test_an_output_that_cannot_be_repeated_is_refused():
    class Boxed(nn.Linear):
        def forward(self, rows):
            return {len(rows)}

    part = FrozenPart("body", Boxed(3, 5))
    with (
        part.replaced(left_out=False),
        pytest.raises(PrefixError, match=r"body returns a set \(use_cache makes some\)"),
    ):
        part.module(torch.ones(2, 3))


def test_outputs_that_are_built_differently_are_refused():
    with pytest.raises(PrefixError, match="part does not return the same kind of output each time"):
        learned(lambda rows, width: (rows,) if rows > 2 else (rows, width), (2, 3), (4, 7))


# ---- where there is none


class Tied(nn.Module):
    """A classifier of tokens' mean whose last layer is its embedding."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(VOCAB, EMBEDDING)
        self.body = nn.Linear(EMBEDDING, EMBEDDING)
        self.middle = nn.Linear(EMBEDDING, EMBEDDING)
        self.head = nn.Linear(EMBEDDING, VOCAB, bias=False)
        self.head.weight = self.embeddings.weight

    def forward(self, input_ids):
        return ToyOutput(self.head(self.middle(self.body(self.embeddings(input_ids).mean(1)))))


def test_weights_tied_across_the_boundary_are_refused_where_they_train():
    with pytest.raises(PrefixError, match="body reads what groups behind the boundary return"):
        boundary_of(Tied(), [["body"], ["middle"], ["embeddings", "head"]], 1, 2)


def test_a_trained_weight_before_the_boundary_is_refused():
    class Scaled(Net):
        def __init__(self):
            super().__init__(lambda net, ids: net.head(net.body(net.embeddings(ids).mean(1)) * net.scale))
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(PrefixError, match="no module that trains is called with what frozen groups return"):
        boundary_of(Scaled(), [["embeddings"], ["body"], ["head", "scale"]], 2)


def test_a_state_carried_from_batch_to_batch_is_refused():
    class Carrying(SequenceObjective):
        def __call__(self, model, batch, carry):
            output = super().__call__(model, batch, carry)
            output.carry = torch.zeros(1)
            return output

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.embeddings, self.head = nn.Embedding(VOCAB, EMBEDDING), nn.Linear(EMBEDDING, VOCAB)

        def forward(self, input_ids, hidden_state=None):
            return ToyOutput(self.head(self.embeddings(input_ids)), hidden_state=hidden_state)

    batch = {**token_rows(8), "row": torch.arange(8)}
    with pytest.raises(PrefixError, match="the objective passes a recurrent state from one batch to the next"):
        boundary_of(Reader(), [["embeddings"], ["head"]], 1, batch=batch, objective=Carrying(alpha=0, beta=0))


# ---- training mode


def test_dropout_in_frozen_groups_is_refused_by_name_and_fine_when_off():
    model = new_model(dropout=0.1)
    with pytest.raises(
        PrefixError,
        match=r"what goes into middle is not the same each time: dropout runs below it \(body\.2\); frozen_d",
    ):
        boundary_of(model, groups_of(model), 2, 3)
    assert boundary_of(model, groups_of(model), 2, 3, frozen_dropout="off")


def test_dropout_behind_the_boundary_does_not_matter():
    model = new_model()
    model.middle[2].p = 0.5
    assert boundary_of(model, groups_of(model), 2, 3)


def test_frozen_batch_norm_is_fine_where_it_is_held_and_refused_where_it_is_not():
    model = new_model(norm="batch")
    assert boundary_of(model, groups_of(model), 2, 3)
    with pytest.raises(PrefixError, match="no module that trains is called with what frozen groups return"):
        boundary_of(model, groups_of(model), 2, 3, train_norm=True)


def test_a_batch_norm_without_weights_that_trains_before_the_boundary_is_refused():
    net = Net(lambda net, ids: net.head(net.norm(net.body(net.embeddings(ids).mean(1)))))
    net.norm = nn.BatchNorm1d(HIDDEN, affine=False)
    with pytest.raises(PrefixError, match="what goes into head is not the same each time: training mode changes it"):
        boundary_of(net, [["embeddings"], ["body"], ["head", "norm"]], 2)
