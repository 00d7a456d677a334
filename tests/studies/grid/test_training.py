"""What a cell does, on a model of a few thousand weights and tables of a few dozen rows."""

import dataclasses

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from tests.support.tiny_runs import heard, reviews, table
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.studies.grid import training as grid_training
from ulmfit_pipe.studies.grid.cells import Cell, CellFolder, recipe_of
from ulmfit_pipe.studies.grid.tables import LabelledTables
from ulmfit_pipe.studies.grid.training import (
    Training,
    chosen_rate,
    outcome_of,
    phases_of,
    run_training,
    tfidf_identity,
    tfidf_outcome,
    total_epochs,
)
from ulmfit_pipe.text import classifier
from ulmfit_pipe.text.classifier import train_classifier
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.text.scores.tfidf import folds_of
from ulmfit_pipe.training.loop import NonFiniteLossError

TRAIN, TEST = table(reviews(24)), table(reviews(12, seed=5))
SETTINGS = ClassifierSettings(plan="gradual", epochs_per_phase=1, final_epochs=2, lr=5e-3)
CELL = Cell("ulmfit", 24, 0, 12)


@pytest.fixture
def training(tiny_language_model_folder):
    return Training(TRAIN, TEST, str(tiny_language_model_folder), SETTINGS, heard()[1])


def run(training, place, **settings):
    return run_training(CellFolder(place / "cells"), CELL, training, models=place / "models", say=str, **settings)


def test_a_cell_holds_the_last_epochs_scores_and_probabilities_and_leaves_no_model(training, tmp_path):
    record = run(training, tmp_path)
    train_classifier(
        TRAIN,
        None,
        model=training.model,
        output_dir=tmp_path / "direct",
        settings=dataclasses.replace(SETTINGS, keep="last"),
        context=heard()[1],
    )
    predictor = Predictor.load(tmp_path / "direct")
    assert np.array_equal(
        CellFolder(tmp_path / "cells").probabilities(CELL), predictor.probabilities(predictor.tokenize(TEST))
    )
    scores = predictor.score(TEST)
    assert {name: record[name] for name in ("accuracy", "macro_f1")} == pytest.approx(
        {name: scores[name] for name in ("accuracy", "macro_f1")}
    )
    assert record["error"] == pytest.approx(1 - scores["accuracy"])
    assert (record["rows"], record["n"], record["lr"], record["epochs"]) == (24, 12, 5e-3, 5)
    assert record["steps"] == 5 * 3  # five epochs of three batches of eight
    assert record["seconds"] > 0
    assert "learning rates" in record["plan"]
    assert list((tmp_path / "models").iterdir()) == []


def test_the_tokens_of_a_cell_are_those_it_trained_on(training, tmp_path, tiny_tokenizer):
    record = run(training, tmp_path)
    read = 5 * sum(len(ids) for ids in tiny_tokenizer.encode_documents(TRAIN["text"][:]))
    assert record["tokens"] == pytest.approx(read, rel=0.2)  # from a speed, which leaves out what is around an epoch


def test_a_model_is_kept_where_asked_and_tested_again_without_training(training, tmp_path, monkeypatch):
    run(training, tmp_path, keep_model=True)
    assert [folder.name.rsplit("-", 1)[0] for folder in (tmp_path / "models").iterdir()] == ["ulmfit_24_seed0"]
    monkeypatch.setattr(classifier, "build_classifier_learner", None)  # training would fail
    other = dataclasses.replace(training, test=table(reviews(6, seed=8)))
    cell = dataclasses.replace(CELL, test_rows=6)
    folder = CellFolder(tmp_path / "cells")
    assert run_training(folder, cell, other, models=tmp_path / "models", keep_model=True, say=str)["n"] == 6
    assert len(folder.records()) == 2


def test_a_model_left_by_a_killed_run_of_other_settings_is_removed(training, tmp_path):
    (tmp_path / "models" / f"{CELL.training}-0123456789ab").mkdir(parents=True)
    (tmp_path / "models" / "ulmfit_240_seed0-0123456789ab").mkdir()
    run(training, tmp_path)
    assert [folder.name for folder in (tmp_path / "models").iterdir()] == ["ulmfit_240_seed0-0123456789ab"]


def test_rows_model_settings_seed_and_test_rows_are_the_identity(training):
    own = training.identity()
    assert own["settings"]["keep"] == "last"
    others = dataclasses.replace(training, train=table(reviews(24, seed=1)), context=RunContext(seed=1))
    assert recipe_of(others.identity()) == recipe_of(own)
    changes = [
        {"train": table(reviews(24, seed=1))},
        {"test": TRAIN},
        {"settings": dataclasses.replace(SETTINGS, lr=1e-3)},
        {"context": RunContext(seed=1)},
        {"context": RunContext(mixed_precision="bf16")},
    ]
    assert all(dataclasses.replace(training, **change).identity() != own for change in changes)
    assert dataclasses.replace(training, settings=dataclasses.replace(SETTINGS, num_workers=2)).identity() == own


def test_scores_count_every_class_of_the_table():
    test = table([("a", "bad"), ("b", "good"), ("c", "good"), ("d", "good")])
    outcome = outcome_of(np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]]), test, {})
    assert outcome.scores["accuracy"] == 0.75
    assert outcome.scores["error"] == 0.25
    bad, good = 2 * 1 / (2 * 1 + 1), 2 * 2 / (2 * 2 + 1)  # 2 tp / (2 tp + fp + fn)
    assert outcome.scores["macro_f1"] == pytest.approx((bad + good) / 2)


