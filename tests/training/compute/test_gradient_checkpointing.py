"""Layers that run again in the backward pass give the same gradients, and run once where no gradient is needed."""

import contextlib

import pytest
import torch
from torch import nn

from tests.support.toy_models import CLASSES, EMBEDDING, HIDDEN, VOCAB, ToyOutput, new_phase, new_task, weights_of
from ulmfit_pipe.training.compute.wrapping import checkpointed
from ulmfit_pipe.training.layer_groups import split_layer_groups
from ulmfit_pipe.training.loop import fit
from ulmfit_pipe.training.records import TrainingOptions

NAMES = ["embeddings", "layers.0", "layers.1", "head"]


class Layer(nn.Module):
    """A layer as transformers writes them: it asks who wants it to run again."""

    gradient_checkpointing = False

    def __init__(self, size, *, norm):
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.norm = norm(size)
        self.dropout = nn.Dropout(0.4)
        self.runs = 0

    def forward(self, x):
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(self.compute, x)
        return self.compute(x)

    def compute(self, x):
        self.runs += 1
        return self.dropout(torch.tanh(self.norm(self.linear(x))))


class Stack(nn.Module):
    def __init__(self, *, norm=nn.LayerNorm):
        super().__init__()
        self.embeddings = nn.Embedding(VOCAB, EMBEDDING)
        self.layers = nn.ModuleList([Layer(EMBEDDING, norm=norm), Layer(EMBEDDING, norm=norm)])
        self.head = nn.Linear(EMBEDDING, CLASSES)

    def forward(self, input_ids):
        x = self.embeddings(input_ids).mean(1)
        for layer in self.layers:
            x = layer(x)
        return ToyOutput(self.head(x))


def groups_of(model):
    return split_layer_groups(model, [[name] for name in NAMES])


def train(accelerator, trainable, *, norm=nn.LayerNorm, epochs=1, say=None, **options):
    """Return the model after one phase, and how often each layer ran in a training step."""
    torch.manual_seed(0)
    model = Stack(norm=norm)
    torch.manual_seed(1)  # of the dropout masks
    task = new_task(8, valid=0)
    fit(
        model,
        groups_of(model),
        new_phase(*trainable, epochs=epochs),
        task,
        accelerator=accelerator,
        options=TrainingOptions(**options),
        say=say,
    )
    return model, [layer.runs / (2 * epochs) for layer in model.layers]


@pytest.mark.parametrize(
    ("trainable", "runs"),
    [
        pytest.param((3,), [1, 1], id="the head alone: nothing runs again"),
        pytest.param((2, 3), [1, 2], id="a frozen prefix is not run again"),
        pytest.param((1, 2, 3), [2, 2], id="frozen embeddings"),
        pytest.param((0, 1, 2, 3), [2, 2], id="all"),
        pytest.param((1,), [2, 2], id="a frozen layer above a thawed one is run again, a gradient flows through it"),
    ],
)
def test_only_layers_that_a_gradient_flows_through_are_run_again_and_the_weights_are_the_same(
    accelerator, trainable, runs
):
    plain, once = train(accelerator, trainable)
    again, counted = train(accelerator, trainable, gradient_checkpointing=True)
    assert once == [1, 1]
    assert counted == runs
    for name, value in weights_of(plain).items():
        assert torch.equal(value, again.state_dict()[name]), name  # dropout masks are drawn the same a second time


def test_batch_statistics_are_not_taken_twice(accelerator):
    plain, _ = train(accelerator, (0, 1, 2, 3), norm=nn.BatchNorm1d)
    again, counted = train(accelerator, (0, 1, 2, 3), norm=nn.BatchNorm1d, gradient_checkpointing=True)
    assert counted == [1, 1]
    for name, value in weights_of(plain).items():
        assert torch.equal(value, again.state_dict()[name]), name
    _, frozen = train(accelerator, (1, 3), norm=nn.BatchNorm1d, gradient_checkpointing=True)
    assert frozen == [1, 2]  # the frozen one above takes no statistics


def test_the_switches_are_put_back(accelerator):
    model, _ = train(accelerator, (2, 3), gradient_checkpointing=True)
    kept = Stack()
    kept.layers[0].gradient_checkpointing = "mine"
    with contextlib.suppress(ZeroDivisionError), checkpointed(kept, enabled=True):
        assert all(layer.gradient_checkpointing is True for layer in kept.layers)
        raise ZeroDivisionError
    for layer in [*model.layers, kept.layers[1]]:
        assert not {"gradient_checkpointing", "_gradient_checkpointing_func"} & set(layer.__dict__)
    assert kept.layers[0].gradient_checkpointing == "mine"


def test_a_model_without_such_layers_is_refused():
    words = "gradient_checkpointing: no layer of Linear can be run again in the backward pass .*; leave it out"
    with pytest.raises(ValueError, match=words), checkpointed(nn.Linear(HIDDEN, 2), enabled=True):
        pass
    with checkpointed(nn.Linear(HIDDEN, 2), enabled=False):
        pass


def test_frozen_activations_are_not_kept_beside_it(accelerator):
    said = []
    options = {"cache_frozen": True, "gradient_checkpointing": True}
    train(accelerator, (2, 3), epochs=2, say=said.append, **options)
    assert said == [
        "cache_frozen: off in phase 'some', frozen groups run in every epoch: gradient_checkpointing runs layers "
        "again, when what was kept is no longer put into them"
    ]


def test_compiled_code_and_running_again_are_not_combined():
    with pytest.raises(ValueError, match="compile and gradient_checkpointing are not proven together: .*; leave one"):
        TrainingOptions(compile=True, gradient_checkpointing=True)
