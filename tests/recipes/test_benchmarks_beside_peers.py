"""The benchmarks beside fastai and the Trainer, on models and tables of a few numbers."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recipes.test_benchmark_few_labels import save_encoder, write

ROOT = Path(__file__).parents[2]
SIZES = {"vocab": 30, "embedding": 4, "hidden": 6, "batch": 2, "bptt": 5, "gradient_window": 144, "labels": 2}
TRAIN = {"train": [[2, 3, 4, 5]] * 5, "train_labels": [0, 1, 0, 1, 0]}
TEXTS = TRAIN | {"test": [[2, 3], [4, 5, 6]], "test_labels": [0, 1]}


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark_fastai", ROOT / "recipes/benchmark_fastai.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("work", ["lm", "head", "all", "recipe", "predict"])
def test_our_side_does_each_work_and_says_what_it_took(benchmark, work):
    job = SIZES | TEXTS | {"work": work, "side": "ours", "bf16": False, "pretrained": None}
    found = benchmark.run_ours(job)
    assert found["seconds"] > 0
    assert found["peak_gb"] > 0
    assert ("accuracy" in found) == (work in ("recipe", "predict"))


def test_a_line_a_side_is_its_median_and_its_share_of_fastais(benchmark, capsys):
    runs = [("ours", 2.0), ("ours", 9.0), ("ours", 3.0), ("fastai", 6.0)]
    results = [{"work": "all", "side": side, "seconds": seconds, "peak_gb": 1.0} for side, seconds in runs]
    benchmark.show("all", ["ours", "fastai"], results)
    assert [line.split()[1:5] for line in capsys.readouterr().out.splitlines()] == [
        ["ours", "3.00", "s", "0.50"],
        ["fastai", "6.00", "s", "1.00"],
    ]


@pytest.mark.slow
def test_the_trainer_and_this_package_get_the_same_rows(tmp_path):
    rows = [(f"{word} film number {number}", word) for number in range(20) for word in ("warm", "dull")]
    write(tmp_path / "train.csv", rows)
    write(tmp_path / "test.csv", rows[:8])
    save_encoder(tmp_path / "encoder", ["[PAD]", "[UNK]", "warm", "dull", "film", "number"])
    words = ["--encoder", "encoder", "--train_file", "train.csv", "--test_file", "test.csv", "--rows", "24"]
    command = [sys.executable, ROOT / "recipes/benchmark_trainer.py", *words, "--splits", "1", "--epochs", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line.split()[0] for line in done.stdout.splitlines()[-3:]] == ["ours", "trainer", "tfidf"]
    found = json.loads((tmp_path / "benchmark_trainer.jsonl").read_text())
    assert {"ours", "trainer", "tfidf", "rows", "train_file", "split"} == set(found)
    assert 0 <= found["trainer"]["accuracy"] <= 1
    assert found["ours"]["cpu"] > 0
