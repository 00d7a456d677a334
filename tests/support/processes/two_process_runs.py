"""Runs of the training core whose results must not depend on the number of processes.

training/distributed/test_several_processes.py runs them in one process and in several.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from tests.support.toy_models import (
    ToyBatches,
    ToyClassifier,
    ToyLanguageModel,
    ToyOutput,
    groups_of,
    lm_groups_of,
    new_metric,
    new_model,
    new_phase,
    new_task,
    token_rows,
    weights_of,
)
from ulmfit_pipe.storage.atomic import CheckpointError
from ulmfit_pipe.training.distributed.agreement import DisagreementError
from ulmfit_pipe.training.distributed.norm_statistics import recompute_norm_statistics
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.loop import NonFiniteLossError, fit
from ulmfit_pipe.training.lr_finder import lr_find
from ulmfit_pipe.training.metrics import LanguageModelMetric
from ulmfit_pipe.training.objectives import ClassificationObjective, SequenceObjective
from ulmfit_pipe.training.phases import Plan, gradual_unfreezing, run_phases
from ulmfit_pipe.training.records import Task, TrainingOptions
from ulmfit_pipe.training.schedules import Schedule

ALL = (0, 1, 2, 3)
ORDERS = {  # what each phase trains: everything that a wrapper made once would get wrong
    "frozen then thawed": [(3,), ALL],
    "thawed then frozen": [ALL, (3,)],
    "one group after another": [(0,), (2,), (1,), ALL],
    "all throughout": [ALL, ALL],
}
CACHED_NORMS = [f"{kind}cached prefix under batch norm, seed {seed}" for seed in range(4) for kind in ("", "no ")]


def shares(accelerator: Accelerator) -> dict[str, int]:
    return {"rank": accelerator.process_index, "world_size": accelerator.num_processes}


def result_of(model: torch.nn.Module, history: Any) -> dict[str, Any]:
    return {
        "losses": [step.loss for step in history.steps],
        "lrs": [step.lrs for step in history.steps],
        "train_losses": [record.train_loss for record in history.epochs],
        "metrics": [record.metrics for record in history.epochs],
        "weights": weights_of(model),
    }


class RunningAgain(ToyClassifier):
    """A toy whose two hidden layers run again in the backward pass where it is asked for that."""

    gradient_checkpointing = False

    def forward(self, input_ids: torch.Tensor) -> ToyOutput:
        again = self.gradient_checkpointing and self.training
        hidden = self.embeddings(input_ids).mean(dim=1)
        for layer, activation in ((self.body, torch.tanh), (self.middle, torch.relu)):
            called = self._gradient_checkpointing_func(layer.__call__, hidden) if again else layer(hidden)
            hidden = activation(called)
        return ToyOutput(self.head(hidden))


def running_again(runs: list[int]) -> RunningAgain:
    """Return the toy with the weights of `new_model`; each training pass of its body adds to a list."""
    torch.manual_seed(0)
    model = RunningAgain()
    model.body.register_forward_pre_hook(lambda layer, _inputs: runs.append(1) if layer.training else None)
    return model


def gradual(
    accelerator: Accelerator, *, accumulation: int, weights: torch.Tensor | None = None, again: bool = False
) -> dict[str, Any]:
    """All phases of a gradual plan; batches of 4, 4 and 3 rows, of which the second process gets 2, 2 and 1."""
    runs: list[int] = []
    model = (running_again(runs) if again else new_model()).double()
    task = new_task(11, batch_size=4, valid=7, **shares(accelerator))
    task = Task(task.train_batches, ClassificationObjective(class_weights=weights), task.valid_batches, new_metric)
    plan = Plan(
        tuple(gradual_unfreezing(4, lr=1e-2, final_epochs=2, schedule=Schedule.one_cycle())), (*groups_of(model),)
    )
    options = TrainingOptions(accumulation_steps=accumulation, max_grad_norm=0.3, gradient_checkpointing=again)
    after_epochs: list[Any] = []

    def look(_record: Any) -> None:
        after_epochs.append(weights_of(model))

    history = run_phases(model, plan, task, accelerator=accelerator, options=options, on_epoch=look)
    return {**result_of(model, history), "after_epochs": after_epochs, "runs of the body": len(runs)}


def language_model(accelerator: Accelerator) -> dict[str, Any]:
    torch.manual_seed(0)
    model = ToyLanguageModel().double()
    batches = ToyBatches(token_rows(12), batch_size=4, **shares(accelerator))
    task = Task(batches, SequenceObjective(), batches, LanguageModelMetric)
    plan = Plan(tuple(gradual_unfreezing(2, lr=1e-2)), tuple(lm_groups_of(model)))
    history = run_phases(model, plan, task, accelerator=accelerator, options=TrainingOptions(accumulation_steps=2))
    return result_of(model, history)


def order(trained: list[tuple[int, ...]], *, find_unused: bool) -> dict[str, Any]:
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=find_unused)]
    accelerator = Accelerator(cpu=True, kwargs_handlers=handlers)
    model = new_model().double()
    phases = [new_phase(*groups, name=str(index)) for index, groups in enumerate(trained)]
    plan = Plan(tuple(phases), tuple(groups_of(model)))
    task = new_task(11, **shares(accelerator))
    return result_of(model, run_phases(model, plan, task, accelerator=accelerator, options=TrainingOptions()))


def thawed(accelerator: Accelerator, *, compile: bool) -> dict[str, Any]:
    """The head, then everything, in batches of one shape; compiled but for the making of code, which takes longer."""
    model = new_model().double()
    plan = Plan((new_phase(3, name="head"), new_phase(*ALL, name="all")), tuple(groups_of(model)))
    compile_module, graphs = torch.nn.Module.compile, []

    def note(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with mock.patch.object(torch.nn.Module, "compile", lambda module: compile_module(module, backend=note)):
        task, options = new_task(12, valid=0, **shares(accelerator)), TrainingOptions(compile=compile)
        history = run_phases(model, plan, task, accelerator=accelerator, options=options, keep_best=False)
    return {**result_of(model, history), "graphs": len(graphs)}


def sweep(accelerator: Accelerator) -> dict[str, Any]:
    model = new_model().double()
    before = weights_of(model)
    task = new_task(40, **shares(accelerator))
    settings: dict[str, Any] = {"start_lr": 1e-5, "end_lr": 1e3, "num_steps": 60}
    result = lr_find(model, groups_of(model), task, accelerator=accelerator, options=TrainingOptions(), **settings)
    unchanged = all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    return {"lrs": result.lrs, "losses": result.losses, "unchanged": unchanged}


def wrapped_once(accelerator: Accelerator, *, find_unused: bool) -> dict[str, torch.Tensor]:
    """What this package must not do: wrap a model with frozen layers, thaw them afterwards, take three steps."""
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=find_unused)]
    accelerator = Accelerator(cpu=True, kwargs_handlers=handlers)
    model = new_model()
    below_head = [parameter for name, parameter in model.named_parameters() if not name.startswith("head")]
    for parameter in below_head:
        parameter.requires_grad_(False)
    wrapped, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for parameter in below_head:
        parameter.requires_grad_(True)
    for batch in new_task(12, **shares(accelerator)).train_batches:
        optimizer.zero_grad()
        logits = wrapped(input_ids=batch["input_ids"]).logits
        accelerator.backward(torch.nn.functional.cross_entropy(logits, batch["labels"]))
        optimizer.step()
    return weights_of(model)


def batch_norm(
    accelerator: Accelerator, *, accumulation: int = 1, train_norm: bool = False, batch_size: int = 4
) -> dict[str, Any]:
    """Statistics over batches of 4, 4 and 2 rows; of three processes the last one gets none of the two rows."""
    model = new_model(norm="batch").double()
    task = new_task(10, batch_size=batch_size, **shares(accelerator))
    plan = Plan(tuple(gradual_unfreezing(4, lr=1e-2, final_epochs=2)), tuple(groups_of(model)), train_norm=train_norm)
    options = TrainingOptions(accumulation_steps=accumulation, train_norm=train_norm)
    return result_of(model, run_phases(model, plan, task, accelerator=accelerator, options=options))


def recomputed_statistics(accelerator: Accelerator) -> dict[str, torch.Tensor]:
    model = new_model(norm="batch").double()
    task = new_task(10, **shares(accelerator))
    recompute_norm_statistics(model, task.train_batches, task.objective, accelerator)
    return weights_of(model)


@dataclass
class RaggedOutput(ToyOutput):
    raw_mask: torch.Tensor | None = None


class RaggedToy(ToyClassifier):
    """Texts of unequal length: tokens from 9 on count as padding, but for the first."""

    def forward(self, input_ids: torch.Tensor) -> RaggedOutput:
        output = super().forward(input_ids)
        mask = input_ids < 9
        mask[:, 0] = True
        return RaggedOutput(output.logits, raw_output=self.embeddings(input_ids), raw_mask=mask)


def penalties(accelerator: Accelerator) -> dict[str, Any]:
    """AR and TAR are means over the real tokens of the global batch."""
    torch.manual_seed(0)
    model = RaggedToy().double()
    task = new_task(10, **shares(accelerator))
    task = Task(task.train_batches, ClassificationObjective(alpha=2.0, beta=1.0), task.valid_batches, new_metric)
    plan = Plan((new_phase(0, 1, 2, 3, epochs=3),), tuple(groups_of(model)))
    return result_of(model, run_phases(model, plan, task, accelerator=accelerator, options=TrainingOptions()))


def one_step_of_eight(accelerator: Accelerator, *, accumulation: int) -> dict[str, Any]:
    """Eight rows a step, at once or in micro-batches; the last step has three."""
    model = new_model().double()
    task = new_task(11, batch_size=8 // accumulation, **shares(accelerator))
    plan = Plan(tuple(gradual_unfreezing(4, lr=1e-2)), tuple(groups_of(model)))
    options = TrainingOptions(accumulation_steps=accumulation)
    return result_of(model, run_phases(model, plan, task, accelerator=accelerator, options=options))


def disagreement(accelerator: Accelerator, *, check: bool = True) -> str:
    """The last process changes a weight and a buffer behind the loop's back, after the last epoch of a phase."""
    model = new_model(norm="batch")
    task = new_task(8, **shares(accelerator))

    def nudge(_record: Any) -> None:
        if accelerator.process_index == 1:
            with torch.no_grad():
                model.middle[0].weight[2, 3] += 1e-6
                model.middle[1].running_mean += 1.0

    plan = Plan((new_phase(3, name="head"), new_phase(2, 3, name="two")), tuple(groups_of(model)))
    options = TrainingOptions(check_agreement=check)
    try:
        run_phases(model, plan, task, accelerator=accelerator, options=options, on_epoch=nudge, keep_best=False)
    except DisagreementError as error:
        return str(error)
    return "no one noticed"


