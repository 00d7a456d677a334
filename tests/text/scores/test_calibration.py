"""Temperatures against what made the scores, calibration errors against counts by hand, and whole stages."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.tiny_runs import CLASSIFIER, heard, multi_label_table, reviews, table
from tests.support.tiny_transformers import save_bert
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.artifacts import read_stage
from ulmfit_pipe.stages.config_notes import notes_of
from ulmfit_pipe.text.classifier import train_classifier
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.text.scores import calibrated_head
from ulmfit_pipe.text.scores.calibration import (
    calibrate,
    calibration_error,
    coverage_curve,
    cut_for_precision,
    fit_temperatures,
    scaled,
)

TRAIN, VALIDATION = table(reviews(36)), table(reviews(100, seed=7))
LEARNS = ClassifierSettings(plan="probe", batch_size=8)


def softmax(logits):
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def drawn(rows, *, sharpness, seed=0):
    """Return labels drawn from known probabilities over 3 classes, and scores whose logits are too large."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, 3)) * 1.5
    labels = np.array([random.choice(3, p=row) for row in softmax(logits)])
    return softmax(logits * sharpness), labels


# The numbers


@pytest.mark.parametrize("sharpness", [3.0, 0.4])
def test_the_temperature_is_what_the_logits_were_multiplied_by(sharpness):
    scores, labels = drawn(4000, sharpness=sharpness)
    assert fit_temperatures(scores, labels) == pytest.approx([sharpness], rel=0.05)


def test_each_label_has_its_own_temperature_and_a_rare_one_keeps_its_scores():
    random = np.random.default_rng(1)
    logits = random.normal(size=(4000, 3)) * 2
    labels = random.random((4000, 3)) < 1 / (1 + np.exp(-logits))
    labels[:, 2] = np.arange(4000) < 9
    scores = 1 / (1 + np.exp(-logits * [3.0, 0.5, 1.0]))
    assert fit_temperatures(scores, labels) == pytest.approx([3.0, 0.5, 1.0], rel=0.1)


def test_scaling_divides_logits():
    logits = np.array([[2.0, -1.0, 0.5], [0.0, 300.0, -300.0]])
    np.testing.assert_allclose(scaled(softmax(logits), np.array([2.0])), softmax(logits / 2), atol=1e-12)
    one_by_one = scaled(np.array([[0.8, 0.2]]), np.array([2.0, 0.5]))
    np.testing.assert_allclose(one_by_one, [[1 / (1 + 0.5), 1 / (1 + 16.0)]], atol=1e-12)


def test_rows_that_are_all_right_do_not_become_certain():
    scores = softmax(np.tile([[2.0, 0.0]], (100, 1)))
    (temperature,) = fit_temperatures(scores, np.zeros(100, dtype=int))
    assert scaled(scores, np.array([temperature])).max() == pytest.approx(1 - 0.5 / 101, abs=1e-3)


def test_the_calibration_error_is_counted_by_bins():
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    # bin of 0.9: right half of the times, 0.4 off; bin of 0.6: always right, 0.4 off
    assert calibration_error(scores, np.array([0, 1, 1, 1])) == pytest.approx(0.4)
    labels = np.array([[True, False], [True, False], [False, True], [True, True]])
    # bins of 0.9, 0.1, 0.4, 0.6: off by 0.2, 0.2, 0.2, 0.8, two decisions of eight each
    assert calibration_error(scores, labels) == pytest.approx((0.2 + 0.2 + 0.2 + 0.8) / 8)


def test_what_it_is_worth_is_measured_on_rows_that_it_was_not_fitted_on():
    scores, labels = drawn(2000, sharpness=3.0)
    found = calibrate(scores, labels, source="validation", seed=0)
    assert found.rows == 2000
    assert found.ece_before == calibration_error(scores, labels) > 0.1
    assert found.ece_after < 0.04
    refitted = calibration_error(scaled(scores, np.array([found.temperature])), labels)
    assert found.ece_after != refitted  # which would be the fitted rows' own
    assert found.record()["from"] == "validation"
    assert "calibrated by a temperature of 2.98, fitted on 2,000 validation rows; expected" in found.describe()


def test_a_classifier_that_is_more_certain_than_the_scores_is_divided_by_as_much_more():
    scores, labels = drawn(2000, sharpness=2.0)
    found, grown = (calibrate(scores, labels, source="out-of-fold", seed=0, growth=growth) for growth in (1.0, 1.5))
    assert grown.temperature == pytest.approx(found.temperature * 1.5, rel=1e-3)
    assert grown.ece_after == found.ece_after


def test_scores_that_no_temperature_makes_better_stay():
    """Right and wrong scores look alike: what four folds say of the fifth is noise."""
    scores, labels = drawn(3000, sharpness=1.0, seed=3)
    found = calibrate(scores, labels, source="validation", seed=0)
    assert (found.temperature, found.changes_scores) == (1.0, False)
    assert found.ece_before == found.ece_after
    assert found.describe().startswith("scores: as they are; no temperature makes them better on 3,000 validation rows")


def test_the_cut_for_a_precision_keeps_the_most_rows():
    curve = coverage_curve(np.array([0.5, 0.9, 0.8, 0.8, 0.6]), np.array([False, True, True, False, True]))
    assert curve == [[0.9, 0.2, 1.0], [0.8, 0.6, pytest.approx(2 / 3)], [0.6, 0.8, 0.75], [0.5, 1.0, 0.6]]
    assert cut_for_precision(curve, 0.7) == (0.6, 0.8, 0.75)
    assert cut_for_precision(curve, 1.0) == (0.9, 0.2, 1.0)
    assert cut_for_precision(curve[1:], 0.95) is None
    with pytest.raises(ValueError, match=r"precision must be above 0 and at most 1, got 95; 0.95 is 95 of 100"):
        cut_for_precision(curve, 95)


