"""The trackers that Accelerate knows (TensorBoard, Weights & Biases, MLflow, ...) behind this package's `Tracker`.

Accelerate leaves out a tracker that is not installed, and logs it in a debug message; here it is refused.
"""

import difflib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

NONE, ALL = "none", "all"
PROJECT = "ulmfit_pipe"  # name of the project where a tracker has projects and the user has named none
PROJECT_VARIABLES = {"wandb": "WANDB_PROJECT", "comet_ml": "COMET_PROJECT_NAME", "trackio": "TRACKIO_PROJECT"}
RUN_ARGUMENTS = {  # what each library calls a run's name
    "clearml": "task_name",
    "mlflow": "run_name",
    "swanlab": "experiment_name",
    "trackio": "name",
    "wandb": "name",
}


def installed_trackers() -> list[str]:
    """Return the names of the trackers that can be used here."""
    built_in = {str(one) for one in get_available_trackers()}
    others = set(LOGGER_TYPE_TO_CLASS) - set(_library_trackers())  # registered by the user with accelerate
    return sorted(built_in | others)


def _library_trackers() -> list[str]:
    return [name for name, kind in LOGGER_TYPE_TO_CLASS.items() if kind.__module__ == GeneralTracker.__module__]


def check_report_to(names: Sequence[str]) -> tuple[str, ...]:
    """Return the trackers that a list of names means: none, some, or ``all`` that are installed.

    Raises:
        ValueError: A name is not a tracker, is not installed, or ``none`` is combined with others.
    """
    if isinstance(names, str):
        raise ValueError(f"report_to must be a list of names, got {names!r}; write [{names!r}]")
    asked = tuple(dict.fromkeys(names))
    if NONE in asked:
        if len(asked) > 1:
            raise ValueError(f"report_to {NONE!r} cannot be combined with others, got {', '.join(asked)}; leave it out")
        return ()
    here = installed_trackers()
    for name in asked:
        _check_tracker(name, here)
    chosen = [*here, *asked] if ALL in asked else asked
    return tuple(name for name in dict.fromkeys(chosen) if name != ALL)


def _check_tracker(name: str, here: Sequence[str]) -> None:
    shown = f"installed here: {', '.join(here) or 'none'} (log.jsonl is written without any)"
    if name == ALL and not here:
        raise ValueError(f"report_to 'all' finds no tracker; {shown}; pip install tensorboard")
    if name == ALL or name in here:
        return
    known = sorted({*_library_trackers(), *here})
    if name not in known:
        close = difflib.get_close_matches(str(name), [*known, ALL, NONE], n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"report_to {name!r} is not a tracker; {hint}There are {', '.join(known)}, {ALL}, {NONE}; {shown}"
        )
    raise ValueError(f"report_to {name!r} is not installed; pip install {name}; {shown}")


class AccelerateTrackers:
    """A tracker that passes the metrics to trackers of Accelerate, as one run of each.

    Metrics that are NaN or infinite are left out, since not every library takes them. A run that is resumed hides
    what TensorBoard has of the steps after the checkpoint; the others get a run of its own for every start, unless
    their own environment variables name the run to continue (``WANDB_RUN_ID`` and ``WANDB_RESUME``, ...).

    Args:
        names: Names as `check_report_to` takes them.
        folder: What is kept in files is below it, in ``tensorboard/RUN`` for example.
        run: The run's name.
        config: Plain numbers and names to show beside the run, such as its settings.

    Raises:
        ValueError: A name is not a tracker, or is not installed.
    """

    def __init__(
        self, names: Sequence[str], *, folder: Path | str, run: str, config: Mapping[str, Any] | None = None
    ) -> None:
        self.names, self.folder, self.run = check_report_to(names), Path(folder), run
        self.config = dict(config or {})
        self._open: list[GeneralTracker] = []

    def start(self, *, step: int, epochs: int) -> None:
        """Begin a run of every tracker."""
        self.finish()
        for name in self.names:
            tracker = self._new(name, step)
            tracker.start()
            self._open.append(tracker)
            if self.config and step == 0:
                tracker.store_init_configuration(self.config)

    def _new(self, name: str, step: int) -> GeneralTracker:
        kind = LOGGER_TYPE_TO_CLASS[name]
        project = os.environ.get(PROJECT_VARIABLES.get(name, ""), "") or PROJECT
        options: dict[str, Any] = {RUN_ARGUMENTS[name]: self.run} if name in RUN_ARGUMENTS else {}
        if name == "dvclive":
            options = {"dir": str(self.folder / name / self.run)}
        if not kind.requires_logging_directory:
            return kind(project, **options)
        if name == "tensorboard":
            options = {"purge_step": step}
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return kind(self.run, str(folder), **options)

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        """Hand on what is finite."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        for tracker in self._open:
            tracker.log(finite, step=step)

    def finish(self) -> None:
        """End the runs that have begun."""
        trackers, self._open = self._open, []
        for tracker in trackers:
            tracker.finish()
