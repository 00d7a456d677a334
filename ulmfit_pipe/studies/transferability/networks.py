"""One network of the experiment: layer groups 1..n copied or at random, frozen or unfrozen, the others new.

The curves of Yosinski et al. 2014, figure 2; task B is the one that is trained and tested on:

baseB    an ordinary network, all of it trained on task B
BnB      groups 1..n copied from baseB and frozen, the others new, trained on B
BnB+     the same, and the copied groups are unfrozen
AnB      groups 1..n copied from a network trained on task A and frozen, the others new, trained on B
AnB+     the same, and the copied groups are unfrozen
random   groups 1..n at random and frozen, the others new, trained on B
new      n = 0, where the five meet: nothing copied and nothing frozen
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ulmfit_pipe.data.tables.row_sources import TableReading
from ulmfit_pipe.images.classifier import build_image_learner
from ulmfit_pipe.settings.choices import ALL_ROWS
from ulmfit_pipe.settings.images import AugmentationSettings, ImageClassifierSettings
from ulmfit_pipe.settings.studies import TransferabilitySettings
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.artifacts import model_identity, model_type_of
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.stages.presets import AWD_LSTM
from ulmfit_pipe.storage.atomic import write_atomic
from ulmfit_pipe.studies.grid.cells import Cell, CellFolder, Outcome, short_digest
from ulmfit_pipe.studies.grid.training import outcome_of, total_epochs
from ulmfit_pipe.studies.transferability.tasks import HalfTask
from ulmfit_pipe.text.classifier import build_classifier_learner
from ulmfit_pipe.training.distributed.norm_statistics import recompute_norm_statistics
from ulmfit_pipe.training.distributed.processes import to_device
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.records import Batches, Phase
from ulmfit_pipe.training.schedules import Schedule

CURVES = ("BnB", "BnB+", "AnB", "AnB+", "random")  # as the paper has them
BASE_A, BASE_B, NEW = "baseA", "baseB", "new"
DONORS = {"BnB": BASE_B, "BnB+": BASE_B, "AnB": BASE_A, "AnB+": BASE_A}  # where a curve's layers come from
UNFROZEN = ("BnB+", "AnB+")
NEW_START = 10_000  # added to the seed: the new layers on top of a copy do not start where those of its base did
SMALL_SIDE = 32  # pixels of an image for the small ResNet, which reduces it four times before its first stage
IMAGE_LR, LSTM_LR, TRANSFORMER_LR = 4e-3, 5e-3, 3e-4  # of all groups alike, as they are trained from random weights
PLACES = ("output_dir", "train_file", "test_file", "train_images", "test_images")  # count by what they hold
READ_BY = tuple(field.name for field in dataclasses.fields(TableReading))  # the same for what is read by them
UNCOUNTED = (*PLACES, *READ_BY, "seeds", "layers", "title", "progress", "mixed_precision")


@dataclass(frozen=True)
class Network:
    """One network to train.

    Attributes:
        curve: One of `CURVES`, `BASE_A`, `BASE_B` or `NEW`.
        n: Layer groups below the first new one; 0 for a base and for `NEW`.
    """

    curve: str
    n: int = 0

    @property
    def method(self) -> str:
        """What it is called in the grid of cells."""
        return f"{self.curve}-n{self.n}" if self.curve in CURVES else self.curve


def networks_of(layers: Sequence[int]) -> Iterator[Network]:
    """Yield the networks of one seed: the two bases, n = 0, and every curve at every n."""
    yield from (Network(BASE_B), Network(BASE_A), Network(NEW))
    yield from (Network(curve, n) for n in layers for curve in CURVES)


@dataclass(frozen=True)
class SeedOfNetworks:
    """All networks of one seed: their tasks, and where they are kept.

    Attributes:
        settings: Settings of the experiment.
        a: Task A.
        b: Task B.
        context: Environment; its seed is that of the networks.
        test_rows: Rows of the whole test table, by which cells are named.
    """

    settings: "TransferabilitySettings"
    a: HalfTask
    b: HalfTask
    context: RunContext
    test_rows: int

    @cached_property
    def folder(self) -> CellFolder:
        """Return the folder of finished cells."""
        return CellFolder(Path(self.settings.output_dir) / "cells")

    def cell(self, network: Network) -> Cell:
        """Return a network's cell of the grid."""
        return Cell(network.method, ALL_ROWS, self.context.seed, self.test_rows)

    def identity(self, network: Network) -> dict[str, Any]:
        """Return all that a network's result depends on."""
        numbers = {name: value for name, value in dataclasses.asdict(self.settings).items() if name not in UNCOUNTED}
        parts = {"a": self.a.train, "b": self.b.train, "test of a": self.a.test, "test of b": self.b.test}
        return {
            "network": dataclasses.asdict(network),
            "settings": {**numbers, "lr": rate_of(self.settings)},
            "model": model_identity(self.settings.model, images=self.a.train.digests is not None),
            "mixed_precision": self.context.mixed_precision,
            "seed": self.context.seed,
            "rows": {name: part.digest() for name, part in parts.items()},
        }

    def run(self, network: Network, *, wait: bool = False) -> dict[str, Any] | None:
        """Train and test a network, or return its record if it is finished.

        Args:
            network: The network.
            wait: Wait for another process that is at it, instead of leaving it out.
        """
        cell, identity = self.cell(network), self._identities[network]
        done = self.folder.finished(cell, identity)
        if done is not None:
            return done
        name = f"seed {self.context.seed}, {network.method}"
        record = self.folder.run(cell, identity, lambda: self._trained(network), wait=wait, say=_say_nothing)
        if record is None:
            self.context.tell(f"{name}: another process is at it, left to it")
        else:
            shown = "task A" if network.curve == BASE_A else "task B"
            self.context.tell(f"{name}: accuracy {100 * record['accuracy']:.2f} % on {shown}")
        return record

    def drop_weights(self) -> None:
        """Remove the weights of the bases once nothing can ask for them any more."""
        networks = networks_of(self.settings.layers or ())
        if all(self.folder.finished(self.cell(one), self._identities[one]) is not None for one in networks):
            for base in (BASE_A, BASE_B):
                self._weights_file(Network(base)).unlink(missing_ok=True)

    @cached_property
    def _identities(self) -> dict[Network, dict[str, Any]]:
        shared = self.identity(Network(NEW))
        networks = networks_of(self.settings.layers or ())
        return {network: {**shared, "network": dataclasses.asdict(network)} for network in networks}

    def _trained(self, network: Network) -> Outcome:
        """Train a network and test it; a base leaves its weights behind."""
        started = time.perf_counter()
        is_base = network.curve in (BASE_A, BASE_B)
        task = self.a if network.curve == BASE_A else self.b
        donor = DONORS.get(network.curve)
        weights = None if donor is None else self._weights(Network(donor))  # before the seed is set: it may train
        start = self.context.seed + (0 if is_base else NEW_START)
        context = dataclasses.replace(self.context, seed=start, say=_say_nothing)
        context.start()
        learner = build_learner(self.settings, task, context, pretrained=is_base and self.settings.pretrained)
        tested: Any = learner.task.valid_batches  # they choose nothing, so no epoch is slowed by them
        learner.task = dataclasses.replace(learner.task, valid_batches=None, new_metric=None)
        if weights is not None:
            copy_groups(learner, weights, n=network.n)
        elif network.n:
            settle_norms(learner, n=network.n)
        phases = network_phases(len(learner.layer_groups), network, self.settings)
        history = learner.fit_plan(phases, keep_best=False)
        if is_base:
            state = {name: value.detach().cpu().clone() for name, value in learner.model.state_dict().items()}
            write_atomic(self._weights_file(network), save(state))
        details = {
            "curve": network.curve,
            "copied": network.n,
            "classes": task.names,
            "rows": len(task.train.table),
            "steps": len(history.steps),
            "epochs": total_epochs(phases),
            "train_loss": history.epochs[-1].train_loss,
            "seconds": round(time.perf_counter() - started, 2),
        }
        return outcome_of(_probabilities(learner, tested, labels=len(task.names)), task.test.table, details)

    def _weights(self, base: Network) -> Mapping[str, Tensor]:
        """Return the weights of a base, which is trained first if need be."""
        file = self._weights_file(base)
        if not file.is_file():
            cell = self.folder.path / f"{self.cell(base).name}.json"
            cell.unlink(missing_ok=True)  # of a base whose weights were dropped
            self.run(base, wait=True)
        return load_file(file)

    def _weights_file(self, base: Network) -> Path:
        name = f"{base.curve}_seed{self.context.seed}-{short_digest(self._identities[base])}.safetensors"
        return Path(self.settings.output_dir) / "bases" / name


