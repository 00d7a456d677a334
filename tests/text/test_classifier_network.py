"""How many layer groups a classifier will have, against the classifier itself; a new head on a saved one's encoder."""

import json
import re
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.support.tiny_runs import heard, reviews, table
from tests.support.tiny_transformers import SAVED, encoder_tokenizer, save_granite, save_xlnet_classifier
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, load_model
from ulmfit_pipe.stages.config_notes import thresholds_of
from ulmfit_pipe.text.classifier import build_classifier_learner, train_classifier
from ulmfit_pipe.text.classifier_network import count_layer_groups
from ulmfit_pipe.text.predict.predictor import Predictor

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
        count_layer_groups(str(save_granite(tmp_path / "granite")), ClassifierSettings(head="own"))


# ---- saved classifiers of other labels, and of none

QUICK = {"plan": "full", "final_epochs": 1, "batch_size": 8}
NEW_HEAD = "with --classifier.new_head true (in Python classifier=ClassifierSettings(new_head=True))"


def built(model, rows, **settings):
    said, context = heard()
    numbers = ClassifierSettings(**{**QUICK, **settings})
    return build_classifier_learner(rows, rows, model=str(model), settings=numbers, context=context), said


def changed(folder, **entries):
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **entries}))
    return folder


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory, save_tiny_classifier):
    """Return the folders of classifiers of other labels: an AWD-LSTM, BERT, GPT-2, BERT with mean pooling, XLNet."""
    place = tmp_path_factory.mktemp("classifiers")
    folders = {"awd_lstm": save_tiny_classifier(place / "awd_lstm"), "xlnet": save_xlnet_classifier(place / "xlnet")}
    changed(folders["xlnet"], id2label={"0": "no", "1": "yes"}, label2id=None)
    rows = table(reviews(24, labels=("bad", "fair", "good")), names=("bad", "fair", "good"))
    for kind, base, head in (("bert", "bert", "own"), ("gpt2", "gpt2", "own"), ("mean", "bert", "mean-pooling")):
        source = SAVED[base](place / f"{kind}_source")
        result = train_classifier(
            rows,
            rows,
            model=str(source),
            output_dir=place / kind,
            settings=ClassifierSettings(**QUICK, head=head),
            context=heard()[1],
        )
        folders[kind] = result.path
    return folders


@pytest.mark.parametrize("kind", ["awd_lstm", "bert", "gpt2", "mean", "xlnet"])
def test_a_new_head_is_put_on_the_encoder_of_a_classifier_of_other_labels(classifiers, kind):
    rows = table(reviews(12, labels=("bad", "good")), names=("bad", "good"))
    with pytest.raises(ArtifactError, match=r"the labels must be the same: for other labels put a new head on its enc"):
        built(classifiers[kind], rows)
    parts, said = built(classifiers[kind], rows, new_head=True)
    saved = load_model(classifiers[kind], AutoModelForSequenceClassification)
    encoder = {name: value for name, value in saved.base_model.state_dict().items() if "dropout" not in name}
    for name, value in parts.network.base_model.state_dict().items():
        assert torch.equal(value, encoder[name]), name
    assert [parts.network.config.id2label[index] for index in range(2)] == list(rows.features["label"].names)
    assert f"{classifiers[kind]} is a classifier: its encoder is taken, the head is new" in said


def test_a_new_head_of_the_same_labels_is_new(classifiers):
    rows = table(reviews(12, labels=("bad", "fair", "good")), names=("bad", "fair", "good"))
    saved = load_model(classifiers["bert"], AutoModelForSequenceClassification)
    kept, new = (built(classifiers["bert"], rows, new_head=value)[0].network for value in (False, True))
    assert torch.equal(kept.classifier.weight, saved.classifier.weight)
    assert not torch.equal(new.classifier.weight, saved.classifier.weight)


def test_a_new_head_may_be_of_another_kind_and_trains_to_a_classifier_that_predicts(classifiers, tmp_path):
    rows = table(reviews(24))
    result = train_classifier(
        rows,
        rows,
        model=str(classifiers["bert"]),
        output_dir=tmp_path / "new",
        settings=ClassifierSettings(**QUICK, new_head=True, head="mean-pooling"),
        context=heard()[1],
    )
    assert Predictor.load(result.path).label_names == ["bad", "good"]
    with pytest.raises(ArtifactError, match="is a classifier with a head of its own, which cannot become a mean-pool"):
        built(
            classifiers["bert"],
            table(reviews(24, labels=("bad", "fair", "good")), names=("bad", "fair", "good")),
            head="mean-pooling",
        )


def test_the_thresholds_of_the_old_labels_go_with_their_head(tiny_multi_label_folder):
    rows = table(reviews(12))
    with pytest.raises(ArtifactError, match="is a classifier of .*: for other labels put a new head on its encoder"):
        built(tiny_multi_label_folder, rows)
    assert thresholds_of(built(tiny_multi_label_folder, rows, new_head=True)[0].network.config) is None


