"""Runs of the training core with weights in pieces, whose results must be those of whole ones.

training/distributed/test_sharding.py runs them in one process and in two.
"""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from tests.support.processes.two_process_runs import ORDERS, result_of, running_again, shares
from tests.support.toy_models import (
    ToyBatches,
    ToyLanguageModel,
    groups_of,
    lm_groups_of,
    new_model,
    new_phase,
    new_task,
    token_rows,
)
from ulmfit_pipe.training.compute.accelerator_checks import UnsupportedAcceleratorError
from ulmfit_pipe.training.distributed.agreement import DisagreementError
from ulmfit_pipe.training.loop import fit
from ulmfit_pipe.training.lr_finder import lr_find
from ulmfit_pipe.training.metrics import LanguageModelMetric
from ulmfit_pipe.training.objectives import ClassificationObjective, SequenceObjective
from ulmfit_pipe.training.phases import Plan, gradual_unfreezing, run_phases
from ulmfit_pipe.training.records import Task, TrainingOptions
from ulmfit_pipe.training.schedules import Schedule

SHARDED = {"shard": True, "max_grad_norm": 0.3}


class Looking(ClassificationObjective):
    """Notes how much of the weights a process holds while a layer group above them runs."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: set[str] = set()
        self.held: set[int] = set()

    def __call__(self, model: torch.nn.Module, *args: Any) -> Any:
        for _, parameter in model.named_parameters():
            self.kinds.add("in pieces" if isinstance(parameter, DTensor) else "whole")
        if model.training:
            self.held.add(sum(p.to_local().numel() for p in model.parameters() if isinstance(p, DTensor)))
        return super().__call__(model, *args)


def phases_of(model: torch.nn.Module) -> list[Any]:
    return gradual_unfreezing(4, lr=1e-2, final_epochs=2, schedule=Schedule.one_cycle())


def gradual(accelerator: Accelerator, *, norm: str = "layer", again: bool = False, **options: Any) -> dict[str, Any]:
    """All phases of a gradual plan, with the weights after each epoch; batches of 4, 4 and 3 rows."""
    runs: list[int] = []
    model = (running_again(runs) if again else new_model(norm=norm)).double()
    objective = Looking()
    task = new_task(11, batch_size=4, valid=7, **shares(accelerator))
    task = Task(task.train_batches, objective, task.valid_batches, task.new_metric)
    after_epochs: list[Any] = []
    history = run_phases(
        model,
        Plan(tuple(phases_of(model)), tuple(groups_of(model))),
        task,
        accelerator=accelerator,
        options=TrainingOptions(**{**SHARDED, "gradient_checkpointing": again, **options}),
        on_epoch=lambda _record: after_epochs.append({name: v.clone() for name, v in model.state_dict().items()}),
    )
    plain = all(type(parameter) is torch.nn.Parameter for parameter in model.parameters())
    seen = {
        "kinds": sorted(objective.kinds),
        "held": sorted(objective.held),
        "plain afterwards": plain,
        "runs of the body": len(runs),
    }
    return {**result_of(model, history), "after_epochs": after_epochs, **seen}


def language_model(accelerator: Accelerator) -> dict[str, Any]:
    """A tied weight and carried state."""
    torch.manual_seed(0)
    model = ToyLanguageModel().double()
    batches = ToyBatches(token_rows(12), batch_size=4, **shares(accelerator))
    task = Task(batches, SequenceObjective(), batches, LanguageModelMetric)
    plan = Plan(tuple(gradual_unfreezing(2, lr=1e-2)), tuple(lm_groups_of(model)))
    options = TrainingOptions(**SHARDED, accumulation_steps=2)
    return result_of(model, run_phases(model, plan, task, accelerator=accelerator, options=options))


def order(accelerator: Accelerator, trained: list[tuple[int, ...]]) -> dict[str, Any]:
    model = new_model().double()
    phases = [new_phase(*groups, name=str(index)) for index, groups in enumerate(trained)]
    task = new_task(11, **shares(accelerator))
    plan = Plan(tuple(phases), tuple(groups_of(model)))
    return result_of(model, run_phases(model, plan, task, accelerator=accelerator, options=TrainingOptions(**SHARDED)))


def sweep(accelerator: Accelerator) -> dict[str, Any]:
    model = new_model().double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task = new_task(40, **shares(accelerator))
    options = TrainingOptions(shard=True)
    result = lr_find(model, groups_of(model), task, accelerator=accelerator, options=options, end_lr=1e3, num_steps=40)
    unchanged = all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    return {"lrs": result.lrs, "losses": result.losses, "unchanged": unchanged}


def gradient_norms(accelerator: Accelerator) -> list[dict[str, float]]:
    lines: list[dict[str, float]] = []
    nothing = SimpleNamespace(start=lambda **_: None, finish=lambda: None)
    tracker = SimpleNamespace(log=lambda values, step: lines.append(values), **vars(nothing))
    model = new_model().double()
    task = new_task(11, **shares(accelerator))
    options = TrainingOptions(shard=True, trackers=(tracker,), log_every=1)
    plan = Plan((new_phase(2, 3),), tuple(groups_of(model)))
    run_phases(model, plan, task, accelerator=accelerator, options=options)
    return [{name: v for name, v in line.items() if name.startswith("grad_norm")} for line in lines]


def refusals(accelerator: Accelerator) -> dict[str, str]:
    """What processes that part their weights must not be given."""
    found: dict[str, str] = {}
    task, phase = new_task(8, **shares(accelerator)), new_phase(2, 3, epochs=2)

    def attempt(name: str, model: torch.nn.Module, **options: Any) -> None:
        try:
            fit(
                model,
                groups_of(model),
                phase,
                task,
                accelerator=accelerator,
                options=TrainingOptions(shard=True, **options),
            )
        except (UnsupportedAcceleratorError, DisagreementError) as error:
            found[name] = str(error)

    attempt("compiled", new_model(), compile=True)
    uneven = new_model()
    uneven.body.runs_unevenly = True
    attempt("uneven", uneven)
    attempt("other weights", new_model(seed=accelerator.process_index))
    accelerator.state.fsdp_plugin = SimpleNamespace(cpu_ram_efficient_loading=True)
    attempt("empty weights", new_model())
    del accelerator.state.fsdp_plugin
    task.train_batches.fixed_rows = True
    said: list[str] = []
    model = new_model()
    options = TrainingOptions(shard=True, cache_frozen=True)
    fit(model, groups_of(model), phase, task, accelerator=accelerator, options=options, say=said.append)
    found["cached"] = said[0]
    return found


@mock.patch("accelerate.utils.memory.clear_device_cache", lambda **_options: None)  # slower than the toys
def everything(accelerator: Accelerator) -> dict[str, Any]:
    results: dict[str, Any] = {
        "gradual": gradual(accelerator),
        "gradual, accumulated": gradual(accelerator, accumulation_steps=2),
        "gradual, batch norm": gradual(accelerator, norm="batch"),
        "gradual, norms of frozen groups": gradual(accelerator, norm="batch", train_norm=True),
        "gradual, layers run again": gradual(accelerator, again=True),
        "gradual, accumulated, layers run again": gradual(accelerator, again=True, accumulation_steps=2),
        "language model": language_model(accelerator),
        "sweep": sweep(accelerator),
        "gradient norms": gradient_norms(accelerator),
        **{name: order(accelerator, trained) for name, trained in ORDERS.items()},
    }
    if accelerator.num_processes > 1:
        results["refusals"] = refusals(accelerator)
    return results