def _say_nothing(_line: str) -> None:
    """Log only warnings: the plans and epochs of many networks would hide the rest."""


def rate_of(settings: "TransferabilitySettings") -> float:
    """Return the learning rate of all layer groups."""
    if settings.lr is not None:
        return settings.lr
    if settings.on_images:
        return IMAGE_LR
    return LSTM_LR if model_type_of(str(settings.model)) == AWD_LSTM else TRANSFORMER_LR


def build_learner(
    settings: "TransferabilitySettings", task: HalfTask, context: RunContext, *, pretrained: bool
) -> Learner:
    """Return a learner of one task, with the test rows as its validation data; nothing is trained.

    Args:
        settings: Settings of the experiment.
        task: The task.
        context: Its seed is that of the random weights.
        pretrained: Start from the model's weights; false takes its architecture with random ones.
    """
    if settings.on_images:
        numbers = ImageClassifierSettings(
            keep="last",
            lr=rate_of(settings),
            batch_size=settings.batch_size,
            train_norm=False,
            pretrained=pretrained,
            image_size=settings.image_size or (SMALL_SIDE if settings.model is None else None),
            layer_groups="stages",
            cache_frozen=True,
            head=settings.head,
            augmentation=AugmentationSettings(off=True),
            backbone=settings.backbone,
        )
        parts: Any = build_image_learner(
            task.train.scan(), task.test.scan(), model=settings.model, settings=numbers, context=context
        )
        return parts.learner
    text_numbers = ClassifierSettings(
        keep="last",
        batch_size=settings.batch_size,
        max_length=settings.max_length,
        train_norm=False,
        from_scratch=not pretrained,
        block_groups=settings.block_groups,
    )
    parts = build_classifier_learner(
        task.train.table, task.test.table, model=str(settings.model), settings=text_numbers, context=context
    )
    return parts.learner