@pytest.mark.parametrize("new_head", [False, True])
def test_new_head_means_nothing_for_a_model_without_one(tiny_language_model_folder, new_head):
    assert built(tiny_language_model_folder, table(reviews(12)), new_head=new_head)[0].label_names == ["bad", "good"]


ONE = {"id2label": {"0": "LABEL_0"}, "problem_type": None}


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (
            {"problem_type": "regression"},
            "is a regression model (problem_type in config.json): it gives a text num",
        ),
        (ONE, "has one output ('LABEL_0'), which is a number (a rating, a similarity), not a label: every text"),
    ],
)
def test_a_model_that_gives_numbers_is_refused_in_training_and_prediction_but_its_encoder_taken(
    classifiers, tmp_path, entries, words
):
    folder = tmp_path / "numbers"
    saved = load_model(classifiers["bert"], AutoModelForSequenceClassification)
    if entries is ONE:
        saved.classifier = torch.nn.Linear(16, 1)
    saved.save_pretrained(folder)
    changed(folder, **entries)
    encoder_tokenizer().save_pretrained(folder)
    for use in (Predictor.load, lambda folder: built(folder, table(reviews(12)))):
        with pytest.raises(
            ArtifactError, match=f"{re.escape(words)}.* or .*train one from its encoder {re.escape(NEW_HEAD)}"
        ):
            use(folder)
    assert built(folder, table(reviews(12)), new_head=True)[0].label_names == ["bad", "good"]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (
            {"id2label": {"0": "a", "1": None, "2": "c"}},
            "label 1 of id2label in config.json is None, which is not",
        ),
        (
            {"id2label": {"0": "a", "1": 3, "2": "c"}},
            "label 1 of id2label in config.json is 3, which is not",
        ),
        (
            {"id2label": {"0": "a", "1": "b", "2": "a"}},
            "label 2 of id2label in config.json is 'a', which is there",
        ),
        (
            {"problem_type": "several"},
            "problem_type in config.json is 'several'; allowed are single_label",
        ),
        (
            {"thresholds": [0.5, 0.5]},
            "thresholds in config.json must be 3 numbers in 0..1, one per label, got",
        ),
        ({"thresholds": [0.5, 0.5, float("nan")]}, "thresholds in config.json must be 3 numbers in 0..1"),
        ({"thresholds": [0.5, 0.5, 2]}, "thresholds in config.json must be 3 numbers in 0..1"),
        ({"thresholds": [0.5, 0.5, "x"]}, "thresholds in config.json must be 3 numbers in 0..1"),
        ({"thresholds": 0.5}, "thresholds in config.json must be 3 numbers in 0..1"),
        (
            {"max_length": "x"},
            "max_length among its ulmfit_pipe entries in config.json is 'x', which does not define",
        ),
        ({"max_length": -1}, "max_length among its ulmfit_pipe entries in config.json is -1"),
        ({"max_length": True}, "max_length among its ulmfit_pipe entries in config.json is True"),
        ({"max_length": ...}, "max_length among its ulmfit_pipe entries in config.json is 'missing'"),
        ({"max_length": 900}, "by config.json texts are read to 900 tokens, the model reads 64"),
        ({"window_length": 9}, "long_documents among its ulmfit_pipe entries in config.json is 'truncate'"),
        ({"long_documents": "all"}, "long_documents among its ulmfit_pipe entries in config.json is 'all'"),
        ({"window_overlap": 1.5}, "window_overlap among its ulmfit_pipe entries in config.json is 1.5"),
        ({"longest": "x"}, "longest among its ulmfit_pipe entries in config.json is 'x'"),
    ],
)
def test_labels_thresholds_and_lengths_that_were_changed_by_hand_are_named(classifiers, tmp_path, entries, words):
    folder = shutil.copytree(classifiers["bert"], tmp_path / "m")
    (folder / "stage.json").unlink()
    (name,) = entries
    if name in ("id2label", "problem_type"):
        changed(folder, **entries)
    else:
        notes = json.loads((folder / "config.json").read_text())["ulmfit_pipe"]
        kept = {key: value for key, value in {**notes, **entries}.items() if value is not ...}
        changed(folder, ulmfit_pipe=kept)
    with pytest.raises(ArtifactError, match=re.escape(words)) as found:
        Predictor.load(folder)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("kind", "entries", "settings"),
    [
        ("awd_lstm", {"hidden_size": 900_000}, {"new_head": True}),
        ("bert", {"hidden_size": 900_000}, {"new_head": True, "head": "mean-pooling"}),
        ("bert", {"intermediate_size": 900_000, "hidden_size": 400}, {"from_scratch": True}),
    ],
)
def test_sizes_that_cannot_be_those_of_the_weights_are_refused_before_a_head_is_built(
    classifiers, tmp_path, kind, entries, settings
):
    folder = changed(shutil.copytree(classifiers[kind], tmp_path / "m"), **entries)
    (folder / "stage.json").unlink(missing_ok=True)
    names = ("bad", "fair", "good")
    with pytest.raises(ArtifactError, match=r"config.json describes a network of [\d,]{11,} weights, its files hold"):
        built(folder, table(reviews(12, labels=names), names=names), **settings)
