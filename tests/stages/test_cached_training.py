"""The setting cache_frozen of the classifier stages: the same weights, or a line that says why it is off."""

import dataclasses

import pytest
import torch

from tests.support.tiny_images import QUICK, STILL, save_backbone, write_images
from tests.support.tiny_runs import heard, reviews, table
from tests.support.tiny_transformers import SAVED
from ulmfit_pipe.data.images.files import load_images
from ulmfit_pipe.images.classifier import build_image_learner
from ulmfit_pipe.settings.images import ImageClassifierSettings
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.text.classifier import build_classifier_learner

TRAIN, VALIDATION = table(reviews(12)), table(reviews(6, seed=7))
# Nine steps of Adam, each at most the rate of 0.01 long. Float32 rounds gradients differently where rows are computed
# in other batches (by 1e-7, a thousandth where terms cancel), on some processors more than on others. A cache that gave
# another row, or an old one, would move the weights by a step or more.
ROUNDING = 9 * 1e-2 * 1e-3
KEPT = "cache_frozen: 18 rows were kept"


def trained(build, cache):
    """Train the head for three epochs, and return all weights and what was said of the cache."""
    said, context = heard()
    torch.manual_seed(5)  # the head starts at random
    learner = build(cache, context).learner
    learner.fit(3, 1e-2)
    return dict(learner.model.state_dict()), [line for line in said if line.startswith("cache_frozen")]


def both(build):
    """Train without and with the cache, and return the largest difference and what was said."""
    (plain, silence), (cached, said) = trained(build, False), trained(build, True)
    assert silence == []
    assert plain.keys() == cached.keys()
    return max(float((plain[name].double() - value.double()).abs().max()) for name, value in cached.items()), said


def text_classifier(model, **settings):
    def build(cache, context):
        chosen = ClassifierSettings(batch_size=4, frozen_dropout="off", cache_frozen=cache, **settings)
        return build_classifier_learner(TRAIN, VALIDATION, model=str(model), settings=chosen, context=context)

    return build


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bert", {}),
        ("bert", {"long_documents": "windows", "window_length": 7, "max_length": 60}),
        ("bert", {"head": "concat-pooling"}),
        ("bert", {"head": "mean-pooling"}),
        ("distilbert", {}),
        ("gpt2", {}),
    ],
    ids=[
        "bert",
        "bert in windows",
        "bert with concat pooling",
        "bert with mean pooling",
        "distilbert",
        "gpt2 padded on the left",
    ],
)
def test_a_transformer_trains_from_its_cached_prefix_to_the_same_weights(tmp_path, kind, settings):
    gap, said = both(text_classifier(SAVED[kind](tmp_path / kind), **settings))
    assert gap < ROUNDING
    assert said[0].startswith(
        "cache_frozen: embeddings, block0, block1, block2 run once per row; kept is what goes into"
    )
    assert said[-1].startswith(KEPT)


def test_an_awd_lstm_trains_its_head_from_its_cached_prefix_to_the_same_weights(tiny_language_model_folder):
    gap, said = both(text_classifier(tiny_language_model_folder))
    assert gap < ROUNDING
    assert said[-1].startswith(KEPT)


def test_dropout_in_frozen_groups_is_named_and_training_goes_on(tmp_path):
    model = SAVED["bert"](tmp_path / "bert")

    def build(cache, context):
        chosen = ClassifierSettings(batch_size=4, cache_frozen=cache)
        return build_classifier_learner(TRAIN, VALIDATION, model=str(model), settings=chosen, context=context)

    gap, said = both(build)
    assert gap == 0
    assert len(said) == 1 and "dropout runs below it (bert.embeddings.dropout" in said[0]
    assert "frozen_dropout='off' reaches dropout inside frozen groups" in said[0]


def test_an_image_classifier_trains_from_its_cached_prefix_to_the_same_weights(tmp_path):
    tables = [load_images(write_images(tmp_path / name, count=count)) for name, count in (("train", 6), ("valid", 3))]
    model = save_backbone(tmp_path / "resnet")

    def build(cache, context):
        chosen = dataclasses.replace(QUICK, augmentation=STILL, train_norm=False, cache_frozen=cache)
        return build_image_learner(*tables, model=str(model), settings=chosen, context=context)

    gap, said = both(build)
    assert gap < ROUNDING
    assert said[0].startswith("cache_frozen: early, late run once per row")
    assert said[-1].startswith(KEPT)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"augmentation": STILL}, "with train_norm True and augmentation.off True; set train_norm to false"),
        ({"train_norm": False}, "with train_norm False and augmentation.off False; set train_norm to false"),
    ],
)
def test_images_that_change_or_norms_that_train_are_refused_before_any_work(settings, words):
    with pytest.raises(ValueError, match=words):
        ImageClassifierSettings(cache_frozen=True, **settings)
