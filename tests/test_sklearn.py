"""The estimator in scikit-learn's hands: its conventions, its tools, its pickles, and nothing printed or left."""

import copy
import gc
import io
import os
import pickle
import re
from dataclasses import replace

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from datasets import Dataset
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import DataConversionWarning, NotFittedError, SkipTestWarning
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

from tests.support.tiny_models import quick_training, tiny_language_model_folder, tiny_tokenizer  # noqa: F401
from tests.support.tiny_runs import CLASSIFIER, LM, folder_bytes, reviews
from ulmfit_pipe import TextPipeline
from ulmfit_pipe.sklearn import UlmfitClassifier

TEXTS, LABELS = map(list, zip(*reviews(36), strict=True))
NUMBERS = [int(label == "good") for label in LABELS]
HEAD = {"plan": "head", "final_epochs": 1, "batch_size": 8}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Stand in an empty folder, and have another one for temporary files; nothing may be left in either."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for name in ("tmp", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path
    assert os.listdir(tmp_path / "here") == []


@pytest.fixture
def estimator(tiny_language_model_folder):  # noqa: F811
    """Return an estimator that trains a head in a third of a second."""
    return UlmfitClassifier(str(tiny_language_model_folder), fine_tune_language_model=False, classifier=HEAD)


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["bad", "good"], ["bad", "good"]),
        ([9, 10], ["9", "10"]),
        ([False, True], ["False", "True"]),
        ([9.0, 10.0], ["9.0", "10.0"]),  # the saved classifier sorts these as text
        (["z", "\u00e4"], ["z", "\u00e4"]),
    ],
    ids=lambda each: type(each[0]).__name__,
)
def test_classes_come_back_as_they_were_given_in_the_order_of_their_probabilities(classes, names, estimator):
    y = np.array(classes)[NUMBERS]
    fitted = estimator.fit(TEXTS, y)
    assert fitted is estimator
    assert fitted.classes_.tolist() == classes and fitted.classes_.dtype == y.dtype
    probabilities, found = fitted.predict_proba(TEXTS), fitted.predict(TEXTS)
    assert probabilities.shape == (36, 2) and probabilities.dtype == np.float64
    assert probabilities.sum(axis=1) == pytest.approx(1)
    assert found.dtype == y.dtype and (found == fitted.classes_[probabilities.argmax(axis=1)]).all()
    assert fitted.score(TEXTS, y) == (found == y).mean()
    rows = TextPipeline.load(fitted.folder_).predict(TEXTS)
    assert [
        [row["scores"][label] for label in (classes if type(classes[0]) is not float else names)] for row in rows
    ] == (probabilities.tolist())
    assert {type(row["label"]) for row in rows} == {type(classes[0]) if type(classes[0]) is not float else str}


def test_texts_are_taken_in_every_form_of_one_column(estimator):
    expected = estimator.fit(TEXTS, LABELS).predict_proba(TEXTS)
    assert not hasattr(estimator, "n_features_in_")
    column = np.array(TEXTS, dtype=object)
    forms = {
        "tuple": tuple(TEXTS),
        "array": np.array(TEXTS),
        "Series": pd.Series(TEXTS, index=range(36, 72)),
        "Dataset": Dataset.from_dict({"x": TEXTS}),
        "column of a Dataset": Dataset.from_dict({"x": TEXTS})["x"],
        "DataFrame": pd.DataFrame({"x": TEXTS}),
        "(n, 1)": column[:, None],
        "lists": [[text] for text in TEXTS],
    }
    for name, form in forms.items():
        assert (estimator.predict_proba(form) == expected).all(), name
    assert (clone(estimator).fit(forms["DataFrame"], pd.Series(LABELS)).predict_proba(column) == expected).all()
    with pytest.warns(DataConversionWarning, match="A column-vector y was passed when a 1d array was expected"):
        assert clone(estimator).fit(forms["(n, 1)"], np.array(LABELS)[:, None]).n_features_in_ == 1


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ([], "X has 0 sample(s) while a minimum of 1 is required"),
        (pd.DataFrame({"x": TEXTS, "z": TEXTS}), "X has 2 columns; give the one column of texts, such as X['text']"),
        (np.array([["a", "b"]] * 36), "X has 2 columns"),
        ("a film", "X must be a list, Series or array of texts, got str"),
        ({"text": TEXTS}, "X must be a list, Series or array of texts, got dict"),
        (3, "X must be a list, Series or array of texts, got int"),
        (np.zeros((2, 2, 2)), "X must be a list, Series or array of texts, got ndarray"),
        ([*TEXTS[:-1], None], "text 35 (counted from 0) is NoneType, not a string"),
        ([*TEXTS[:-1], float("nan")], "text 35 (counted from 0) is float, not a string: nan; leave out the rows"),
        ([*TEXTS[:-1], 3], "text 35 (counted from 0) is int, not a string"),
        ([*TEXTS[:-1], " "], "text 35 (counted from 0) is empty"),
    ],
    ids=lambda each: type(each).__name__ if not isinstance(each, str) else "",
)
def test_what_are_no_texts_is_refused_by_fit_and_by_predict(texts, words, estimator, tiny_language_model_folder, place):  # noqa: F811
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        estimator.fit(texts, LABELS)
    assert os.listdir(place / "tmp") == []
    estimator.classes_, estimator._names = np.array(["a"]), ["a"]
    estimator._predictor = object()  # not asked
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        estimator.predict(texts)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (None, "requires y to be passed, but the target y is None"),
        (LABELS[:-1], "inconsistent numbers of samples: [36, 35]"),
        ([*LABELS[:-1], None], "Input y contains NaN: there is no class at position 35"),
        ([*LABELS[:-1], float("nan")], "Input y contains NaN: there is no class at position 35"),
        (pd.Series([*NUMBERS[:-1], pd.NA], dtype="Int64"), "Input y contains NaN: there is no class at position 35"),
        (np.linspace(0, 1, 36), "Unknown label type: continuous"),
        (["bad"] * 36, "y holds one class, np.str_('bad'); a classifier needs at least two classes"),
        (["good", "good\u200b"] * 18, "of y differ in invisible characters alone; write them alike"),
        (np.array([[1, 2], [3, 4]] * 18), "should be a 1d array"),
    ],
    ids=lambda each: type(each).__name__ if not isinstance(each, str) else "",
)
def test_what_are_no_classes_is_refused(classes, words, estimator, place):
    with pytest.raises(ValueError, match=re.escape(words)):
        estimator.fit(TEXTS, classes)
    assert os.listdir(place / "tmp") == []
    with pytest.raises(NotFittedError):
        estimator.predict(TEXTS)


