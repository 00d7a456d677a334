import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.support.toy_models import (
    ToyBatches,
    ToyLanguageModel,
    groups_of,
    lm_groups_of,
    new_model,
    new_task,
    same,
    text_rows,
    token_rows,
    weights_of,
)
from ulmfit_pipe.training.layer_groups import freeze, freeze_to, split_layer_groups, unfreeze
from ulmfit_pipe.training.logs.model_summary import summarize
from ulmfit_pipe.training.objectives import ClassificationObjective, SequenceObjective
from ulmfit_pipe.training.records import Task


def cells(table):
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in str(table).splitlines()]


def test_each_layer_has_kind_shape_parameters_state_and_rate(accelerator):
    model = new_model()
    groups = groups_of(model)
    freeze_to(groups, 2)
    rows = cells(summarize(model, groups, new_task(), accelerator, lrs=[1e-4, 2e-4, 3e-4, 4e-4]))
    assert rows[0] == ["layer", "kind", "output shape", "parameters", "state", "learning rate"]
    assert rows[2] == ["[0] embeddings", "group", "65", "frozen", "-"]
    assert rows[3] == ["embeddings", "Embedding", "(4, 3, 5)", "65", "frozen", "-"]
    assert rows[5] == ["body.0", "Linear", "(4, 7)", "42", "frozen", "-"]
    assert rows[7] == ["[2] middle", "group", "60", "trains", "3.00e-04"]
    assert rows[9] == ["middle.1", "LayerNorm", "(4, 6)", "12", "trains", "3.00e-04"]
    assert rows[11] == ["head", "Linear", "(4, 4)", "28", "trains", "4.00e-04"]
    assert rows[12] == ["total 209 parameters: 88 trainable, 121 frozen"]


@pytest.mark.parametrize("train_norm", [False, True])
def test_totals_are_the_real_ones(accelerator, train_norm):
    model = new_model(norm="batch")
    groups = groups_of(model)
    freeze(groups, train_norm=train_norm)
    text = str(summarize(model, groups, new_task(), accelerator, lrs=[1e-3] * 4))
    total = sum(parameter.numel() for parameter in model.parameters())
    moving = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert f"total {total} parameters: {moving} trainable, {total - moving} frozen" in text
    assert moving == (28 + 14 + 12 if train_norm else 28)
    layers = [row for row in cells(text)[2:-1] if row[1] != "group"]
    held = [row[3] if row[2].startswith("(") else row[2] for row in layers]
    assert sum(int(number) for number in held) == total


def test_tied_weights_are_counted_once_and_said_so_and_lstms_have_a_shape(accelerator):
    model = ToyLanguageModel()
    groups = lm_groups_of(model)
    unfreeze(groups)
    task = Task(ToyBatches(token_rows(2)), SequenceObjective())
    text = str(summarize(model, groups, task, accelerator, lrs=[1e-3, 1e-2]))
    lstm = 4 * 5 * (5 + 5) + 8 * 5
    assert f"total {lstm + 13 * 5 + 13} parameters: {lstm + 78} trainable, 0 frozen" in text
    assert "tied, counted once: embeddings.weight = lm_head.weight" in text
    assert ["lstm", "LSTM", "(2, 3, 5)", str(lstm), "trains", "1.00e-03"] in cells(text)
    assert ["lm_head", "Linear", "(2, 3, 13)", "13", "trains", "1.00e-02"] in cells(text)


def test_looking_changes_nothing(accelerator):
    model = new_model(norm="batch", dropout=0.5)
    groups = groups_of(model)
    model.train()
    model.body[2].eval()
    weights, flags = weights_of(model), [module.training for module in model.modules()]
    states = random.getstate(), torch.get_rng_state()
    summarize(model, groups, new_task(), accelerator, lrs=[1e-3] * 4)
    assert same(weights, weights_of(model)) == list(weights)
    assert [module.training for module in model.modules()] == flags
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_and_flags_are_put_back_when_the_model_fails(accelerator):
    model = new_model()
    task = Task(ToyBatches({**text_rows(3), "surprise": torch.ones(3)}), ClassificationObjective())
    model.train()
    with pytest.raises(TypeError, match="surprise"):
        summarize(model, groups_of(model), task, accelerator, lrs=[1e-3] * 4)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_shapes_are_found_inside_dictionaries_and_unused_layers_have_none(accelerator):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.inner = Inner()
            self.unused = nn.Linear(2, 3)

        def forward(self, input_ids):
            return SimpleNamespace(logits=self.inner(input_ids.float())["out"][1] * self.scale)

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 4))

        def forward(self, x):
            return {"none": None, "out": [None, x @ self.weight]}

    model = Odd()
    groups = split_layer_groups(model, [["scale", "inner", "unused"]], names=["all"])
    rows = cells(summarize(model, groups, new_task(), accelerator, lrs=[1e-3]))
    assert ["inner", "Inner", "(4, 4)", "12", "trains", "1.00e-03"] in rows
    assert ["unused", "Linear", "9", "trains", "1.00e-03"] in rows
    assert ["(model)", "Odd", "1", "trains", "1.00e-03"] in rows