def network_phases(num_groups: int, network: Network, settings: "TransferabilitySettings") -> list[Phase]:
    """Return two phases, the same for all networks but for what trains: the copied groups are frozen, or unfrozen.

    In the first they are frozen in every curve, so that a curve and its unfrozen one differ in one thing only.

    Args:
        num_groups: Layer groups of the network.
        network: The network.
        settings: Epochs and learning rate.
    """
    new = tuple(range(network.n, num_groups))
    rates = (rate_of(settings),) * num_groups
    last = tuple(range(num_groups)) if network.curve in UNFROZEN else new
    first, then = settings.frozen_epochs or 0, settings.final_epochs or 1  # the settings have both by now
    curve = Schedule.one_cycle()
    phases = [Phase("all" if len(last) == num_groups else "on", last, rates, curve, epochs=then)]
    if first:
        phases.insert(0, Phase("new", new, rates, curve, epochs=first))
    return phases


def copy_groups(learner: Learner, weights: Mapping[str, Tensor], *, n: int) -> None:
    """Put the weights and running statistics of another network into the first n layer groups.

    Raises:
        ValueError: The other network lacks one of them.
    """
    model = learner.model
    names = [name for name in model.state_dict() if _lies_in(name, learner, n=n)]
    missing = [name for name in names if name not in weights]
    if missing:
        raise ValueError(f"the base network has no {missing[0]}, so it is another architecture; remove its folder")
    model.load_state_dict({name: weights[name] for name in names}, strict=False)


def settle_norms(learner: Learner, *, n: int) -> None:
    """Set the batch norms of the first n groups, which are random and stay so, to the training data's statistics.

    Without them a frozen random network would pass on activations of no usable scale, and lose by that alone.
    """
    model = learner.model
    before = {name: value.clone() for name, value in model.named_buffers()}
    recompute_norm_statistics(model, learner.task.train_batches, learner.task.objective, learner.accelerator)
    with torch.no_grad():
        for name, value in model.named_buffers():
            if not _lies_in(name, learner, n=n):
                value.copy_(before[name])


def _lies_in(name: str, learner: Learner, *, n: int) -> bool:
    prefixes = [prefix for group in learner.layer_groups[:n] for prefix in group.prefixes]
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


@torch.no_grad()
def _probabilities(learner: Learner, batches: Batches, *, labels: int) -> np.ndarray:
    """Return the probabilities of all rows of some batches, float64 (rows, labels), in the table's order."""
    model: Any = learner.model.to(learner.accelerator.device).eval()
    found: dict[int, np.ndarray] = {}
    for batch in batches:
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "row")}
        with learner.accelerator.autocast():
            logits = model(**to_device(inputs, learner.accelerator)).logits
        values = logits.float().cpu().double().softmax(dim=-1).numpy()
        found.update(zip(batch["row"].tolist(), values, strict=True))
    return np.stack([found[row] for row in sorted(found)]).reshape(-1, labels)
