import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

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
from ulmfit_pipe.training.frozen_cache.batch_rows import PrefixError
from ulmfit_pipe.training.frozen_cache.prefix_boundary import find_cut, frozen_below, left_as_found
from ulmfit_pipe.training.layer_groups import set_trainable, split_layer_groups
from ulmfit_pipe.training.objectives import ClassificationObjective, SequenceObjective
from ulmfit_pipe.training.records import TrainingOptions


def cut_of(model, groups, *trained, batch=None, objective=None, **options):
    """Cut a model whose groups train as said; groups are prefixes, or made already."""
    groups = split_layer_groups(model, groups) if isinstance(groups[0], list) else groups
    settings = TrainingOptions(**options)
    set_trainable(groups, trained, train_norm=settings.train_norm)
    batch = text_rows(8) if batch is None else batch
    objective = objective or ClassificationObjective()
    with left_as_found(model):
        return find_cut(model, groups, batch, lambda rows: objective(model, rows, None), options=settings)


def names_of(cut):
    return [part.name for part in cut.frozen], list(cut.later), [str(crossing) for crossing in cut.crossings]


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


PARTS = [["embeddings"], ["body"], ["head"]]


# ---- where it is


def test_the_largest_modules_on_either_side_are_found_and_what_goes_between():
    model = new_model()
    cut = cut_of(model, groups_of(model), 2, 3)
    assert names_of(cut) == (["embeddings", "body"], ["middle", "head"], ["middle(0)"])


def test_a_backbones_blocks_are_cut_where_the_first_trained_one_begins():
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=12, num_labels=3
    )
    model = BertForSequenceClassification(config)
    specs = layer_group_specs(model)
    groups = split_layer_groups(model, [spec.prefixes for spec in specs], names=[spec.name for spec in specs])
    batch = text_rows(8) | {"attention_mask": torch.ones(8, 3, dtype=torch.long), "labels": torch.arange(8) % 3}
    blocks = [f"bert.encoder.layer.{block}" for block in range(3)]
    for first, frozen, crossing in [
        (1, ["bert.embeddings"], "bert.encoder"),
        (3, ["bert.embeddings", *blocks[:2]], blocks[2]),
        (4, ["bert.embeddings", "bert.encoder"], "bert.pooler"),
    ]:
        cut = cut_of(model, groups, *range(first, 5), batch=batch, frozen_dropout="off")
        assert names_of(cut)[0] == frozen
        assert [name.partition("(")[0] for name in names_of(cut)[2]] == [crossing]
        assert cut.crossings[0].axes.text == 1


def test_a_table_of_positions_that_sees_no_rows_is_left_to_run():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCAB, n_embd=8, n_layer=2, n_head=2, n_positions=9, num_labels=3, pad_token_id=0)
    model = GPT2ForSequenceClassification(config)
    groups = [
        ["transformer.wte", "transformer.wpe"],
        ["transformer.h.0"],
        ["transformer.h.1"],
        ["transformer.ln_f", "score"],
    ]
    batch = text_rows(8) | {"attention_mask": torch.ones(8, 3, dtype=torch.long), "labels": torch.arange(8) % 3}
    model.config.use_cache = False
    for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
        assert getattr(config, name) == 0.1
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    frozen, _, crossings = names_of(cut_of(model, groups, 2, 3, batch=batch, frozen_dropout="off"))
    assert frozen == ["transformer.wte", "transformer.h.0"]
    assert [name.partition("(")[0] for name in crossings] == ["transformer.h.1"]


def test_groups_frozen_between_trained_ones_lie_behind_the_boundary():
    model = new_model()
    groups = groups_of(model)
    set_trainable(groups, (1, 3))
    assert [group.name for group in frozen_below(groups)] == ["embeddings"]
    assert names_of(cut_of(model, groups, 1, 3)) == (["embeddings"], ["body", "middle", "head"], ["body(0)"])


def test_looking_for_it_leaves_the_model_as_it_was():
    model = new_model(norm="batch", dropout=0.3).train()
    model.middle.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    torch.manual_seed(5)
    following = torch.rand(3)
    torch.manual_seed(5)
    cut_of(model, groups_of(model), 2, 3, frozen_dropout="off")
    assert torch.equal(torch.rand(3), following)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all("forward" not in module.__dict__ and not module._forward_pre_hooks for module in model.modules())


# ---- where there is none


def flattened(net, ids):
    hidden = net.body(net.embeddings(ids).flatten(0, 1))  # (batch * seq_len, hidden)
    return net.head(hidden).unflatten(0, ids.shape).mean(1)


