"""The baseline of every run, grid and demonstration: TF-IDF with logistic regression on the same labelled rows.

Words and pairs of words, or characters up to three in a row where a script has no spaces between words; C by stratified
cross-validation on the training rows alone. Rows and features are bounded so that it takes seconds.
"""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, StratifiedKFold

from ulmfit_pipe.data.splits import labels_of_rows, some_rows
from ulmfit_pipe.text.tables import label_names_of
from ulmfit_pipe.training.metrics import choose_thresholds, multi_label_scores

TITLE = "TF-IDF + logistic regression"
REGULARIZATIONS = (1.0, 3.0, 10.0, 30.0, 100.0)  # C of logistic regression
DEFAULT_C = 10.0  # where there are too few rows to choose
FOLDS = 5
LONGEST_FIT = 1_000  # iterations of logistic regression
MOST_CHARACTERS = 20_000_000  # of the training texts
MOST_COEFFICIENTS = 1_000_000  # features x classes
MOST_WORK = 30_000_000  # stored values x classes of the last fit, about half a minute of one core
MOST_WORK_OF_CHOICE = 300_000  # of the rows that choose C
ROWS_AT_ONCE = 5_000  # of a table that is scored

# Scripts whose words no space parts: Thai, Lao, Tibetan, Burmese, Khmer, kana, Chinese characters.
UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Marks inside words that \w leaves out: accents, Hebrew and Arabic points, the vowel signs of Indian scripts.
MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0dff"
PLAIN_TOKEN = r"(?u)\b\w\w+\b"  # scikit-learn's own
TOKEN = rf"(?u)[{UNSPACED}]|(?:(?![{UNSPACED}])[\w{MARKS}]){{2,}}"
UNSPACED_SHARE = 0.1  # of the letters, from which runs of three are counted too


@dataclass(frozen=True)
class Tfidf:
    """A fitted baseline.

    Attributes:
        vectorizer: Texts to features.
        predict: Features to probabilities, float64 (rows, num_labels).
        thresholds: Probability from which each label is given (multi-label), or None.
        details: ``rows`` it was trained on, and ``C``.
    """

    vectorizer: TfidfVectorizer
    predict: Callable[[Any], np.ndarray]
    thresholds: list[float] | None
    details: dict[str, Any]

    def probabilities(self, table: Dataset) -> np.ndarray:
        """Return the probabilities of a table's rows, float64 (rows, num_labels)."""
        starts = range(0, len(table), ROWS_AT_ONCE)
        texts = (list(table[start : start + ROWS_AT_ONCE]["text"]) for start in starts)
        return np.concatenate([self.predict(self.vectorizer.transform(part)) for part in texts])

    def answers(self, table: Dataset) -> np.ndarray:
        """Return the class of each row, int64 (rows,), or the labels given, bool (rows, num_labels)."""
        probabilities = self.probabilities(table)
        if self.thresholds is None:
            return probabilities.argmax(axis=1)
        return probabilities >= np.asarray(self.thresholds)