@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_matrix, lambda matrix: matrix.astype(bool)])
def test_several_labels_are_an_indicator_matrix(form, estimator):
    matrix = np.array([[number, row % 3 == 0, 0] for row, number in enumerate(NUMBERS)])
    estimator.set_params(validation_fraction=0.25).fit(TEXTS, form(matrix))
    probabilities, found = estimator.predict_proba(TEXTS), estimator.predict(TEXTS)
    assert estimator.classes_.tolist() == [0, 1, 2]
    assert probabilities.shape == found.shape == (36, 3)
    loaded = TextPipeline.load(estimator.folder_)
    thresholds = loaded.predictor.thresholds
    assert (found == (probabilities >= thresholds)).all() and found.dtype.kind == "i"
    assert loaded.predictor.label_names == ["0", "1", "2"]
    assert estimator.score(TEXTS, matrix) == (found == matrix).all(axis=1).mean()


def test_nothing_is_printed_unless_it_is_asked_for(estimator, capfd):
    estimator.fit(TEXTS, LABELS).predict(TEXTS)
    cross_val_score(estimator, TEXTS, LABELS, cv=2)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    estimator.set_params(verbose=1).fit(TEXTS, LABELS)
    assert "rows: 36 training; labels: bad, good" in capfd.readouterr().out


def test_temporary_folders_hold_the_classifier_alone_and_go_with_the_estimator(estimator, place):
    estimator = clone(estimator).fit(TEXTS, LABELS)
    first = estimator.folder_
    assert os.listdir(os.path.dirname(first)) == ["classifier"]
    estimator.fit(TEXTS, LABELS)
    assert not os.path.exists(first) and len(os.listdir(place / "tmp")) == 1
    copies = [copy.deepcopy(estimator), pickle.loads(pickle.dumps(estimator)), clone(estimator)]
    assert len(os.listdir(place / "tmp")) == 3
    copies[0].predict(TEXTS[:1])
    del copies, estimator
    gc.collect()
    assert os.listdir(place / "tmp") == []


def test_a_folder_that_is_named_holds_the_whole_run_and_stays(estimator, place):
    fitted = clone(estimator).set_params(output_dir=place / "run").fit(TEXTS, LABELS)
    assert fitted.folder_ == str(place / "run" / "classifier")
    del fitted
    gc.collect()
    assert {"classifier", "metrics.json", "report.html", "settings.yaml"} <= {*os.listdir(place / "run")}
    assert os.listdir(place / "tmp") == []


