"""Half precision in whole stages: on this machine's CPU by the accuracy reached, on a GPU by what only it has."""

import dataclasses
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

from tests.support.processes.several_process_runs import quiet, save_awd_lstm
from tests.support.tiny_runs import reviews, table, write_csv
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.artifacts import read_stage
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.text.classifier import build_classifier_learner, train_classifier
from ulmfit_pipe.training.compute.precision import cpu_precision, tf32_allowed

ROOT = Path(__file__).parents[2]
SETTINGS = ClassifierSettings(
    plan="full", final_epochs=5, batch_size=16, lr=2e-2, lr_decay=1.0, keep="last", num_workers=1
)


def accuracies(model, precision):
    """Train a classifier from five seeds, and return the accuracy of each on 120 texts, and its loss in training."""
    found, losses = [], []
    for seed in range(5):
        torch.manual_seed(seed)
        parts = build_classifier_learner(
            table(reviews(160, seed=1)),
            table(reviews(120, seed=2)),
            model=str(model),
            settings=SETTINGS,
            context=RunContext(seed=seed, mixed_precision=precision, say=quiet),
        )
        assert parts.learner.accelerator.mixed_precision == precision
        history = parts.learner.fit_plan(parts.phases, keep_best=False)
        assert {value.dtype for value in parts.learner.model.parameters()} == {torch.float32}
        found.append(history.epochs[-1].metrics["accuracy"])
        losses.append(history.epochs[-1].train_loss)
    return np.array(found), losses


def difference_and_noise(first, second):
    """Return the difference of two means, and its standard error."""
    return abs(first.mean() - second.mean()), np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / len(first))


@pytest.mark.slow
def test_bf16_reaches_the_accuracy_of_float32_within_the_noise_of_five_seeds(tmp_path, fresh_accelerate):
    model = save_awd_lstm(tmp_path / "language_model")
    plain, losses = accuracies(model, "no")
    fresh_accelerate()
    half, half_losses = accuracies(model, "bf16")
    print(f"accuracy of five seeds: float32 {plain.tolist()}, bf16 {half.tolist()}")
    assert not set(losses) & set(half_losses)  # it was another format
    assert min(plain.mean(), half.mean()) > 0.7  # it did learn; half of the texts are of each label
    difference, noise = difference_and_noise(plain, half)
    assert noise < 0.05  # with more of it the next line would let anything pass
    assert difference < 2 * noise + 0.01, (plain, half)


@pytest.mark.bf16
def test_a_stage_asked_for_bf16_trains_and_tells_what_it_computed_in(tmp_path, fresh_accelerate):
    said: list[str] = []
    computed, line = cpu_precision("bf16")
    result = train_classifier(
        table(reviews(24)),
        table(reviews(8, seed=1)),
        output_dir=tmp_path / "classifier",
        model=str(save_awd_lstm(tmp_path / "language_model")),
        settings=dataclasses.replace(SETTINGS, final_epochs=1),
        context=RunContext(mixed_precision="bf16", say=said.append),
    )
    assert np.isfinite(result.metrics["loss"])
    assert read_stage(tmp_path / "classifier")["precision"] == computed
    assert [one for one in said if "'bf16'" in one] == ([line] if line else [])


@pytest.fixture
def fresh_accelerate():
    """Accelerate keeps device and precision for the whole process; the test changes them, and ends without."""

    def forget():
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    forget()
    yield forget
    forget()


# ---- on a GPU

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_a_stage_on_a_gpu_learns_and_cudnn_copies_no_weights(tmp_path, fresh_accelerate, every_warning, precision):
    """cuDNN warns once where LSTM weights lie apart in memory, and copies them at every call."""
    model = save_awd_lstm(tmp_path / "language_model")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert accuracies(model, precision)[0].mean() > 0.7
    assert [str(one.message) for one in seen if "contiguous chunk of memory" in str(one.message)] == []


@pytest.mark.gpu
@needs_a_gpu
def test_tf32_gives_what_float32_gives_but_for_rounding(fresh_accelerate):
    first, second = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0)).cuda()
    with tf32_allowed(False):
        exact = first @ second
    with tf32_allowed(True):
        rounded = first @ second
    torch.testing.assert_close(rounded, exact, rtol=0, atol=0.2)
    if torch.cuda.get_device_capability() >= (8, 0):
        assert not torch.equal(rounded, exact)


@pytest.mark.gpu
@needs_a_gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_accelerate_launch_on_one_gpu_trains_a_classifier(tmp_path, precision):
    model = save_awd_lstm(tmp_path / "language_model")
    rows = write_csv(tmp_path / "train.csv", reviews(160))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--num_machines", "1"]
    recipe = [str(ROOT / "recipes" / "train_classifier.py"), "--model", str(model), "--train_file", f"[{rows}]"]
    choices = ["--output_dir", str(tmp_path / "classifier"), "--mixed_precision", precision, "--tf32", "true"]
    small = ["--classifier.plan", "full", "--classifier.final_epochs", "3", "--classifier.lr", "0.02"]
    done = subprocess.run(
        [*command, *recipe, *choices, *small],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    metrics = json.loads((tmp_path / "classifier" / "metrics.json").read_text())
    assert metrics["validation"]["accuracy"] > 0.6
