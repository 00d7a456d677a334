"""Predictions in parts by processes of their own: several at once, and some that are killed.

See text/predict/test_shards_several_processes.py and text/predict/test_shards_killed.py.
"""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from tests.support.tiny_runs import reviews
from ulmfit_pipe.settings.prediction import PredictFileSettings
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.text.predict.columns import PredictedColumns
from ulmfit_pipe.text.predict.files import predict_file
from ulmfit_pipe.text.predict.predictor import Predictor

TEXTS = [text for text, _ in reviews(11)]
SUFFIXES = [".csv", ".tsv", ".jsonl", ".parquet"]


def predict(folder: Path, inputs: list[str], output: str, **settings: Any) -> dict[str, Any]:
    """Predict files of a folder into another folder in it; parts of two rows."""
    said: list[str] = []
    numbers = PredictFileSettings(
        model=settings.pop("model", str(folder / "model")),
        input_file=[str(folder / name) for name in inputs],
        output_dir=str(folder / output),
        **{"part_rows": 2, **settings},
    )
    summary = predict_file(numbers, context=RunContext(say=said.append))
    return {"rows": summary.rows, "labels": summary.labels, "before": summary.done_before, "said": said}


# Several processes


def one_is_stuck(folder: Path, rank: int) -> dict[str, Any]:
    """All but the first process are stuck in their first part until the first one has made all others."""
    original = PredictedColumns.predict

    def stuck(*arguments: Any) -> Any:
        until = time.monotonic() + 60
        while len(list((folder / "stuck").glob("part-*.csv"))) < 11 - 1 and time.monotonic() < until:
            time.sleep(0.02)
        return original(*arguments)

    with mock.patch.object(PredictedColumns, "predict", stuck if rank else original):
        return predict(folder, ["in.csv"], "stuck", part_rows=1)


def refused(run: Callable[[], Any]) -> str:
    try:
        run()
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def of_several_processes(folder: Path) -> dict[str, Any]:
    """What one process of several finds."""
    accelerator = RunContext().accelerator
    rank = accelerator.process_index
    results: dict[str, Any] = {"world_size": accelerator.num_processes}
    for suffix in SUFFIXES:
        output = {"output_file": str(folder / f"joined{suffix}")}
        results[suffix] = predict(folder, [f"in{suffix}"], f"parts{suffix}", **output)
    results["one row"] = predict(folder, ["one.csv"], "one_row")
    results["three files"] = predict(folder, ["in.jsonl", "one.jsonl", "in.jsonl"], "three_files")
    results["resumed"] = predict(folder, ["in.csv"], "half")
    results["one has no time"] = one_is_stuck(folder, rank)
    other = str(folder / ("other_model" if rank else "model"))
    results["other model"] = refused(lambda: predict(folder, ["in.csv"], "other", model=other))
    results["other settings"] = refused(lambda: predict(folder, ["in.csv"], f"other{rank}", chunk_rows=3 + rank))
    results["bad row"] = refused(
        lambda: predict(folder, ["bad.csv" if rank else "in.csv"], "bad_row", empty_text="error")
    )
    output = {"output_file": str(folder / "single.csv")}
    results["one file"] = refused(
        lambda: predict_file(PredictFileSettings(str(folder / "model"), [str(folder / "in.csv")], **output))
    )
    return results


# Killed


class Moments:
    """Kills this process with SIGKILL at the n-th moment before or after something that changes the disk."""

    def __init__(self, fatal: int) -> None:
        self.fatal, self.passed = fatal, 0

    def tick(self) -> None:
        self.passed += 1
        if self.passed == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            self.tick()
            result = original(*arguments, **named)
            self.tick()
            return result

        return watched


def in_child(run: Callable[[], Any]) -> bool:
    """Run in a child process; say whether it was killed."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            run()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    if status:
        raise RuntimeError(f"a child ended with status {status}")
    return False


def killed_at(fatal: int, run: Callable[[], Any]) -> bool:
    """Run in a child that is killed at a moment; say whether it lived so long."""

    def doomed() -> None:
        moments = Moments(fatal)
        with (
            mock.patch.object(Path, "replace", moments.around(Path.replace)),
            mock.patch.object(PredictedColumns, "predict", moments.around(PredictedColumns.predict)),
        ):
            run()

    return in_child(doomed)


def kill_everywhere(folder: Path, stride: int) -> None:
    """Kill predictions at every moment, or one out of so many, each in a folder of its own, and go on with each."""
    predictor = Predictor.load(folder / "model")
    with mock.patch.object(Predictor, "load", lambda *_given, **_named: predictor):
        in_child(lambda: predict(folder, ["in.jsonl"], "never", part_rows=5, chunk_rows=3))
        fatal, killed = 1 - stride, True
        while killed:
            fatal += stride
            run = lambda name=f"killed{fatal}": predict(folder, ["in.jsonl"], name, part_rows=5, chunk_rows=3)  # noqa: E731
            killed = killed_at(fatal, run)
            left = folder / f"killed{fatal}"
            times = {file.name: file.stat().st_mtime_ns for file in left.glob("part-*")}
            (folder / f"left{fatal}.json").write_text(json.dumps({"killed": killed, "times": times}))
            in_child(run)
