"""How many layer groups a classifier will have, against the classifier itself."""

import pytest
from tiny_runs import heard, reviews, table
from tiny_transformers import SAVED, save_granite

from ulmfit_pipe.stages.artifacts import ArtifactError
from ulmfit_pipe.stages.classifier import ClassifierSettings, build_classifier_learner
from ulmfit_pipe.stages.classifier_network import count_layer_groups

SAVES = {**SAVED, "granite": save_granite}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bert", {}),
        ("bert", {"block_groups": 2}),
        ("bert", {"block_groups": 9}),
        ("distilbert", {"head": "concat-pooling"}),
        ("gpt2", {}),
        ("granite", {"head": "concat-pooling"}),
        ("bert", {"head": "mean-pooling"}),
    ],
)
def test_layer_groups_are_counted_without_the_weights(tmp_path, kind, settings):
    folder, numbers = SAVES[kind](tmp_path / kind), ClassifierSettings(**settings)
    rows = table(reviews(12))
    parts = build_classifier_learner(rows, rows, model=str(folder), settings=numbers, context=heard()[1])
    (folder / "model.safetensors").unlink()
    assert count_layer_groups(str(folder), numbers) == len(parts.learner.layer_groups)


def test_an_awd_lstms_are_its_layers_embeddings_and_head(tiny_language_model_folder):
    assert count_layer_groups(str(tiny_language_model_folder), ClassifierSettings()) == 4


def test_a_model_that_cannot_classify_has_none(tmp_path):
    with pytest.raises(ArtifactError, match="transformers has no classifier with a head of its own"):
        count_layer_groups(str(save_granite(tmp_path / "granite")), ClassifierSettings())