def without_neighbours_mean(net, ids):
    hidden = net.body(net.embeddings(ids).mean(1))
    return net.head(hidden - hidden.mean(0))


def in_halves(net, ids):
    hidden = net.body(net.embeddings(ids).mean(1))
    return torch.cat([net.head(half) for half in hidden.tensor_split(2)])


def twice(net, ids):
    hidden = net.body(net.embeddings(ids).mean(1))
    return net.head(hidden) + net.head(hidden.flip(0)).flip(0)


def past_the_head(net, ids):
    hidden = net.body(net.embeddings(ids).mean(1))
    return net.head(hidden) + hidden[:, :CLASSES]


def without_body(net, ids):
    net.body(net.embeddings(ids).mean(1))
    return net.head(torch.ones(len(ids), HIDDEN))


@pytest.mark.parametrize(
    ("connect", "words"),
    [
        (flattened, r"of what goes into head, it has the shape \(12, 7\) for 4 rows and \(18, 7\) for 6 rows"),
        (
            without_neighbours_mean,
            "what goes into head for a row depends on the row's place, its neighbours or its pad",
        ),
        (twice, "of what goes into head, it comes 2 times for a batch, and not each time for the next rows"),
        (past_the_head, "what frozen groups give out reaches the output past all that trains"),
        (without_body, "nothing that trains reads what frozen groups give out"),
    ],
)
def test_what_cannot_be_kept_by_row_is_refused_with_the_reason(connect, words):
    with pytest.raises(PrefixError, match=words):
        cut_of(Net(connect), PARTS, 2)


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


def test_weights_tied_across_the_boundary_are_refused_in_whichever_group_they_are():
    with pytest.raises(PrefixError, match="body reads what groups behind the boundary give out"):
        cut_of(Tied(), [["body"], ["middle"], ["embeddings", "head"]], 1, 2)
    with pytest.raises(PrefixError, match="what frozen groups give out reaches the output past all that trains"):
        cut_of(Tied(), [["embeddings", "head"], ["body"], ["middle"]], 2)


def test_a_trained_weight_beside_frozen_layers_is_refused():
    class Scaled(Net):
        def __init__(self):
            super().__init__(lambda net, ids: net.head(net.body(net.embeddings(ids).mean(1))) * net.scale)
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(PrefixError, match="scale of Scaled trains, and the same module holds frozen layers"):
        cut_of(Scaled(), [["embeddings"], ["body"], ["head", "scale"]], 2)


def test_an_output_that_cannot_be_repeated_is_refused():
    class Box:
        def __init__(self, value):
            self.value = value

    class Boxed(nn.Linear):
        def forward(self, rows):
            return Box(super().forward(rows))

    model = Net(lambda net, ids: net.head(net.body(net.embeddings(ids).mean(1)).value), body=Boxed(EMBEDDING, HIDDEN))
    with pytest.raises(PrefixError, match=r"body gives out a Box \(use_cache makes some\)"):
        cut_of(model, PARTS, 2)


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
    with pytest.raises(PrefixError, match="the objective carries a state from one batch to the next"):
        cut_of(Reader(), [["embeddings"], ["head"]], 1, batch=batch, objective=Carrying(alpha=0, beta=0))


def test_a_batch_that_is_read_in_pieces_is_put_together():
    cut = cut_of(Net(in_halves), PARTS, 2)
    assert names_of(cut) == (["embeddings", "body"], ["head"], ["head(0)"])
    assert (cut.crossings[0].axes.row, cut.crossings[0].axes.text) == (0, None)


# ---- training mode


def test_dropout_in_frozen_groups_is_refused_by_name_and_fine_when_off():
    model = new_model(dropout=0.1)
    with pytest.raises(
        PrefixError,
        match=r"what goes into middle is not the same each time: dropout runs below it \(body\.2\); frozen_d",
    ):
        cut_of(model, groups_of(model), 2, 3)
    assert cut_of(model, groups_of(model), 2, 3, frozen_dropout="off").crossings


def test_dropout_behind_the_boundary_does_not_matter():
    model = new_model()
    model.middle[2].p = 0.5
    assert cut_of(model, groups_of(model), 2, 3).crossings


def test_frozen_batch_norm_is_fine_where_it_is_held_and_refused_where_it_is_not():
    model = new_model(norm="batch")
    assert cut_of(model, groups_of(model), 2, 3).crossings
    with pytest.raises(PrefixError, match="what goes into middle is not the same each time: training mode changes it"):
        cut_of(model, groups_of(model), 2, 3, train_norm=True)
