"""Texts in, labels and scores out: order, independence, any length, and every folder that must be refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, log_loss

from tests.support.tiny_runs import reviews, table
from ulmfit_pipe.data.text.tokenization import train_tokenizer
from ulmfit_pipe.stages.artifacts import ArtifactError
from ulmfit_pipe.text.predict.predictor import Predictor

WORDS = "the film was dull and its ending duller a warm funny story about three brothers nobody expected".split()


def make_texts(count: int, *, longest: int, seed: int = 0) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, size=random.integers(1, longest))) for _ in range(count)]


@pytest.fixture(scope="module")
def predictor(tiny_classifier_folder):
    return Predictor.load(tiny_classifier_folder)


@pytest.fixture(scope="module")
def multi_label_predictor(tiny_multi_label_folder):
    return Predictor.load(tiny_multi_label_folder)


@pytest.fixture
def classifier_copy(tiny_classifier_folder, tmp_path):
    return shutil.copytree(tiny_classifier_folder, tmp_path / "copy")


def scores_of(rows: list[dict]) -> np.ndarray:
    return np.array([list(row["scores"].values()) for row in rows])


def labelled(texts, labels, feature) -> Dataset:
    return Dataset.from_dict(
        {"text": texts, "label": labels}, features=Features({"text": Value("string"), "label": feature})
    )


# What comes out


def test_a_label_below_the_score_asked_for_is_none_and_its_score_is_kept(predictor):
    texts = make_texts(30, longest=20)
    plain = predictor.predict(texts)
    cut = sorted(row["score"] for row in plain)[10]
    found = predictor.predict(texts, abstain_below=cut)
    assert [row["label"] is None for row in found] == [row["score"] < cut for row in plain]
    assert sum(row["label"] is None for row in found) == 10
    assert [row | {"label": 0} for row in found] == [row | {"label": 0} for row in plain]


def test_a_score_to_abstain_below_must_have_a_meaning(predictor, multi_label_predictor):
    with pytest.raises(ValueError, match=r"abstain_below must lie in 0..1, got 80; 0.8 leaves out labels below .8"):
        predictor.predict(["It works."], abstain_below=80)
    with pytest.raises(ValueError, match=r"abstain_below 0.8 is for one label a text, .* leave abstain_below out"):
        multi_label_predictor.predict([], abstain_below=0.8)


def test_a_row_holds_the_best_label_its_score_and_all_scores(predictor):
    (row,) = predictor.predict(["It works."])
    assert list(row) == ["label", "score", "scores"]
    assert list(row["scores"]) == ["bad", "fair", "good"]
    assert sum(row["scores"].values()) == pytest.approx(1, abs=1e-6)
    assert row["score"] == max(row["scores"].values()) == row["scores"][row["label"]]
    json.dumps(row)


def test_the_order_is_kept_for_texts_of_mixed_lengths(predictor):
    texts = make_texts(61, longest=150)
    together = predictor.predict(texts)
    alone = [predictor.predict([text])[0] for text in texts]
    assert [row["label"] for row in together] == [row["label"] for row in alone]
    assert np.abs(scores_of(together) - scores_of(alone)).max() < 1e-5
    shuffled = np.roll(scores_of(alone), 1, axis=0)
    assert np.abs(scores_of(together) - shuffled).max() > 1e-3  # another order would show


def test_a_text_gets_the_same_result_whatever_its_neighbours(predictor):
    text = make_texts(1, longest=60, seed=5)[0]
    alone = scores_of(predictor.predict([text]))[0]
    for neighbours in (["No."], make_texts(7, longest=400, seed=1), make_texts(300, longest=5, seed=2)):
        rows = predictor.predict([*neighbours, text, *neighbours])
        assert np.abs(scores_of(rows)[len(neighbours)] - alone).max() < 1e-5


def test_a_text_of_20_000_tokens_is_read_whole(save_tiny_classifier, tmp_path):
    predictor = Predictor.load(save_tiny_classifier(tmp_path / "model", bptt=70, gradient_window=140))
    filler = " ".join(make_texts(1, longest=30, seed=3) * 4000)
    assert len(predictor.tokenizer.encode_documents([filler])[0]) > 20_000
    long, other, short = predictor.predict([filler, "Nobody expected this! " + filler, "It works."])
    assert long["scores"] != other["scores"]
    assert short["scores"] == pytest.approx(predictor.predict(["It works."])[0]["scores"], abs=1e-5)


def test_an_empty_list_gives_an_empty_list(predictor):
    assert predictor.predict([]) == []


def test_a_generator_and_a_tuple_are_lists_too(predictor):
    assert predictor.predict(text for text in ("It works.",)) == predictor.predict(("It works.",))


def test_scores_do_not_change_from_call_to_call_even_after_training_mode(predictor):
    first = predictor.predict(["It works."])
    predictor.models[0].train()
    assert predictor.predict(["It works."]) == first


# Multi-label


def test_multi_label_gives_every_label_that_reaches_its_threshold(multi_label_predictor):
    thresholds = {"funny": 0.3, "long": 0.45, "sad": 0.5, "warm": 0.55}
    rows = multi_label_predictor.predict(make_texts(40, longest=40))
    for row in rows:
        assert row["label"] == [name for name, value in row["scores"].items() if value >= thresholds[name]]
        if row["label"]:
            assert row["score"] == min(row["scores"][name] for name in row["label"])
    assert len({tuple(row["label"]) for row in rows}) > 1


def test_multi_label_without_any_label_gives_an_empty_list_and_the_highest_score(save_tiny_classifier, tmp_path):
    folder = save_tiny_classifier(
        tmp_path / "model", problem_type="multi_label_classification", thresholds=[1.0, 1.0, 1.0]
    )
    (row,) = Predictor.load(folder).predict(["It works."])
    assert row["label"] == []
    assert row["score"] == max(row["scores"].values())


def test_multi_label_without_chosen_thresholds_takes_one_half(save_tiny_classifier, tmp_path):
    folder = save_tiny_classifier(tmp_path / "model", problem_type="multi_label_classification")
    assert Predictor.load(folder).thresholds == [0.5, 0.5, 0.5]


# Two models averaged


def test_a_backward_folder_is_averaged_with_the_forward_one(classifier_copy, save_tiny_classifier, tmp_path):
    backward = save_tiny_classifier(tmp_path / "backward", seed=1, direction="backward")
    texts = make_texts(9, longest=50)
    alone = [scores_of(Predictor.load(folder).predict(texts)) for folder in (classifier_copy, backward)]
    shutil.copytree(backward, classifier_copy / "backward")
    together = Predictor.load(classifier_copy)
    assert [model.config.direction for model in together.models] == ["forward", "backward"]
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    assert np.abs(scores_of(together.predict(texts)) - (alone[0] + alone[1]) / 2).max() < 1e-6


def test_an_ensemble_of_other_labels_is_refused(classifier_copy, save_tiny_classifier):
    save_tiny_classifier(classifier_copy / "backward", labels=("good", "fair", "bad"))
    with pytest.raises(ArtifactError, match="labels good, fair, bad, the classifier it is averaged with has bad, fair"):
        Predictor.load(classifier_copy)


def test_an_ensemble_of_another_vocabulary_is_refused(classifier_copy, save_tiny_classifier):
    save_tiny_classifier(classifier_copy / "backward")
    config = json.loads((classifier_copy / "backward" / "config.json").read_text())
    (classifier_copy / "backward" / "config.json").write_text(json.dumps({**config, "vocab_hash": "0" * 64}))
    with pytest.raises(ArtifactError, match="backward was trained with another vocabulary than the classifier"):
        Predictor.load(classifier_copy)


# Scores of a labelled table, against scikit-learn on the gathered predictions


def test_score_equals_scikit_learn_on_the_predictions(predictor):
    texts, random = make_texts(53, longest=90), np.random.default_rng(4)
    labels = random.integers(0, 3, size=53)
    rows = predictor.predict(texts)
    guesses = [predictor.label_names.index(row["label"]) for row in rows]
    assert predictor.score(labelled(texts, labels, ClassLabel(names=["bad", "fair", "good"]))) == pytest.approx(
        {
            "accuracy": accuracy_score(labels, guesses),
            "macro_f1": f1_score(labels, guesses, average="macro"),
            "loss": log_loss(labels, scores_of(rows), labels=[0, 1, 2]),
            "n": 53,
        },
        abs=1e-6,
    )


def test_multi_label_score_equals_scikit_learn_on_the_predictions(multi_label_predictor):
    texts, random = make_texts(47, longest=60), np.random.default_rng(4)
    truth = random.random((47, 4)) < 0.4
    names = multi_label_predictor.label_names
    rows = multi_label_predictor.predict(texts)
    guesses = np.array([[name in row["label"] for name in names] for row in rows])
    scores = scores_of(rows)
    table = labelled(texts, [np.flatnonzero(row).tolist() for row in truth], List(ClassLabel(names=names)))
    loss = -np.where(truth, np.log(scores), np.log1p(-scores)).mean()
    assert multi_label_predictor.score(table) == pytest.approx(
        {
            "accuracy": accuracy_score(truth, guesses),
            "micro_f1": f1_score(truth, guesses, average="micro"),
            "macro_f1": f1_score(truth, guesses, average="macro"),
            "mean_average_precision": average_precision_score(truth, scores, average="macro"),
            "loss": loss,
            "n": 47,
        },
        abs=1e-6,
    )


def test_the_answers_to_a_scored_table_are_those_that_predict_gives(predictor, multi_label_predictor, monkeypatch):
    texts = make_texts(30, longest=40, seed=5)
    single = labelled(texts, [0] * 30, ClassLabel(names=["bad", "fair", "good"]))
    several = labelled(texts, [[0]] * 30, List(ClassLabel(names=list(multi_label_predictor.label_names))))
    for model, rows_given in ((predictor, single), (multi_label_predictor, several)):
        found, rows = model.score_rows(rows_given)[1], model.predict(texts)
        answers = [[model.label_names[label] for label in np.flatnonzero(row)] for row in found.answers]
        if not model.multi_label:
            answers = [model.label_names[label] for label in found.answers]
        assert answers == [row["label"] for row in rows]
        assert list(found.scores) == pytest.approx([row["score"] for row in rows])
        assert found.probabilities == pytest.approx(scores_of(rows))
    monkeypatch.setattr("ulmfit_pipe.text.predict.predictor.MOST_SCORED", 2)
    assert predictor.score_rows(single)[1].probabilities is None


def test_a_table_with_its_labels_in_another_order_is_not_scored(predictor):
    table = labelled(["It works."], [0], ClassLabel(names=["good", "fair", "bad"]))
    with pytest.raises(ValueError, match="labels are good, fair, bad, the classifier's are bad, fair"):
        predictor.score(table)


def test_a_table_without_labels_is_not_scored(predictor):
    with pytest.raises(ValueError, match=r"no column 'label' to score against; it has text"):
        predictor.score(Dataset.from_dict({"text": ["It works."]}))


# Texts that are refused


def test_a_bare_string_is_refused(predictor):
    with pytest.raises(TypeError, match=r"takes a list of texts, got one string; write predict\(\[text\]\)"):
        predictor.predict("It works.")


@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_an_empty_text_is_named(predictor, text):
    with pytest.raises(ValueError, match=r"text 2 \(counted from 0\) is empty"):
        predictor.predict(["It works.", "So does this.", text])


def test_what_is_no_string_is_named(predictor):
    with pytest.raises(TypeError, match=r"text 1 \(counted from 0\) is NoneType, not a string"):
        predictor.predict(["It works.", None])


def test_a_model_whose_weights_are_not_numbers_is_named_not_believed(tiny_classifier_folder):
    predictor = Predictor.load(tiny_classifier_folder)
    with torch.no_grad():
        predictor.models[0].classifier.blocks[1].linear.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"no number for row 0 \(counted from 0\): its weights hold NaN or infinity"):
        predictor.predict(["It works.", "So does this."])


# Folders that are refused


def test_the_tokenizer_of_another_model_is_refused_by_its_hash_though_it_has_the_same_size(classifier_copy, tmp_path):
    backend = classifier_copy / "ulmfit_tokenizer.json"
    content = json.loads(backend.read_text())
    entries = content["model"]["vocab"]
    entries[-1], entries[-2] = entries[-2], entries[-1]
    backend.write_text(json.dumps(content))
    with pytest.raises(
        ArtifactError, match="does not belong to the model: its vocabulary hash is .* copy the tokenizer"
    ):
        Predictor.load(classifier_copy)


def test_a_tokenizer_that_is_missing_is_named(classifier_copy):
    (classifier_copy / "ulmfit_tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match="ulmfit_tokenizer.json"):
        Predictor.load(classifier_copy)


@pytest.mark.parametrize("kept", [0, 5, 700])
def test_weights_that_were_cut_short_are_refused(classifier_copy, kept):
    weights = classifier_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ArtifactError, match="cannot be loaded: model.safetensors was cut short"):
        Predictor.load(classifier_copy)


def test_weights_without_a_head_are_refused_not_filled_with_random_ones(classifier_copy):
    weights = classifier_copy / "model.safetensors"
    tensors = {name: value for name, value in load_file(weights).items() if not name.startswith("classifier.")}
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"lack classifier\..* so it is not a trained classifier"):
        Predictor.load(classifier_copy)


def test_a_language_model_is_refused(tiny_language_model_folder):
    with pytest.raises(ArtifactError, match="is a language model, which knows no labels: train a classifier from it"):
        Predictor.load(tiny_language_model_folder)


def test_a_bare_encoder_is_refused(tiny_classifier_folder, tmp_path):
    folder = shutil.copytree(tiny_classifier_folder, tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["AwdLstmModel"]}))
    with pytest.raises(ArtifactError, match=r"is not a classifier but \['AwdLstmModel'\]; give the folder of a"):
        Predictor.load(folder)


def test_the_folder_of_a_whole_run_names_its_classifier(tiny_classifier_folder, tmp_path):
    shutil.copytree(tiny_classifier_folder, tmp_path / "run" / "classifier")
    with pytest.raises(
        ArtifactError, match=r"is the folder of a whole run; did you mean its classifier, .*classifier\?"
    ):
        Predictor.load(tmp_path / "run")


def test_a_pickle_is_refused(tmp_path):
    (tmp_path / "model.pth").write_bytes(b"\x80\x04.")
    with pytest.raises(
        ArtifactError, match=r"model.pth is a pickled checkpoint \(.pth\), which can run code when read"
    ):
        Predictor.load(tmp_path / "model.pth")


def test_weights_that_are_pickled_inside_a_folder_are_refused(classifier_copy):
    (classifier_copy / "model.safetensors").unlink()
    torch.save({}, classifier_copy / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        Predictor.load(classifier_copy)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="there is no folder '.*nowhere'; give the folder that a stage wrote"):
        Predictor.load(tmp_path / "nowhere")


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"holds no model \(no config.json\)"):
        Predictor.load(tmp_path)


def test_a_tokenizer_of_another_kind_is_refused(classifier_copy):
    other = train_tokenizer(["one two three four five"] * 5, kind="word")
    other.save_pretrained(classifier_copy)
    with pytest.raises(ArtifactError, match="does not belong to the model"):
        Predictor.load(classifier_copy)


def test_labels_come_back_in_the_type_that_training_had(tmp_path, save_tiny_classifier):
    for labels, kind, wanted in (
        (("0", "1"), "int", [0, 1]),
        (("False", "True"), "bool", [False, True]),
        (("0", "1"), None, ["0", "1"]),
        (("neg", "pos"), "int", ["neg", "pos"]),  # renamed by hand in config.json
    ):
        folder = save_tiny_classifier(tmp_path / f"{kind}{labels}", labels=labels, ulmfit_pipe={"label_type": kind})
        predictor = Predictor.load(folder)
        (row,) = predictor.predict(["It works."])
        assert (list(row["scores"]), [type(label) for label in row["scores"]]) == (wanted, [type(wanted[0])] * 2)
        assert row["score"] == row["scores"][row["label"]]
        assert predictor.label_names == list(labels)


@pytest.mark.parametrize("name", [None, "", " "])
def test_a_label_without_a_name_is_refused(tiny_classifier_folder, tmp_path, name):
    folder = shutil.copytree(tiny_classifier_folder, tmp_path / "nameless")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"]["1"] = name
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=f"label 1 of id2label in config.json is {name!r}, which is not a name"):
        Predictor.load(folder)


def test_tables_are_scored_by_labels_compared_clean(tmp_path, save_tiny_classifier):
    folder = save_tiny_classifier(tmp_path / "old", labels=("bad ", "good"))  # as an older version trained them
    assert Predictor.load(folder).score(table(reviews(4)))["n"] == 4


def test_integers_in_place_of_weights_are_refused(tiny_classifier_folder, tmp_path):
    folder = shutil.copytree(tiny_classifier_folder, tmp_path / "rounded")
    weights = load_file(folder / "model.safetensors")
    name = "classifier.blocks.0.linear.weight"
    weights[name] = weights[name].round().to(torch.int64)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ArtifactError, match=r"linear.weight is stored as I64, weights must be one of F64, .*; take another save"
    ):
        Predictor.load(folder)
