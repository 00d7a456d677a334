"""The best epoch's weights are kept, by whichever metric, and put back bit for bit."""

import math

import pytest
import torch

from tests.support.toy_models import ToyLanguageModel, new_model, same, weights_of
from ulmfit_pipe.training.best_weights import BestWeights
from ulmfit_pipe.training.records import EpochRecord


def record(**metrics):
    return EpochRecord("some", 0, 1, 1, 1.0, metrics, (1e-2,), 1.0, 1.0)


@pytest.mark.parametrize(
    ("monitor", "better", "worse"),
    [
        ("loss", 0.1, 0.2),
        ("valid_loss", 0.1, 0.2),
        ("perplexity", 10.0, 20.0),
        ("error_rate", 0.1, 0.2),
        ("accuracy", 0.2, 0.1),
        ("macro_f1", 0.2, 0.1),
        ("a_score_of_my_own", 0.2, 0.1),
    ],
)
def test_losses_are_better_when_smaller_and_scores_when_larger(monitor, better, worse):
    best = BestWeights(monitor)
    model = new_model()
    for value in (worse, better, worse, math.nan):
        best.offer(record(**{monitor: value}), model)
    assert best.record.metrics[monitor] == better


def test_a_tie_keeps_the_earlier_record():
    best, model = BestWeights("loss"), new_model()
    first = record(loss=0.5)
    for entry in (first, record(loss=0.5)):
        best.offer(entry, model)
    assert best.record is first


def test_a_tied_weight_is_kept_once():
    model = ToyLanguageModel()
    best = BestWeights("loss")
    best.offer(record(loss=0.5), model)
    kept = best.weights
    assert list(kept) == list(model.state_dict())
    assert kept["lm_head.weight"] is kept["embeddings.weight"]
    before = weights_of(model)
    with torch.no_grad():
        model.embeddings.weight.add_(1.0)
    best.restore(model)
    assert same(before, weights_of(model)) == list(before) and model.lm_head.weight is model.embeddings.weight


def test_kept_weights_are_a_copy_with_the_running_statistics():
    model = new_model(norm="batch")
    best = BestWeights("loss")
    best.restore(model)  # nothing kept yet: nothing happens
    best.offer(record(loss=0.5), model)
    kept = weights_of(model)
    with torch.no_grad():
        model.body[1].running_mean += 1
        model.head.weight.zero_()
    best.restore(model)
    assert same(kept, weights_of(model)) == list(kept)


def test_a_tie_goes_to_the_lower_loss_where_the_loss_is_known():
    best, model = BestWeights("accuracy"), new_model()
    for loss in (0.3, 0.1, 0.2):
        best.offer(record(accuracy=1.0, loss=loss), model)
    assert best.record.metrics == {"accuracy": 1.0, "loss": 0.1}