# Stages


def train(model, folder, *, train=TRAIN, validation=VALIDATION, settings=LEARNS):
    said, context = heard()
    result = train_classifier(
        train, validation, model=str(model), output_dir=folder, settings=settings, context=context
    )
    return said, read_stage(result.path)


@pytest.fixture(scope="module")
def pair(tiny_language_model_folder, tmp_path_factory):
    """Return the folder of a classifier without calibration, that of one with, the latter's log and its record."""
    home = tmp_path_factory.mktemp("calibrated")
    train(tiny_language_model_folder, home / "plain", settings=dataclasses.replace(LEARNS, calibrate=False))
    return home / "plain", home / "scaled", *train(tiny_language_model_folder, home / "scaled")


def test_the_temperature_is_in_the_weights_of_the_last_layer_and_nowhere_else(pair):
    plain, calibrated, said, record = pair
    temperature = record["calibration"]["temperature"]
    assert temperature != 1
    assert notes_of(Predictor.load(calibrated).models[0].config)["temperature"] == temperature
    before, after = load_file(plain / "model.safetensors"), load_file(calibrated / "model.safetensors")
    last = "classifier.blocks.1.linear.weight"
    assert [name for name in before if not torch.equal(before[name], after[name])] == [last]
    torch.testing.assert_close(after[last], before[last] / temperature)
    assert sum(line.startswith("scores: calibrated by") for line in said) == 1
    assert "calibration" not in read_stage(plain)


def test_labels_stay_and_scores_are_those_of_divided_logits_for_transformers_too(pair):
    plain, calibrated, _, record = pair
    texts = VALIDATION["text"][:]
    before, after = Predictor.load(plain).predict(texts), Predictor.load(calibrated).predict(texts)
    assert [row["label"] for row in before] == [row["label"] for row in after]
    expected = scaled(
        np.array([list(row["scores"].values()) for row in before]), np.array([record["calibration"]["temperature"]])
    )
    np.testing.assert_allclose([list(row["scores"].values()) for row in after], expected, atol=1e-6)
    model, tokenizer = (
        kind.from_pretrained(calibrated) for kind in (AutoModelForSequenceClassification, AutoTokenizer)
    )
    with torch.no_grad():
        plain_scores = model(**tokenizer(texts[:3], padding=True, return_tensors="pt")).logits.softmax(-1)
    np.testing.assert_allclose(plain_scores, expected[:3], atol=1e-6)


def test_a_later_training_forgets_the_temperature_of_its_start(pair, tmp_path):
    few = table(reviews(99, seed=8))
    said, record = train(pair[1], tmp_path / "more", validation=few)
    assert "scores: not calibrated, 100 held-out rows are needed, here are 99" in said
    assert "calibration" not in record
    assert notes_of(Predictor.load(tmp_path / "more").models[0].config)["temperature"] is None


def test_each_label_of_several_is_scaled_before_thresholds_are_chosen(tiny_language_model_folder, tmp_path):
    tables = {"train": multi_label_table(36), "validation": multi_label_table(120, seed=4)}
    sure = dataclasses.replace(CLASSIFIER, final_epochs=6, lr=0.05)
    plain = dataclasses.replace(sure, calibrate=False)
    train(tiny_language_model_folder, tmp_path / "plain", settings=plain, **tables)
    _, record = train(tiny_language_model_folder, tmp_path / "scaled", settings=sure, **tables)
    temperatures = np.array(record["calibration"]["temperature"])
    assert temperatures.shape == (3,)
    before, after = (Predictor.load(tmp_path / name) for name in ("plain", "scaled"))
    encoded = after.tokenize(tables["validation"])
    expected = scaled(before.probabilities(encoded), temperatures)
    np.testing.assert_allclose(after.probabilities(encoded), expected, atol=1e-6)
    assert record["metrics"]["loss"] < read_stage(tmp_path / "plain")["metrics"]["loss"]
    assert "coverage" not in record


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert") / "bert")


def test_a_probe_that_is_saved_is_calibrated_by_its_own_held_out_folds(bert, tmp_path):
    rows = table(reviews(120))
    said, record = train(bert, tmp_path / "probe", train=rows, validation=None)
    found = record["calibration"]
    assert (found["rows"], found["from"]) == (120, "out-of-fold")
    assert found["ece_after"] <= found["ece_before"] or found["temperature"] != 1
    assert record["coverage"][-1][1] == 1.0
    said, record = train(
        bert, tmp_path / "full", train=rows, validation=None, settings=dataclasses.replace(LEARNS, plan="head")
    )
    assert "scores: not calibrated, no validation rows are held out" in said
    assert "calibration" not in record


def test_scores_that_do_not_come_from_the_layer_stay_as_they_are(bert, tmp_path, monkeypatch):
    layer = torch.nn.Linear(16, 2)  # is not a part of the network
    before = layer.weight.clone()
    monkeypatch.setattr(calibrated_head, "last_layer", lambda _network, _labels: layer)
    said, record = train(bert, tmp_path / "other", settings=ClassifierSettings(plan="head", batch_size=8))
    assert "scores: not calibrated, they are not the output of the network's last layer" in said
    assert "calibration" not in record
    assert torch.equal(layer.weight, before)