def fit_tfidf(train: Dataset, *, seed: int, most_rows: int | None = None) -> Tfidf:
    """Train the baseline on labelled rows, one label a row or any number of them.

    Args:
        train: Columns ``text`` and ``label``.
        seed: Seed of the folds, and of the rows where there are more than it trains on.
        most_rows: Rows to train on at most.
    """
    train = _within_characters(some_rows(train, most_rows, seed=seed), seed=seed)
    labels, num_labels = label_array(train), len(label_names_of(train)[0])
    texts = [text[: MOST_CHARACTERS // 2] for text in train["text"]]
    vectorizer = new_vectorizer(texts, num_labels=num_labels)
    features = vectorizer.fit_transform(texts)
    c, thresholds = _chosen(features, labels, num_labels=num_labels, seed=seed)
    rows = _rows_within(MOST_WORK, features, num_labels=num_labels, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        predict = _fit(features[rows], labels[rows], c=c, num_labels=num_labels)
    return Tfidf(vectorizer, predict, thresholds, {"rows": len(rows), "C": c})


def label_array(table: Dataset) -> np.ndarray:
    """Return the labels of a table, int64 (rows,), or bool (rows, num_labels) where a row may have several."""
    names, several = label_names_of(table)
    if not several:
        return np.asarray(table["label"][:], dtype=np.int64)
    given = np.zeros((len(table), len(names)), dtype=bool)
    for row, labels in enumerate(labels_of_rows(table)):
        given[row, labels] = True
    return given


def new_vectorizer(texts: Sequence[str], *, num_labels: int) -> TfidfVectorizer:
    """Return the vectorizer that suits the texts: by words, or by characters where there are no words to part."""
    most: dict[str, Any] = {"sublinear_tf": True, "max_features": max(100, MOST_COEFFICIENTS // num_labels)}
    special = re.compile(rf"[{UNSPACED}{MARKS}]")
    pattern = TOKEN if any(special.search(text) for text in texts) else PLAIN_TOKEN
    word = re.compile(pattern)
    if 2 * sum(word.search(text) is None for text in texts) > len(texts):  # emoji, single letters or digits
        return TfidfVectorizer(analyzer="char", ngram_range=(1, 3), **most)
    unspaced, letters = re.compile(f"[{UNSPACED}]"), re.compile(r"\w")
    counts = [sum(len(kind.findall(text)) for text in texts[:ROWS_AT_ONCE]) for kind in (unspaced, letters)]
    longest = 3 if counts[0] > UNSPACED_SHARE * counts[1] else 2
    return TfidfVectorizer(token_pattern=pattern, ngram_range=(1, longest), **most)


def _within_characters(train: Dataset, *, seed: int) -> Dataset:
    """Return rows of this many characters; two at least, of which each is read up to half of them."""
    total = sum(map(len, train["text"]))
    most = None if total <= MOST_CHARACTERS else max(2, len(train) * MOST_CHARACTERS // total)
    return some_rows(train, most, seed=seed)


def _rows_within(work: int, features: Any, *, num_labels: int, seed: int) -> np.ndarray:
    """Return the rows that a fit of so much work may have: stored values x classes; two classes count as one."""
    rows = features.shape[0]
    share = work / max(1, features.nnz * (num_labels if num_labels > 2 else 1))
    order = np.random.default_rng(seed).permutation(rows)
    return np.sort(order[: max(2, int(rows * min(1.0, share)))])


def _chosen(features: Any, labels: np.ndarray, *, num_labels: int, seed: int) -> tuple[float, list[float] | None]:
    """Return the C whose answers on held-out folds are best, the lower of equals, and for several labels thresholds."""
    rows = _rows_within(MOST_WORK_OF_CHOICE, features, num_labels=num_labels, seed=seed)
    features, labels = features[rows], labels[rows]
    features = features[:, np.unique(features.indices)]
    folds = list(folds_of(labels, seed=seed))
    best, chosen, thresholds = -1.0, DEFAULT_C, [0.5] * num_labels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for c in REGULARIZATIONS if folds else ():
            found = np.zeros((len(rows), num_labels))
            for train, held_out in folds:
                found[held_out] = _fit(features[train], labels[train], c=c, num_labels=num_labels)(features[held_out])
            own = choose_thresholds(found, labels) if labels.ndim == 2 else thresholds
            score = multi_label_scores(found, labels, own)["micro_f1"] if labels.ndim == 2 else _accuracy(found, labels)
            if score > best:
                best, chosen, thresholds = score, c, own
    return chosen, thresholds if labels.ndim == 2 else None


def folds_of(labels: np.ndarray, *, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return rows to train on and to test on, 5 times, stratified by class; fewer times, or none, with fewer rows."""
    if labels.ndim == 2:
        count = min(FOLDS, len(labels))
        return [] if count < 2 else list(KFold(count, shuffle=True, random_state=seed).split(labels))
    count = min(FOLDS, max(Counter(labels.tolist()).values()))
    if count < 2:
        return []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # it is then missing in some folds
        return list(StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels))


def _accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float((probabilities.argmax(axis=1) == labels).mean())


def _fit(features: Any, labels: np.ndarray, *, c: float, num_labels: int) -> Callable[[Any], np.ndarray]:
    """Return what gives probabilities, float64 (rows, num_labels); each label of several has a model of its own."""
    if labels.ndim == 2:
        each = [_fit(features, column.astype(np.int64), c=c, num_labels=2) for column in labels.T]
        return lambda rows: np.stack([one(rows)[:, 1] for one in each], axis=1)
    classes = np.unique(labels)
    model = LogisticRegression(C=c, max_iter=LONGEST_FIT).fit(features, labels) if len(classes) > 1 else None

    def predict(rows: Any) -> np.ndarray:
        found = np.zeros((rows.shape[0], num_labels))
        found[:, classes] = 1.0 if model is None else model.predict_proba(rows)
        return found

    return predict