def time_limit(accelerator: Accelerator) -> int:
    """Each process' clock has another time left; all must stop at the same step, or wait for one another for ever."""
    model = new_model()
    task = new_task(11, **shares(accelerator))
    plan = Plan((new_phase(3, name="head", epochs=300), new_phase(*ALL, name="all", epochs=300)), (*groups_of(model),))
    options = TrainingOptions(deadline=time.monotonic() + 0.4 + 0.4 * accelerator.process_index)
    history = run_phases(model, plan, task, accelerator=accelerator, options=options, keep_best=False)
    return len(history.steps)


def cached_prefix(
    accelerator: Accelerator, *, cache: bool, rows: int = 11, seed: int = 0, norm: str = "layer"
) -> dict[str, Any]:
    """Rows move between processes from epoch to epoch, so each process meets some late, at a time of its own."""
    model = new_model(norm=norm).double()
    task = new_task(rows, valid=7, **shares(accelerator))
    task.train_batches.seed = seed
    task.train_batches.fixed_rows = task.valid_batches.fixed_rows = True
    said: list[str] = []
    epochs, steps = fit(
        model,
        groups_of(model),
        new_phase(2, 3, epochs=4),
        task,
        accelerator=accelerator,
        options=TrainingOptions(cache_frozen=cache),
        say=said.append,
    )
    return {**result_of(model, SimpleNamespace(epochs=epochs, steps=steps)), "said": said}


