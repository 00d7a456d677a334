"""Compiled code is made anew for what each phase trains; thawed groups train, and the results are those without it."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch._inductor import config as inductor

from tests.support.toy_models import (
    NAMES,
    ToyBatches,
    ToyLanguageModel,
    groups_of,
    lm_groups_of,
    new_model,
    new_phase,
    new_task,
    token_rows,
    weights_of,
)
from ulmfit_pipe.training.compute.wrapping import compiled
from ulmfit_pipe.training.loop import fit
from ulmfit_pipe.training.lr_finder import lr_find
from ulmfit_pipe.training.metrics import LanguageModelMetric
from ulmfit_pipe.training.objectives import SequenceObjective
from ulmfit_pipe.training.phases import Plan, gradual_unfreezing, run_phases
from ulmfit_pipe.training.records import Task, TrainingOptions


@pytest.fixture
def graphs(monkeypatch):
    """Let the compiler do all but make code, and collect what it would make code of: fast, and needs no C++."""
    found = []
    original = nn.Module.compile

    def note(graph, _inputs):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", lambda module: original(module, backend=note))
    return found


def run_gradually(accelerator, *, compile, norm="layer"):
    """Return the model, the weights after each epoch, and the history of all phases of gradual unfreezing."""
    model = new_model(norm=norm)
    after = [weights_of(model)]
    plan = Plan(tuple(gradual_unfreezing(4, lr=1e-2)), tuple(groups_of(model)))
    options = TrainingOptions(compile=compile, max_grad_norm=1.0)
    history = run_phases(
        model,
        plan,
        new_task(),
        accelerator=accelerator,
        options=options,
        keep_best=False,
        on_epoch=lambda _record: after.append(weights_of(model)),
    )
    return model, after, history


def check_against_eager(accelerator, **settings):
    eager = run_gradually(accelerator, compile=False, **settings)
    made = run_gradually(accelerator, compile=True, **settings)
    model, after, history = made
    assert [step.loss for step in history.steps] == pytest.approx([step.loss for step in eager[2].steps], abs=1e-5)
    assert [step.lrs for step in history.steps] == [step.lrs for step in eager[2].steps]
    for name, value in weights_of(eager[0]).items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-5, msg=name)
    for number in range(1, 5):  # a phase is an epoch, and trains one group more than the one before
        values = after[number].items()
        moved = {
            name.split(".")[0]
            for name, value in values
            if value.is_floating_point() and not torch.equal(value, after[number - 1][name])
        }
        assert moved == set(NAMES[-number:])


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_every_phase_is_compiled_and_trains_its_thawed_groups(accelerator, graphs, norm):
    check_against_eager(accelerator, norm=norm)
    assert len(graphs) >= 4  # at least one a phase


def test_the_model_is_as_it_was_after_the_phase_also_where_it_fails(accelerator, graphs):
    model = new_model()
    options = TrainingOptions(compile=True)
    fit(model, groups_of(model), new_phase(3), new_task(), accelerator=accelerator, options=options)
    assert model._compiled_call_impl is None
    count = len(graphs)
    model(torch.zeros(2, 3, dtype=torch.long))
    assert len(graphs) == count > 0  # it runs without compiled code again
    with pytest.raises(ZeroDivisionError), compiled(model, enabled=True):
        raise ZeroDivisionError
    assert model._compiled_call_impl is None
    assert "forward" not in model.__dict__


@pytest.mark.slow
def test_mixed_precision_is_compiled_with_the_model(graphs):
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model, kinds = new_model(), []
    model.head.register_forward_hook(lambda _m, _i, out: kinds.append(out.dtype))
    options = TrainingOptions(compile=True)
    fit(model, groups_of(model), new_phase(2, 3), new_task(), accelerator=accelerator, options=options)
    assert set(kinds) == {torch.bfloat16}
    assert graphs


def test_modules_that_ask_for_it_and_replaced_forwards_run_as_ever(graphs):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.mine, self.asks, self.head = (nn.Linear(5, 5) for _ in range(4))
            self.asks.runs_eagerly = True

        def forward(self, x):
            return self.head(self.asks(torch.tanh(self.mine(self.first(x)))))

    model = Whole()
    eager, seen = nn.Linear.forward, []

    def noting(x):
        seen.append(torch.compiler.is_compiling())
        return eager(model.mine, x)

    model.mine.forward = noting
    x = torch.randn(4, 5)
    expected = model(x)
    with compiled(model, enabled=True):
        torch.testing.assert_close(model(x), expected)
    assert model.mine.forward is noting
    assert "forward" not in model.asks.__dict__
    assert seen == [False, False]
    made = [[node.name for node in graph.graph.nodes if node.op.startswith("call")] for graph in graphs]
    assert made == [["linear"], ["tanh"], ["linear"]]  # the first layer, what lies between the two, the head


def test_a_language_model_with_carried_state_ends_where_it_does_without(accelerator, graphs):
    def run(**options):
        torch.manual_seed(0)
        model = ToyLanguageModel()
        batches = ToyBatches(token_rows(12), batch_size=4)
        task = Task(batches, SequenceObjective(), batches, LanguageModelMetric)
        plan = Plan(tuple(gradual_unfreezing(2, lr=1e-2)), tuple(lm_groups_of(model)))
        run_phases(model, plan, task, accelerator=accelerator, options=TrainingOptions(**options))
        return weights_of(model)

    plain, made = run(), run(compile=True)
    for name, value in plain.items():
        torch.testing.assert_close(made[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_a_sweep_of_the_learning_rate_is_not_compiled(accelerator, graphs):
    model = new_model()
    options = TrainingOptions(compile=True)
    lr_find(model, groups_of(model), new_task(40), accelerator=accelerator, options=options, num_steps=40, end_lr=1e-2)
    assert graphs == []


def test_frozen_activations_are_not_kept_in_compiled_code(accelerator, graphs):
    said = []
    task = new_task()
    task.train_batches.fixed_rows = True
    options = TrainingOptions(compile=True, cache_frozen=True)
    model = new_model()
    phase = new_phase(3, epochs=2)
    fit(model, groups_of(model), phase, task, accelerator=accelerator, options=options, say=said.append)
    assert said == [
        "cache_frozen: off in phase 'some', frozen groups run in every epoch: the model is compiled (compile), and "
        "compiled code cannot leave its frozen part out"
    ]


def thaw(accelerator, *, compile):
    """Train the head, then everything, each in two steps of equal shapes; return the weights after each."""
    model, after = new_model(), []
    for trainable in ((3,), (0, 1, 2, 3)):
        options = TrainingOptions(compile=compile)
        task = new_task(8, valid=0)
        fit(model, groups_of(model), new_phase(*trainable), task, accelerator=accelerator, options=options)
        after.append(weights_of(model))
    return after


@pytest.mark.slow
def test_real_compiled_code_trains_thawed_groups_and_ends_where_eager_code_does(accelerator, monkeypatch):
    """By torch's own code generator: four pieces of C++."""
    monkeypatch.setattr(inductor, "cpp_cache_precompile_headers", False)  # which takes longer than they do
    before, eager, made = weights_of(new_model()), thaw(accelerator, compile=False), thaw(accelerator, compile=True)
    for mine, theirs in zip(made, eager, strict=True):
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert {name.split(".")[0] for name, value in made[0].items() if not torch.equal(value, before[name])} == {"head"}
    assert not any(torch.equal(value, made[0][name]) for name, value in made[1].items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_compiled_code_on_a_gpu_trains_thawed_groups_and_ends_where_eager_code_does():
    check_against_eager(Accelerator())