def test_a_pickle_holds_the_files_of_the_classifier_and_no_module(estimator, place):
    estimator = clone(estimator).fit(TEXTS, LABELS)
    expected, files = estimator.predict_proba(TEXTS), folder_bytes(type(place)(estimator.folder_))
    content = pickle.dumps(estimator)
    modules = set()

    class Recorder(pickle.Unpickler):
        def find_class(self, module, name):
            modules.add(module.split(".")[0])
            return super().find_class(module, name)

    Recorder(io.BytesIO(content)).load()
    assert modules == {"ulmfit_pipe", "numpy"}
    assert files["model.safetensors"] in content
    joblib.dump(estimator, place / "estimator.joblib")
    del estimator
    gc.collect()
    assert os.listdir(place / "tmp") == []
    for again in (pickle.loads(content), joblib.load(place / "estimator.joblib")):
        assert folder_bytes(type(place)(again.folder_)) == files
        assert (again.predict_proba(TEXTS) == expected).all()
        assert (again.fit(TEXTS, LABELS).predict_proba(TEXTS) == expected).all()


def test_an_estimator_that_is_not_fitted_is_pickled_and_one_without_its_folder_is_not(estimator, place):
    again = pickle.loads(pickle.dumps(estimator))
    assert again.get_params() == estimator.get_params()
    with pytest.raises(NotFittedError):
        again.predict_proba(TEXTS)
    estimator.fit(TEXTS, LABELS)
    os.rename(estimator.folder_, place / "elsewhere")
    with pytest.raises(
        FileNotFoundError, match="the classifier's folder .* is gone, so it cannot be pickled; fit again"
    ):
        pickle.dumps(estimator)


def test_parameters_are_kept_as_they_are_and_cloned(estimator):
    given = {**estimator.get_params(), "random_state": np.random.RandomState(3), "settings": {"log_every": 5}}
    made = UlmfitClassifier(**given)
    assert all(made.get_params(deep=False)[name] is value for name, value in given.items())
    assert clone(made).get_params()["settings"] == {"log_every": 5}
    assert UlmfitClassifier().get_params()["model"] == "awd-lstm-en"


def test_one_setting_of_a_group_is_set_and_what_was_given_is_left_as_it_is(estimator):
    made = UlmfitClassifier(classifier=HEAD).set_params(classifier__lr=0.1, language_model__epochs=2, random_state=3)
    assert made.classifier == {**HEAD, "lr": 0.1} and "lr" not in HEAD
    assert (made.language_model, made.random_state) == ({"epochs": 2}, 3)
    assert made.set_params(classifier={"lr": 1}, classifier__batch_size=4).classifier == {"lr": 1, "batch_size": 4}
    assert UlmfitClassifier(classifier=CLASSIFIER).set_params(classifier__lr=0.1).classifier == replace(
        CLASSIFIER, lr=0.1
    )
    with pytest.raises(ValueError, match="Invalid parameter 'lr' for estimator UlmfitClassifier"):
        made.set_params(lr=0.1)
    with pytest.raises(ValueError, match="classifier has no setting 'lrr'; did you mean 'lr'"):
        estimator.set_params(classifier__lrr=0.1).fit(TEXTS, LABELS)


def test_a_seed_gives_the_same_result_and_another_another(estimator):
    def probabilities(random_state):
        return clone(estimator).set_params(random_state=random_state).fit(TEXTS, LABELS).predict_proba(TEXTS)

    first = probabilities(None)
    assert (probabilities(0) == first).all() and (probabilities(np.int64(0)) == first).all()
    assert not (probabilities(1) == first).all()
    drawn = [probabilities(np.random.RandomState(7)) for _ in range(2)]
    assert (drawn[0] == drawn[1]).all() and not (drawn[0] == first).all()


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"settings": {"seed": 3}}, "fit has no setting 'seed'; write UlmfitClassifier(random_state=...)"),
        ({"settings": {"preset": "paper"}}, "write UlmfitClassifier(preset=...)"),
        ({"settings": {"folds": 3}}, "fit has no setting 'folds'; write cross_val_score(estimator, X, y)"),
        ({"settings": {"min_rows_per_class": 3}}, "write fit(X, y) with the rows and the classes that count"),
        ({"settings": {"zzz": 3}}, "fit has no setting 'zzz'. There are"),
        ({"classifier": {"final_epoch": 3}}, "classifier has no setting 'final_epoch'; did you mean 'final_epochs'?"),
        ({"random_state": -1}, "seed must be 0..2**32-1, got -1"),
        ({"random_state": "x"}, "'x' cannot be used to seed"),
        ({"model": 3}, "UlmfitClassifier takes the name of a folder or model, got a int"),
        ({"preset": "fast"}, "preset must be one of auto, paper,"),
    ],
    ids=lambda each: "" if isinstance(each, str) else "-".join(each),
)
def test_parameters_that_make_no_sense_are_refused_when_it_is_fitted(parameters, words, estimator, place):
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        estimator.set_params(**parameters).fit(TEXTS, LABELS)
    assert os.listdir(place / "tmp") == []