def refusals(accelerator: Accelerator, folder: Path) -> dict[str, str]:
    """Errors that every process must raise, lest the others wait for ever."""
    found = {}
    model = new_model()
    groups = groups_of(model)
    task = new_task(8, **shares(accelerator))
    try:
        fit(model, groups, new_phase(), task, accelerator=accelerator, options=TrainingOptions())
    except ValueError as error:
        found["everything frozen"] = str(error)

    class NanHere(ClassificationObjective):
        def __call__(self, *args: Any) -> Any:
            output = super().__call__(*args)
            if accelerator.process_index == accelerator.num_processes - 1:
                output.loss_sum = output.loss_sum * torch.nan
            return output

    try:
        fit(
            model,
            groups,
            new_phase(3),
            Task(task.train_batches, NanHere()),
            accelerator=accelerator,
            options=TrainingOptions(),
        )
    except NonFiniteLossError as error:
        found["nan on one process"] = str(error)
    said: list[str] = []
    learner = Learner(model, groups, task, accelerator=accelerator, say=said.append)
    learner.freeze_to(0)
    (folder / "taken").mkdir(exist_ok=True)
    (folder / "taken" / "file").write_text("something else")
    try:
        learner.save(folder / "taken")
    except CheckpointError as error:
        found["save"] = str(error)
    learner.save(folder / "saved")
    found["said"] = str(len(said))
    return found


