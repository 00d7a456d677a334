"""Small models and loaders on which the training core is tested; sizes all differ, so that no axis hides another."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ulmfit_pipe.training.layer_groups import LayerGroup, split_layer_groups
from ulmfit_pipe.training.metrics import ClassificationMetric
from ulmfit_pipe.training.objectives import ClassificationObjective
from ulmfit_pipe.training.optim import spread_lrs
from ulmfit_pipe.training.records import Phase, Task
from ulmfit_pipe.training.schedules import Schedule

VOCAB, SEQ_LEN, EMBEDDING, HIDDEN, CLASSES = 13, 3, 5, 7, 4
NAMES = ["embeddings", "body", "middle", "head"]


@dataclass
class ToyOutput:
    """A dataclass, as data parallelism looks for tensors in those."""

    logits: Tensor
    hidden_state: Any = None
    raw_output: Tensor | None = None
    dropped_output: Tensor | None = None


class ToyClassifier(nn.Module):
    """Embedding, two hidden layers with norms, a head; the mean over the text is classified."""

    def __init__(self, *, norm: str = "layer", dropout: float = 0.0) -> None:
        super().__init__()
        kinds = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d, "none": lambda _width: nn.Identity()}
        self.embeddings = nn.Embedding(VOCAB, EMBEDDING)
        self.body = nn.Sequential(nn.Linear(EMBEDDING, HIDDEN), kinds[norm](HIDDEN), nn.Dropout(dropout))
        self.middle = nn.Sequential(nn.Linear(HIDDEN, HIDDEN - 1), kinds[norm](HIDDEN - 1), nn.Dropout(dropout))
        self.head = nn.Linear(HIDDEN - 1, CLASSES)

    def forward(self, input_ids: Tensor) -> ToyOutput:
        pooled = self.embeddings(input_ids).mean(dim=1)  # (batch, embedding)
        return ToyOutput(self.head(torch.relu(self.middle(torch.tanh(self.body(pooled))))))


class ToyLanguageModel(nn.Module):
    """Tied embedding, one LSTM, a decoder; state goes in and comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(VOCAB, EMBEDDING)
        self.lstm = nn.LSTM(EMBEDDING, EMBEDDING, batch_first=True)
        self.lm_head = nn.Linear(EMBEDDING, VOCAB)
        self.lm_head.weight = self.embeddings.weight

    def forward(self, input_ids: Tensor, hidden_state: Any = None) -> ToyOutput:
        raw, state = self.lstm(self.embeddings(input_ids), hidden_state)
        return ToyOutput(self.lm_head(raw), hidden_state=state, raw_output=raw, dropped_output=raw)


class Filler(dict):
    """A row in place of an empty share."""

    filler = True


class ToyBatches:
    """Rows in batches, in an order that (seed, epoch) decides; rank r takes rows r, r + N, ... of each batch."""

    def __init__(
        self, rows: dict[str, Tensor], *, batch_size: int = 4, seed: int | None = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.rows = rows
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        total = len(next(iter(self.rows.values())))
        if self.seed is None:
            self.order = torch.arange(total)
        else:
            self.order = torch.randperm(total, generator=torch.Generator().manual_seed(1000 * self.seed + epoch))

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for number in range(len(self)):
            chosen = self.order[number * self.batch_size : (number + 1) * self.batch_size]
            mine = chosen[self.rank :: self.world_size]
            kind = dict if len(mine) else Filler
            yield kind((key, value[mine if len(mine) else chosen[:1]]) for key, value in self.rows.items())


def text_rows(count: int, *, seed: int = 1) -> dict[str, Tensor]:
    """Texts whose label can be learnt: it is the first token modulo the number of classes."""
    ids = torch.randint(VOCAB, (count, SEQ_LEN), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "labels": ids[:, 0] % CLASSES, "row": torch.arange(count)}


def token_rows(count: int, *, seed: int = 2) -> dict[str, Tensor]:
    ids = torch.randint(VOCAB, (count, SEQ_LEN + 1), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids[:, :-1].clone(), "targets": ids[:, 1:].clone()}


def new_model(*, seed: int = 0, **options: Any) -> ToyClassifier:
    torch.manual_seed(seed)
    return ToyClassifier(**options)


def groups_of(model: nn.Module) -> list[LayerGroup]:
    return split_layer_groups(model, [[name] for name in NAMES])


def lm_groups_of(model: nn.Module) -> list[LayerGroup]:
    return split_layer_groups(model, [["lstm"], ["embeddings", "lm_head"]], names=["lstm", "embeddings"])


def new_metric() -> ClassificationMetric:
    return ClassificationMetric(CLASSES)


def new_task(count: int = 10, *, batch_size: int = 4, valid: int = 6, **sharding: int) -> Task:
    return Task(
        ToyBatches(text_rows(count), batch_size=batch_size, **sharding),
        ClassificationObjective(),
        ToyBatches(text_rows(valid, seed=5), batch_size=batch_size, seed=None, **sharding) if valid else None,
        new_metric,
    )


def new_phase(
    *trainable: int, lr: Any = 1e-2, name: str = "some", schedule: Schedule | None = None, **options: Any
) -> Phase:
    schedule = schedule or Schedule.constant()
    return Phase(name, trainable, tuple(spread_lrs(lr, NAMES)), schedule, **options)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> list[str]:
    """Names whose tensors are bit-identical."""
    return [name for name in first if torch.equal(first[name], second[name])]
