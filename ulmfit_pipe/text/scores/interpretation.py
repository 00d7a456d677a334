"""What a classifier gets wrong on labelled rows, as pandas tables and pictures; named after fastai's class."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from datasets import Dataset

from ulmfit_pipe.reports.predictions import Prediction, confusion, most_confused
from ulmfit_pipe.text.predict.predictor import SMALLEST, Predictor
from ulmfit_pipe.text.scores.run_scores import per_class
from ulmfit_pipe.text.scores.tfidf import label_array
from ulmfit_pipe.text.tables import load_labelled_table

if TYPE_CHECKING:
    from ulmfit_pipe.reports.plots import Picture

SEVERAL = (
    "a text may have several labels here, so there is no single confusion; per_class() counts each label by itself"
)


class ClassificationInterpretation:
    """The answers of a classifier to the rows of a labelled table.

    Args:
        predictor: The classifier.
        table: Labelled rows of `load_table`, with the classifier's label names.

    Attributes:
        label_names: The classes, in the classifier's order.

    Raises:
        ValueError: The table's label names are not the classifier's, in its order.
    """

    def __init__(self, predictor: Predictor, table: Dataset) -> None:
        self.scores, scored = predictor.score_rows(table)
        self.label_names, self._several = list(predictor.label_names), predictor.multi_label
        self._truth, self._answers = label_array(table), scored.answers
        probabilities = scored.probabilities
        if probabilities is None:
            probabilities = predictor.probabilities(predictor.tokenize(table))
        self.losses = _losses(probabilities, self._truth)
        self._rows = [
            Prediction(row + 1, text, self._named(self._truth[row]), self._named(self._answers[row]), float(score))
            for row, (text, score) in enumerate(zip(table["text"], scored.scores, strict=True))
        ]

    def _named(self, labels: Any) -> str:
        given = np.flatnonzero(labels) if self._several else [labels]
        return "|".join(self.label_names[label] for label in given)

    def confusion(self) -> pd.DataFrame:
        """Return how many rows of each class (index) got each label (columns).

        Raises:
            ValueError: A text may have several labels.
        """
        counts = confusion(self._single())
        cells = [[counts[true, given] for given in self.label_names] for true in self.label_names]
        index = pd.Index(self.label_names, name="truth")
        return pd.DataFrame(cells, index=index, columns=pd.Index(self.label_names, name="prediction"))

    def per_class(self) -> pd.DataFrame:
        """Return precision, recall, f1 and support (rows) of each class; 0 where undefined."""
        found = per_class(self._truth, self._answers, names=self.label_names)
        return pd.DataFrame.from_dict(found, orient="index").rename_axis("class")

    def most_confused(self, min_count: int = 1) -> pd.DataFrame:
        """Return the kinds of mistakes, the most frequent first: truth, prediction, count.

        Raises:
            ValueError: A text may have several labels.
        """
        found = [row for row in most_confused(self._single()) if row[2] >= min_count]
        return pd.DataFrame(found, columns=["truth", "prediction", "count"])

    def top_losses(self, k: int | None = None) -> pd.DataFrame:
        """Return the rows of the highest losses, the highest first; all rows where k is None."""
        ranked = np.argsort(-self.losses, kind="stable")[:k]
        columns = {
            name: [getattr(self._rows[row], name) for row in ranked]
            for name in ("row", "text", "truth", "prediction", "score")
        }
        return pd.DataFrame({**columns, "loss": self.losses[ranked]}).set_index("row")

    def plot_confusion(self, path: str | Path | None = None) -> "Picture":
        """Draw the confusion matrix, coloured by the share of each class's rows; saved as PNG where a path is given.

        Raises:
            ValueError: A text may have several labels.
        """
        from ulmfit_pipe.reports.interpretation_pictures import plot_confusion  # drawing is loaded by who draws

        return plot_confusion(self.confusion().to_numpy().tolist(), self.label_names, path=path)

    def plot_top_losses(self, k: int = 9, path: str | Path | None = None) -> "Picture":
        """Draw the highest losses as bars with truth, prediction and text; saved as PNG where a path is given."""
        from ulmfit_pipe.reports.interpretation_pictures import plot_top_losses  # drawing is loaded by who draws

        return plot_top_losses(self.top_losses(k).to_dict("records"), path=path)

    def __repr__(self) -> str:
        """Return one line: rows, classes and scores."""
        shown = ", ".join(f"{name} {value:.4g}" for name, value in self.scores.items() if name != "n")
        return f"ClassificationInterpretation({len(self._rows):,} rows, {len(self.label_names)} classes: {shown})"

    def _repr_html_(self) -> str:
        """Return the scores of each class as a table for a notebook."""
        return str(self.per_class().round(3)._repr_html_())

    def _single(self) -> list[Prediction]:
        if self._several:
            raise ValueError(SEVERAL)
        return self._rows


def interpret(predictor: Predictor, test: Any, **columns: Any) -> ClassificationInterpretation:
    """Return what a classifier gets wrong on a labelled table.

    Args:
        predictor: The classifier.
        test: A table of `load_table` with the classifier's label names, or what `load_table` takes.
        **columns: Fields of `LabelledTables`, as `evaluate` takes them, or arguments that only `load_table` has.

    Raises:
        TableError: The table cannot be used, or has labels that the classifier does not know.
        ValueError: ``text_column`` is given under both of its names.
    """
    if not isinstance(test, Dataset):
        known, several = predictor.label_names, predictor.multi_label
        test = load_labelled_table(test, known=known, several=several, **columns)
    return ClassificationInterpretation(predictor, test)


def _losses(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the cross entropy of each row; with several labels the mean of the labels' binary ones."""
    if truth.ndim == 1:
        own = probabilities[np.arange(len(truth)), truth]
        return np.asarray(-np.log(np.maximum(own, SMALLEST)))
    right = np.where(truth, probabilities, 1 - probabilities)
    return np.asarray(-np.log(np.maximum(right, SMALLEST)).mean(axis=1))