@mock.patch("accelerate.utils.memory.clear_device_cache", lambda **_options: None)  # slower than the toys
def everything(accelerator: Accelerator, folder: Path) -> dict[str, Any]:
    results: dict[str, Any] = {
        "gradual": gradual(accelerator, accumulation=1),
        "gradual, accumulated": gradual(accelerator, accumulation=2, weights=torch.tensor([0.5, 2.0, 1.0, 3.0])),
        "gradual, layers run again": gradual(accelerator, accumulation=1, again=True),
        "gradual, accumulated, layers run again": gradual(
            accelerator, accumulation=2, weights=torch.tensor([0.5, 2.0, 1.0, 3.0]), again=True
        ),
        "compiled": thawed(accelerator, compile=True),
        "not compiled": thawed(accelerator, compile=False),
        "language model": language_model(accelerator),
        "sweep": sweep(accelerator),
        "batch norm": batch_norm(accelerator),
        "batch norm, accumulated": batch_norm(accelerator, accumulation=2),
        "batch norm, larger batch": batch_norm(accelerator, batch_size=8),
        "batch norm of frozen groups": batch_norm(accelerator, train_norm=True),
        "recomputed statistics": recomputed_statistics(accelerator),
        "penalties": penalties(accelerator),
        "1 x 8": one_step_of_eight(accelerator, accumulation=1),
        "4 x 2": one_step_of_eight(accelerator, accumulation=4),
        "disagreement": disagreement(accelerator),
        "unchecked": disagreement(accelerator, check=False),
        "time limit": time_limit(accelerator),
        "cached prefix": cached_prefix(accelerator, cache=True),
        "no cached prefix": cached_prefix(accelerator, cache=False),
        **{
            name: cached_prefix(accelerator, cache=not name.startswith("no"), norm="batch", rows=24, seed=int(name[-1]))
            for name in CACHED_NORMS
        },
        "refusals": refusals(accelerator, folder),
    }
    for find_unused in (False, True):
        results[f"wrapped once, find_unused {find_unused}"] = wrapped_once(accelerator, find_unused=find_unused)
    for name, trained in ORDERS.items():
        for find_unused in (False, True):
            results[f"{name}, find_unused {find_unused}"] = order(trained, find_unused=find_unused)
    return results
