"""Cells of a grid of measurements: each is one training and its test scores, written whole or not at all.

A cell that is finished with the same fingerprint (all that its result depends on) is not run again, so a grid that was
killed continues where it was. A lock file lets several processes share one folder: each takes the cells that nobody
is at. The system drops a lock when its process ends, however it ends.
"""

import hashlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ulmfit_pipe.console import print_line
from ulmfit_pipe.settings.choices import ALL_ROWS
from ulmfit_pipe.storage.atomic import CheckpointError, write_atomic
from ulmfit_pipe.storage.json_files import read_sealed, write_sealed
from ulmfit_pipe.storage.locks import held
from ulmfit_pipe.storage.versions import library_versions

FORMAT = 1
OWN_TO_A_CELL = ("seed", "rows")  # parts of a fingerprint that differ between seeds of one method


@dataclass(frozen=True)
class Cell:
    """One grid point.

    Attributes:
        method: What is trained.
        size: Labelled rows, 0 for all.
        seed: Seed of rows, weights, dropout and order.
        test_rows: Rows it is tested on.
    """

    method: str
    size: int
    seed: int
    test_rows: int

    @property
    def training(self) -> str:
        """Name of the training, whatever it is tested on."""
        return f"{self.method}_{'all' if self.size == ALL_ROWS else self.size}_seed{self.seed}"

    @property
    def name(self) -> str:
        """Name of the cell's files."""
        return f"{self.training}_test{self.test_rows}"

    def describe(self) -> str:
        """Return the cell in words."""
        labels = "all" if self.size == ALL_ROWS else f"{self.size:,}"
        return f"{self.method}, {labels} labels, seed {self.seed}, {self.test_rows:,} test rows"


@dataclass(frozen=True)
class Outcome:
    """What a cell measured.

    Attributes:
        probabilities: Float64 (test rows, labels).
        scores: ``accuracy``, ``error``, ``macro_f1``, ``n``.
        details: Whatever else is worth keeping: seconds, steps, plan.
    """

    probabilities: np.ndarray
    scores: dict[str, float]
    details: dict[str, Any]


class CellFolder:
    """Finished cells on disk: ``NAME.json`` and ``NAME.npy`` (the test probabilities).

    Args:
        path: The folder; made when first written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def run(
        self,
        cell: Cell,
        identity: dict[str, Any],
        work: Callable[[], Outcome],
        *,
        wait: bool = False,
        say: Callable[[str], None] = print_line,
    ) -> dict[str, Any] | None:
        """Return a cell's record: the finished one, or after doing its work.

        Args:
            cell: The cell.
            identity: Fingerprint: all that its result depends on, as JSON values.
            work: Trains and tests.
            wait: Where another process is at it, wait for its result instead of leaving it out.
            say: Receives log lines on what is done.

        Returns:
            The record, or None where another process is at it.
        """
        done = self.finished(cell, identity)
        if done is not None:
            return done
        with held(self.path / f".{cell.training}.lock", wait=wait, say=say) as mine:
            if not mine:
                say(f"{cell.describe()}: another process is at it, left to it")
                return None
            done = self.finished(cell, identity)
            if done is not None:
                return done
            outcome = work()
            record = self.write(cell, identity, outcome)
        say(f"{cell.describe()}: error {100 * outcome.scores['error']:.2f} %")
        return record

    def finished(self, cell: Cell, identity: dict[str, Any]) -> dict[str, Any] | None:
        """Return the record of a cell that is complete and has this fingerprint, or None."""
        record = _read_whole(self.path / f"{cell.name}.json")
        return record if record is not None and record["identity"] == _as_json(identity) else None

    def probabilities(self, cell: Cell) -> np.ndarray:
        """Return a finished cell's test probabilities, float64 (test rows, labels)."""
        return np.load(self.path / f"{cell.name}.npy", allow_pickle=False)

    def write(self, cell: Cell, identity: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
        """Write a cell, its record last, and return the record."""
        content = io.BytesIO()
        np.save(content, outcome.probabilities, allow_pickle=False)
        write_atomic(self.path / f"{cell.name}.npy", content.getvalue())
        record = {
            "format": FORMAT,
            "cell": asdict(cell),
            **outcome.scores,
            **outcome.details,
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "finished": time.time(),
            "versions": library_versions(),
            "probabilities": hashlib.sha256(content.getvalue()).hexdigest(),
            "recipe": recipe_of(identity),
            "identity": identity,
        }
        write_sealed(self.path / f"{cell.name}.json", record)
        return record

    def records(self) -> list[dict[str, Any]]:
        """Return the records of all whole cells, by method, size and seed."""
        found = [_read_whole(file) for file in sorted(self.path.glob("*.json"))]
        whole = [record for record in found if record is not None]
        return sorted(whole, key=lambda record: tuple(record["cell"].values()))


def recipe_of(identity: dict[str, Any]) -> str:
    """Return a short digest of what the cells of one method and size share over the seeds."""
    return short_digest({name: value for name, value in identity.items() if name not in OWN_TO_A_CELL})


def short_digest(record: dict[str, Any]) -> str:
    """Return a record's fingerprint in twelve characters."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]


def _as_json(identity: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(identity))


def _read_whole(file: Path) -> dict[str, Any] | None:
    """Return a record whose probabilities are beside it as they were written, or None."""
    try:
        record = read_sealed(file)
        content = file.with_suffix(".npy").read_bytes()
    except (CheckpointError, OSError):
        return None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return None
    return record if record["probabilities"] == hashlib.sha256(content).hexdigest() else None
