"""Both stages of a tiny run, killed by SIGKILL at chosen moments and resumed, each time in a process of its own.

    forked(folder, [["language_model", "step", 3], ...])                       forks a process for every moment
    torchrun ... killed_runs.py FOLDER '["classifier", "save", 4, 1]'          one start, killed at one moment

A moment is a stage, a kind and a number: before the n-th step; in the save after the n-th step, at its m-th file; at
the renaming of that checkpoint (before or after it); in the validation of the n-th epoch; at the start of the n-th
phase; in the writing of the stage's own folder. A step may be a share of all steps. Or it is a time after the process
began, whatever it does then, as a share of the seconds a run without a kill took: ["any", "clock", 0.2]. See
text/test_killed_runs.py.
"""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from tests.support.tiny_runs import TINY_LM, reviews, table
from ulmfit_pipe.settings.text import ClassifierSettings, LanguageModelSettings
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.storage import atomic
from ulmfit_pipe.text.classifier import train_classifier
from ulmfit_pipe.text.language_model import train_language_model
from ulmfit_pipe.training import loop, phases
from ulmfit_pipe.training.resume import checkpoint_store

PRETRAINING = LanguageModelSettings(**TINY_LM, epochs=1, batch_size=4)
FINE_TUNING = LanguageModelSettings(epochs=2, frozen_epochs=1, batch_size=4, bptt=22)
CLASSIFIER = ClassifierSettings(epochs_per_phase=1, final_epochs=2, batch_size=8)
STAGES = ("language_model", "classifier")


def context_of(**settings: Any) -> RunContext:
    return RunContext(say=lambda line: print(line, flush=True), log_every=1, **settings)


def prepare(folder: Path) -> None:
    """Make the pretrained language model that the killed stages start from."""
    rows = table(reviews(60, seed=1)).select_columns(["text"])
    small = table(reviews(20, seed=2)).select_columns(["text"])
    train_language_model(rows, small, output_dir=folder / "base", settings=PRETRAINING, context=context_of())


def run(folder: Path, *, base: Path, seconds: float | None = 0.0) -> None:
    """Run both stages, or go on with them; a checkpoint after every step unless told otherwise."""
    train, validation = table(reviews(64, seed=3)), table(reviews(18, seed=4))
    context = context_of(resume=seconds is not None, checkpoint_seconds=seconds)
    texts = [part.select_columns(["text"]) for part in (train, validation)]
    train_language_model(*texts, output_dir=folder / STAGES[0], model=str(base), settings=FINE_TUNING, context=context)
    train_classifier(
        train,
        validation,
        model=str(folder / STAGES[0]),
        output_dir=folder / STAGES[1],
        settings=CLASSIFIER,
        context=context,
    )


class Moment:
    """Kills this very process at one moment of one stage."""

    def __init__(self, stage: str, kind: str, number: float, part: int = 0) -> None:
        self.stage, self.kind, self.number, self.part = stage, kind, number, part
        self.now = ""
        self.saving, self.files = -1, 0

    def reached(self, kind: str, number: int, part: int = 0) -> None:
        if (self.now, kind, number, part) == (self.stage, self.kind, self.number, self.part):
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """Put this object's eyes into the loop and into whatever writes, or set the clock."""
        if self.kind == "clock":
            clock = threading.Timer(self.number, os.kill, (os.getpid(), signal.SIGKILL))
            clock.daemon = True
            clock.start()
        self._watch_training()
        self._watch_saving()

    def _watch_training(self) -> None:
        open_keeper, train_step, fit, evaluate = phases._checkpoint_manager, loop.train_step, phases.fit, loop.evaluate

        def keeper_of(model: Any, plan: Any, judge: Any, accelerator: Any, options: Any, *rest: Any) -> Any:
            self.now = options.checkpoints.folder.name.strip(".").removesuffix(".progress")
            self.plan, self.judge = plan, judge
            return open_keeper(model, plan, judge, accelerator, options, *rest)

        def step(run: Any, *args: Any) -> Any:
            self.reached("step", len(self.judge.history.steps) + len(run.steps))
            return train_step(run, *args)

        def phase(model: Any, groups: Any, one: Any, *args: Any, **options: Any) -> Any:
            self.reached("phase", self.plan.phases.index(one))
            return fit(model, groups, one, *args, **options)

        def validation(*args: Any) -> Any:
            self.reached("validation", len(self.judge.history.epochs))
            return evaluate(*args)

        phases._checkpoint_manager, loop.train_step, phases.fit, loop.evaluate = keeper_of, step, phase, validation

    def _watch_saving(self) -> None:
        write, rename = checkpoint_store.write_checkpoint, Path.rename

        def write_checkpoint(path: Path, *args: Any, **options: Any) -> None:
            self.saving, self.files = int(path.name.removeprefix("step-")), 0
            write(path, *args, **options)
            self.saving = -1

        def sync(path: Path) -> None:  # a killed process loses nothing that the system has taken
            if self.saving >= 0:
                self.files += 1
                if path.suffix == ".safetensors" and self._is_next():
                    path.write_bytes(path.read_bytes()[:-5])
                self.reached("save", self.saving, self.files)
            elif self.now:
                self.reached("folder", 0)

        def renamed(path: Path, target: Path) -> Path:
            self.reached("rename", self.saving, 0)
            new = rename(path, target)
            self.reached("rename", self.saving, 1)
            return new

        checkpoint_store.write_checkpoint, atomic._sync, Path.rename = write_checkpoint, sync, renamed

    def _is_next(self) -> bool:
        return (self.now, "save", self.saving, self.files) == (self.stage, self.kind, self.number, self.part)


def counted(folder: Path, moment: list[Any]) -> list[Any]:
    """Return a moment with its share of a stage's steps, or of the time, as a number, after the run without a kill."""
    stage, kind, number, *rest = moment
    if kind == "clock":
        number *= float((folder / "seconds").read_text())
    elif isinstance(number, float):
        epochs = json.loads((folder / "whole" / stage / "stage.json").read_text())["epochs"]
        number = int(number * sum({epoch["phase"]: epoch["step"] for epoch in epochs}.values()))
    return [stage, kind, number, *rest]


def in_a_process_of_its_own(work: Any) -> int:
    """Fork, do the work in the child, and return how it ended: 0, or minus the signal's number."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            work()
            sys.stdout.flush()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def forked(folder: Path, moments: list[list[Any]]) -> list[int]:
    """Run without a kill, and again with one at every moment; return how each process ended."""
    ends = [in_a_process_of_its_own(lambda: prepare(folder))]
    began = time.perf_counter()
    ends.append(in_a_process_of_its_own(lambda: run(folder / "whole", base=folder / "base", seconds=None)))
    (folder / "seconds").write_text(str(time.perf_counter() - began))

    def leg(moment: list[Any]) -> None:
        Moment(*counted(folder, moment)).watch()
        run(folder / "killed", base=folder / "base")

    ends += [in_a_process_of_its_own(lambda moment=moment: leg(moment)) for moment in moments]
    return [*ends, in_a_process_of_its_own(lambda: leg(["none", "", 0]))]


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, chosen = Path(sys.argv[1]), sys.argv[2]
    if chosen == "prepare":
        prepare(target)
    elif chosen == "whole":
        run(target / "whole", base=target / "base", seconds=None)
    else:
        *place, rank = counted(target, json.loads(chosen))
        if rank == int(os.environ["RANK"]):
            Moment(*place).watch()
        else:
            Moment("none", "", 0).watch()
        run(target / "killed", base=target / "base")
        Accelerator().end_training()