def test_further_texts_are_for_the_language_model(place):
    more = [text for text, _ in reviews(12, seed=2)]
    (place / "more.csv").write_text("\n".join(["text", *more]))
    stages = {"language_model": LM, "classifier": CLASSIFIER}
    rows = []
    for unlabelled in (None, more, str(place / "more.csv")):
        fitted = UlmfitClassifier(None, **stages, output_dir=place / f"run{len(rows)}")
        fitted.fit(TEXTS, LABELS, unlabelled=unlabelled)
        rows.append(fitted.metrics_["language_model"]["language_model"]["perplexity"])
    assert rows[1] == rows[2] != rows[0]


# In scikit-learn's tools


def test_it_is_cross_validated(estimator):
    assert cross_val_score(estimator, pd.Series(TEXTS), LABELS, cv=3, error_score="raise").shape == (3,)
    found = cross_val_predict(estimator, np.array(TEXTS), LABELS, cv=2, method="predict_proba")
    assert found.shape == (36, 2) and found.sum(axis=1) == pytest.approx(1)


def test_its_settings_are_searched(estimator, place):
    grid = {"classifier__lr": [0.001, 0.1]}
    search = GridSearchCV(estimator, grid, cv=2, scoring="neg_log_loss", error_score="raise").fit(TEXTS, LABELS)
    scores = search.cv_results_["mean_test_score"]
    assert scores[0] != scores[1] and search.best_params_ == {"classifier__lr": grid["classifier__lr"][scores.argmax()]}
    assert search.best_estimator_.classifier == {**HEAD, "lr": search.best_params_["classifier__lr"]}
    assert len(os.listdir(place / "tmp")) == 1  # the best one's
    assert set(search.predict(TEXTS)) <= {"bad", "good"}


def test_it_is_a_step_of_a_pipeline(estimator):
    steps = make_pipeline(FunctionTransformer(lambda texts: [text.lower() for text in texts]), estimator)
    upper = [text.upper() for text in TEXTS]
    steps.fit(upper, LABELS)
    assert steps.classes_.tolist() == ["bad", "good"]
    assert (steps.predict_proba(upper) == estimator.predict_proba([text.lower() for text in TEXTS])).all()
    assert cross_val_score(steps, upper, LABELS, cv=2, error_score="raise").shape == (2,)


def test_its_probabilities_are_calibrated(estimator):
    calibrated = CalibratedClassifierCV(estimator, cv=2).fit(TEXTS, LABELS)
    assert calibrated.predict_proba(TEXTS).sum(axis=1) == pytest.approx(1)
    assert set(calibrated.predict(TEXTS)) <= {"bad", "good"}


# scikit-learn's checks


def test_the_checks_that_take_texts_pass():
    with pytest.warns(SkipTestWarning, match="Can't test estimator UlmfitClassifier which requires input"):
        results = check_estimator(UlmfitClassifier())  # the others make matrices of numbers
    assert [(each["check_name"], each["status"]) for each in results] == [("check_estimator_cloneable", "passed")]


class OfNumbers(UlmfitClassifier):
    """The estimator on texts that are made of numbers: scikit-learn's checks have matrices."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = tags.input_tags.string = False
        tags.input_tags.two_d_array = True
        return tags

    def fit(self, X, y):
        X = validate_data(self, X) if y is not None else X
        return super().fit(self._sentences(X), y)

    def predict_proba(self, X):
        check_is_fitted(self)
        return super().predict_proba(self._sentences(validate_data(self, X, reset=False)))

    @staticmethod
    def _sentences(rows):
        """Return a sentence a row: a word a number, which begins with a letter for each half of a unit."""
        words = (
            "the film and its music were made by three brothers in two long hours with a story dull slow poor".split()
        )
        places = np.clip(np.rint(2 * np.asarray(rows, dtype=float)), -10, 9).astype(int) + 10
        return [" ".join(words[place] for place in row) + "." for row in places]


# Check -> why it cannot pass. None has to be left out: texts of numbers are learned well enough.
EXPECTED_TO_FAIL: dict[str, str] = {}


@pytest.mark.slow
def test_scikit_learns_own_checks_pass_on_texts_made_of_numbers(tiny_language_model_folder, monkeypatch):  # noqa: F811
    made = OfNumbers(
        str(tiny_language_model_folder),
        fine_tune_language_model=False,
        classifier={"plan": "probe"},
        settings={"unknown_text": "allow"},
    )
    results = check_estimator(made, expected_failed_checks=EXPECTED_TO_FAIL, on_skip=None, on_fail=None)
    failed = {each["check_name"]: each["exception"] for each in results if each["status"] == "failed"}
    assert not failed
    assert {each["check_name"] for each in results if each["status"] == "xfail"} == {*EXPECTED_TO_FAIL}
    assert {each["check_name"] for each in results if each["status"] == "skipped"} <= {
        "check_array_api_input",
        "check_classifiers_multilabel_output_format_decision_function",  # it has probabilities
    }
    assert len(results) > 50