# ---- learning rates


@pytest.fixture
def trials(monkeypatch, training, tmp_path):
    """Return a function that chooses among rates whose errors are given, and the trainings it asked for."""
    asked = []
    tables = LabelledTables(TRAIN, TRAIN, TEST, TEST, TEST)

    def choose(errors, *, size=24):
        def faked(_folder, cell, trial, **_settings):
            asked.append((cell, trial))
            error = errors[trial.settings.lr]
            if error is None:
                raise NonFiniteLossError("the loss became nan")
            return {"error": error}

        monkeypatch.setattr(grid_training, "run_training", faked)
        said = []
        rate = chosen_rate(
            tables,
            list(errors),
            method="scratch",
            size=size,
            training=training,
            folder=CellFolder(tmp_path / "rates"),
            models=tmp_path / "models",
            say=said.append,
        )
        return rate, said

    return choose, asked


def test_the_rate_with_the_lowest_development_error_is_chosen(trials):
    choose, asked = trials
    rate, said = choose({1e-2: 0.3, 2.5e-3: 0.25, 5e-3: 0.2})
    assert rate == 5e-3
    assert said == [
        "scratch, 24 labels: learning rate 0.005 chosen by development error "
        "(0.0025: 25.00 %, 0.005: 20.00 %, 0.01: 30.00 %)"
    ]
    assert [cell.name for cell, _ in asked] == [f"scratch-lr{rate}_24_seed0_test12" for rate in (0.0025, 0.005, 0.01)]
    assert all(trial.test["text"][:] == TEST["text"][:] for _, trial in asked)


def test_a_tie_goes_to_the_lower_rate_and_a_diverged_loss_loses(trials):
    choose, _ = trials
    assert choose({1e-2: 0.2, 5e-3: 0.2})[0] == 5e-3
    assert choose({1e-2: 0.6, 5e-3: None})[0] == 1e-2


def test_one_rate_is_taken_without_a_trial(trials):
    choose, asked = trials
    assert choose({1e-2: 0.9}) == (1e-2, [])
    assert asked == []


def test_for_all_rows_the_choice_trains_on_nine_tenths(trials):
    choose, asked = trials
    _, said = choose({1e-2: 0.3, 5e-3: 0.4}, size=0)
    assert [(len(trial.train), len(trial.test)) for _, trial in asked] == [(22, 2), (22, 2)]
    assert said[0].startswith("scratch, all labels: learning rate 0.01 chosen")


# ---- epochs


def test_all_phases_are_counted(tiny_language_model_folder):
    phases = phases_of(str(tiny_language_model_folder), SETTINGS, RunContext(), rows=24)
    assert [phase.name for phase in phases] == ["last 1", "last 2", "last 3", "all"]
    assert total_epochs(phases) == 3 * 1 + 2


# ---- TF-IDF


def test_a_tfidf_cell_equals_scikit_learn_used_directly():
    outcome = tfidf_outcome(TRAIN, TEST, seed=3)
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    regression = LogisticRegression(C=outcome.details["C"], max_iter=2000)
    regression.fit(vectorizer.fit_transform(TRAIN["text"][:]), TRAIN["label"][:])
    direct = regression.predict_proba(vectorizer.transform(TEST["text"][:]))
    np.testing.assert_allclose(outcome.probabilities, direct, atol=1e-12)
    assert outcome.scores["accuracy"] == regression.score(vectorizer.transform(TEST["text"][:]), TEST["label"][:])
    macro = f1_score(TEST["label"][:], direct.argmax(axis=1), average="macro")
    assert outcome.scores["macro_f1"] == pytest.approx(macro)
    assert outcome.details["rows"] == 24


def test_c_is_chosen_by_as_many_stratified_folds_as_the_rows_allow():
    folds = [len(folds_of(np.repeat([0, 1], count), seed=0)) for count in (2, 3, 5, 50)]
    assert folds == [2, 3, 5, 5]


def test_a_class_of_few_rows_is_no_hindrance_and_warns_of_nothing(recwarn):
    rows = [*reviews(12), *reviews(1, labels=("fair",))]
    names = ("bad", "fair", "good")
    outcome = tfidf_outcome(table(rows, names), table(reviews(9, labels=names), names), seed=0)
    assert outcome.probabilities.shape == (9, 3)
    assert not [warning for warning in recwarn if "populated" in str(warning.message)]


def test_a_class_without_a_labelled_row_has_probability_0():
    names = ("bad", "fair", "good")
    outcome = tfidf_outcome(table(reviews(10), names), table(reviews(9, labels=names), names), seed=0)
    assert outcome.probabilities[:, 1].tolist() == [0.0] * 9
    np.testing.assert_allclose(outcome.probabilities.sum(axis=1), 1)


def test_the_tfidf_cell_depends_on_rows_seed_and_test_rows():
    own = tfidf_identity(TRAIN, TEST, seed=0)
    assert own != tfidf_identity(TEST, TEST, seed=0)
    assert own != tfidf_identity(TRAIN, TRAIN, seed=0)
    assert own != tfidf_identity(TRAIN, TEST, seed=1)
