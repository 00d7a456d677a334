"""How much of the package one plain text run enters: 60 rows, the built-in model, one epoch a phase.

    python tests/trace_of_a_run.py

prints the files and functions of ulmfit_pipe that were entered, and how often a model's configuration was loaded and
its name resolved. A reader of the method has to follow all of it, so each number is to fall.
"""

import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.tiny_runs import reviews, write_csv  # noqa: E402

PACKAGE = f"{ROOT / 'ulmfit_pipe'}/"
LOADS, RESOLUTIONS = "load_config", "resolve_model"
NO_FUNCTIONS = ("<module>", "<lambda>", "<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>")


def trace(run: Any) -> Counter[tuple[str, str]]:
    """Return how often each (file, qualified name) of the package was called while a function ran."""
    calls: Counter[tuple[str, str]] = Counter()

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name not in NO_FUNCTIONS:
            calls[code.co_filename.removeprefix(PACKAGE), code.co_qualname] += 1

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return calls


def small_run(folder: Path) -> None:
    """Train on 60 rows, and score 12 others."""
    from ulmfit_pipe import TextPipeline

    train = write_csv(folder / "train.csv", reviews(60, seed=5))
    test = write_csv(folder / "test.csv", reviews(12, seed=6))
    TextPipeline().fit(
        train,
        test=test,
        output_dir=folder / "run",
        language_model={"epochs": 1},
        classifier={"epochs_per_phase": 1, "final_epochs": 1},
    )


def main() -> None:
    """Trace the run and print the four numbers."""
    with tempfile.TemporaryDirectory() as folder:
        calls = trace(lambda: small_run(Path(folder)))
    named = Counter(name.split(".")[-1] for (_, name), count in calls.items() for _ in range(count))
    print(f"files entered: {len({file for file, _ in calls})}")
    print(f"functions entered: {len(calls)}")
    print(f"configuration loads: {named[LOADS]}")
    print(f"name resolutions: {named[RESOLUTIONS]}")


if __name__ == "__main__":
    main()
