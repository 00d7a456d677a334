"""A run that version 0.1.0 left: its settings, classifier and checkpoint are read, resumed and used to the bit.

tests/fixtures/small_run holds the tables and settings of `recipes/run_pipeline.py`, the classifier that it ended with,
and the folder of the same run killed by SIGKILL in the second phase of the classifier. It is never made again: what it
shows is that files of an earlier version still work.
"""

import csv
import json
import os
import platform
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ulmfit_pipe import PipelineSettings, TextPipeline, parse_settings, run_pipeline

SMALL_RUN = Path(__file__).parents[1] / "fixtures/small_run"
EXPECTED = json.loads((SMALL_RUN / "expected.json").read_text())


def here():
    """What the bits of a result depend on besides the files."""
    processor = platform.processor() or platform.machine()
    return {
        "torch": torch.__version__,
        "processor": processor,
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


# ONEDNN_MAX_CPU_ISA makes oneDNN compute as an older processor does, which here() does not see: 5e-7 away in 24 steps
SAME_BITS = here() == EXPECTED["made_with"] and "ONEDNN_MAX_CPU_ISA" not in os.environ
TOLERANCE = 0.0 if SAME_BITS else 1e-4


def test_the_saved_classifier_predicts_what_it_did(tmp_path):
    shutil.copytree(SMALL_RUN / "classifier", tmp_path / "classifier")
    with (SMALL_RUN / "test.csv").open(encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    predicted = TextPipeline.load(tmp_path / "classifier").predict(texts)
    assert len(texts) == len(predicted) == 12
    for now, before in zip(predicted, EXPECTED["predictions"], strict=True):
        assert now["label"] == before["label"]
        assert now["scores"] == pytest.approx(before["scores"], rel=0, abs=TOLERANCE)


def test_the_killed_run_is_resumed_from_its_checkpoint_and_ends_as_the_whole_one(tmp_path, capfd):
    run, tables = tmp_path / "run", [f"--{name}_file={SMALL_RUN / name}.csv" for name in ("train", "test")]
    shutil.copytree(SMALL_RUN / "killed", run)
    words = ["--config", str(SMALL_RUN / "settings.yaml"), *tables, "--output_dir", str(run), "--resume", "true"]
    metrics = run_pipeline(parse_settings(PipelineSettings, words, description="Resume a run."))
    said = capfd.readouterr().out
    assert "language_model: already finished in" in said
    assert "resuming from" in said
    assert "21 steps done, in epoch 2 of phase 2" in said
    assert not (run / ".classifier.progress").exists()
    weights, before = (load_file(place / "classifier/model.safetensors") for place in (run, SMALL_RUN))
    assert weights.keys() == before.keys()
    different = [name for name in before if (weights[name] - before[name]).abs().max() > TOLERANCE]
    assert not different
    loss, expected = metrics["test"].pop("loss"), dict(EXPECTED["metrics"])
    assert loss == pytest.approx(expected.pop("loss"), rel=0, abs=TOLERANCE)
    assert metrics["test"] == expected


def test_the_settings_file_means_what_it_did():
    settings = parse_settings(
        PipelineSettings, ["--config", str(SMALL_RUN / "settings.yaml")], description="Read settings."
    )
    assert settings.output_dir == "/tmp/reviews/run"
    assert (settings.model, settings.validation_fraction, settings.checkpoint_seconds) == (None, 0.2, 0.0)
    assert (settings.language_model.hidden_size, settings.language_model.vocab_size) == (14, 110)
    assert (settings.classifier.batch_size, settings.classifier.epochs_per_phase) == (8, 2)
