"""How fast recipes/predict.py predicts in parts, and what a second process buys: rows per second, all sides in one run.

    python recipes/benchmark_prediction.py --model runs/reviews/classifier
    python recipes/benchmark_prediction.py --model runs/reviews/classifier --rows 20000 --processes [1,2,4]

Random English texts in one JSONL file are predicted by several processes of one thread each, the sides in turn. What
counts is the time that the recipe calls predicting, from the first row to the last one written; the rest of a start
(Python, the model, the check of the rows) is shown beside it. A side's figure is the median. Run it on a machine that
does nothing else and has a core for each process.
"""

import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import ulmfit_pipe as up

RECIPE = Path(__file__).with_name("predict.py")
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}  # torch's, and those of transformers' tokenizers
WORDS = "the film and its music were made by three brothers in two long hours with a dull warm funny slow story".split()


@dataclass(frozen=True)
class Settings:
    """What to time: a classifier's folder, texts of fewest to most words, numbers of processes, each so often."""

    model: str
    rows: int = 4000
    fewest_words: int = 60
    most_words: int = 240
    part_rows: int = 100
    processes: list[int] = field(default_factory=lambda: [1, 2])
    repeats: int = 5


def write_texts(path: Path, settings: Settings) -> None:
    """Write the table, the same every time."""
    chance = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(settings.rows):
            count = chance.randint(settings.fewest_words, settings.most_words)
            file.write(json.dumps({"text": " ".join(chance.choices(WORDS, k=count))}) + "\n")


def seconds_of(command: list[str]) -> tuple[float, float]:
    """Return the seconds of predicting, and all others; a start that fails ends this recipe too."""
    started, surroundings = time.perf_counter(), {**os.environ, **ONE_THREAD}
    done = subprocess.run(command, env=surroundings, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    predicting = float(re.findall(r"([\d.]+) s predicting", done.stdout)[-1])
    return predicting, time.perf_counter() - started - predicting


def main() -> None:
    """Time every side in turn, and print medians and ratios."""
    settings = up.parse_settings(Settings, description="Time the prediction of a file in parts, by several processes.")
    sides: dict[int, list[tuple[float, float]]] = {processes: [] for processes in settings.processes}
    with tempfile.TemporaryDirectory() as place:
        write_texts(Path(place, "texts.jsonl"), settings)
        words = ["--model", settings.model, "--input_file", f"{place}/texts.jsonl", "--progress", "false"]
        for number, processes in enumerate(list(sides) * settings.repeats):
            parts = ["--part_rows", str(settings.part_rows), "--output_dir", f"{place}/parts{number}"]
            command = [*LAUNCHER, str(processes), str(RECIPE), *words, *parts]
            predicting, rest = seconds_of(command)
            sides[processes].append((settings.rows / max(predicting, 0.01), rest))
    first = statistics.median(speed for speed, _ in sides[settings.processes[0]])
    print(f"{'processes':9} {'rows/s':>9} {'lowest':>9} {'highest':>9}  ratio  rest of a start")
    for processes, found in sides.items():
        speeds, rests = zip(*found, strict=True)
        median = statistics.median(speeds)
        ends = f"{min(speeds):9,.1f} {max(speeds):9,.1f}"
        print(f"{processes:<9} {median:9,.1f} {ends}  {median / first:5.2f}  {statistics.median(rests):6.1f} s")


if __name__ == "__main__":
    up.run_recipe(main)
