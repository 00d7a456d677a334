"""Logistic regression on fixed features: scikit-learn's own scores, held-out folds, labels without rows."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from ulmfit_pipe.training.linear_probe import (
    NO_ROW,
    USUAL_STRENGTH,
    Features,
    fit_probe,
    held_out_score,
    wilson_interval,
)


def clouds(rows: int, classes: int, *, width: int = 7, seed: int = 0) -> Features:
    """Return rows around one point for each class."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    centres = 2 * random.normal(size=(classes, width))
    values = centres[labels] + random.normal(size=(rows, width)) + 5.0
    return Features(values.astype(np.float32), labels, seconds=1.0)


def scores(probe, features):
    logits = features.values @ probe.weight.T + probe.bias
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


@pytest.mark.parametrize("each_alone", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_probe_scores_as_scikit_learns_regression_on_the_scaled_features(classes, each_alone):
    features = clouds(30, classes)
    probe = fit_probe(features, num_labels=classes, each_alone=each_alone, bias=True, seed=0)
    x = features.values.astype(float) - features.values.astype(float).mean(0)
    x = x / x.std(0) if each_alone else x
    x = x / np.sqrt((x**2).sum(1).mean())  # mean square length 1
    reference = LogisticRegression(C=probe.strength, max_iter=1000).fit(x, features.labels).predict_proba(x)
    np.testing.assert_allclose(scores(probe, features), reference, atol=2e-4)


def test_without_biases_nothing_is_centred():
    features = clouds(30, 3)
    probe = fit_probe(features, num_labels=3, each_alone=False, bias=False, seed=0)
    assert not probe.bias.any()
    x = features.values.astype(float)
    x = x / np.sqrt((x**2).sum(1).mean())
    model = LogisticRegression(C=probe.strength, max_iter=1000, fit_intercept=False).fit(x, features.labels)
    np.testing.assert_allclose(scores(probe, features), model.predict_proba(x), atol=2e-4)


def test_no_row_takes_part_in_the_probe_that_scores_it():
    features = clouds(20, 2)
    flipped = features.labels.copy()
    flipped[3] = 1 - flipped[3]
    probe = fit_probe(Features(features.values, flipped, 1.0), num_labels=2, each_alone=False, bias=True, seed=0)
    assert probe.held_out[3].argmax() == features.labels[3]  # by its neighbours, not by its own wrong label
    found = held_out_score(probe, flipped)
    assert (found.rows, found.accuracy) == (20, 0.95)
    assert found.describe() == "0.950 (95 % 0.764 to 0.991, 20 rows)"


def test_its_growth_is_how_much_longer_its_weights_are_than_those_of_the_folds():
    features = clouds(20, 2)
    probe = fit_probe(features, num_labels=2, each_alone=False, bias=True, seed=0)
    x = features.values.astype(float) - features.values.astype(float).mean(0)
    x = x / np.sqrt((x**2).sum(1).mean())
    folds = StratifiedKFold(5, shuffle=True, random_state=0).split(x, features.labels)
    rows = [np.arange(20), *(fitted for fitted, _ in folds)]
    whole, *parts = [
        np.linalg.norm(LogisticRegression(C=probe.strength, max_iter=1000).fit(x[row], features.labels[row]).coef_)
        for row in rows
    ]
    assert probe.growth == pytest.approx(whole / np.mean(parts), rel=1e-6)
    assert probe.growth > 1


def test_classes_of_one_row_each_leave_nothing_to_hold_out():
    features = clouds(4, 4)
    probe = fit_probe(features, num_labels=4, each_alone=False, bias=True, seed=0)
    assert probe.strength == USUAL_STRENGTH
    assert held_out_score(probe, features.labels) is None
    assert (scores(probe, features).argmax(1) == features.labels).all()


def test_a_label_without_rows_is_never_given():
    features = clouds(20, 2)
    probe = fit_probe(features, num_labels=3, each_alone=False, bias=True, seed=0)
    assert not probe.weight[2].any()
    assert probe.bias[2] <= NO_ROW
    assert set(scores(probe, features).argmax(1)) == {0, 1}


def test_with_several_labels_a_row_each_label_has_its_own_regression():
    features = clouds(40, 4)
    labels = np.stack([features.labels >= 2, features.labels % 2 == 1, features.labels >= 0], axis=1).astype(np.float32)
    probe = fit_probe(Features(features.values, labels, 1.0), num_labels=3, each_alone=False, bias=True, seed=0)
    given = features.values @ probe.weight.T + probe.bias > 0
    assert (given == labels.astype(bool)).mean() > 0.98
    assert given[:, 2].all()  # every row has it, so every row gets it
    assert held_out_score(probe, labels).accuracy > 0.9


def test_the_loss_is_that_of_the_rows_it_was_fitted_on():
    features = clouds(30, 3)
    probe = fit_probe(features, num_labels=3, each_alone=False, bias=True, seed=0)
    expected = -np.log(scores(probe, features)[np.arange(30), features.labels]).mean()
    assert probe.loss(features) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("share", "rows", "low", "high"), [(0.8, 10, 0.4902, 0.9433), (0.0, 10, 0.0, 0.2775), (1.0, 300, 0.9874, 1.0)]
)
def test_wilsons_interval_of_a_share(share, rows, low, high):
    assert wilson_interval(share, rows) == pytest.approx((low, high), abs=1e-4)
