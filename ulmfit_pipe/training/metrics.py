"""Metrics as sums with counts: added up batch by batch, reduced over processes, divided once at the end.

`ClassificationMetric`, `MultiLabelMetric` and `LanguageModelMetric` take batches by `update` (nothing is read back
from the device there) and give a dictionary by `compute`. One process and many give the same numbers, however
unequal their shares are. Single-label scores come from counts of each class, which add up; only average precision
needs the rows themselves, and `gather_rows` brings those together padded to equal length.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather as accelerate_gather
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]
Gather = Callable[[Tensor], Tensor]

MOST_CONFUSED = 1_000  # classes; the matrix of this many takes 8 MB
IGNORED = -100  # torch's ignore_index


class SumVector:
    """float64 sums that stay on the device of what is added, and add up over processes in one reduction.

    Args:
        size: Number of sums.
    """

    def __init__(self, size: int) -> None:
        self.values = torch.zeros(size, dtype=torch.float64)

    def at_home_of(self, tensor: Tensor) -> Tensor:
        """Return the sums, float64 (size,), moved to the tensor's device (the CPU where that has no float64)."""
        home = torch.device("cpu") if tensor.device.type == "mps" else tensor.device
        if self.values.device != home:
            self.values = self.values.to(home)
        return self.values

    def total(self, reduce: Reduce | None) -> Tensor:
        """Return the sums over all processes, float64 (size,), on the CPU; may be asked more than once."""
        values = self.values.clone()
        return (values if reduce is None else reduce(values)).cpu()


class ClassificationMetric:
    """Accuracy, macro F1 and loss of a classifier with one label a row.

    Keeps three counts per class, and a confusion matrix up to `MOST_CONFUSED` classes, beyond which it would take more
    memory and time than the evaluation itself.

    Args:
        num_labels: Number of classes.

    Raises:
        ValueError: `num_labels` is below 1.
    """

    def __init__(self, num_labels: int) -> None:
        self.num_labels = _checked_num_labels(num_labels)
        self._sums = SumVector(2 + 3 * num_labels)  # loss, count; rows of each class right, there and predicted
        self._cells = SumVector(num_labels**2 if num_labels <= MOST_CONFUSED else 0)

    def update(self, logits: Tensor, labels: Tensor, loss_sum: Tensor, count: float) -> None:
        """Add one batch.

        Args:
            logits: float (batch, num_labels).
            labels: int64 (batch,).
            loss_sum: Summed loss, a scalar.
            count: What the summed loss is divided by in the end.

        Raises:
            ValueError: The logits are not `num_labels` wide.
        """
        _check_width(logits, self.num_labels)
        sums = self._sums.at_home_of(logits)
        sums[0] += loss_sum.detach().to(sums.device)
        sums[1] += count
        labels, predicted = labels.to(sums.device), logits.detach().argmax(dim=-1).to(sums.device)  # (batch,)
        ones = torch.ones_like(labels, dtype=torch.float64)
        counts = sums[2:].view(3, self.num_labels)
        counts[0].index_add_(0, labels, (predicted == labels).double())
        counts[1].index_add_(0, labels, ones)
        counts[2].index_add_(0, predicted, ones)
        if self.num_labels <= MOST_CONFUSED:
            self._cells.at_home_of(logits).index_add_(0, labels * self.num_labels + predicted, ones)

    def confusion(self, reduce: Reduce | None = None) -> Tensor:
        """Return the confusion matrix over all processes, int64 (num_labels true, num_labels predicted).

        Raises:
            ValueError: There are more than `MOST_CONFUSED` classes.
        """
        if self.num_labels > MOST_CONFUSED:
            raise ValueError(
                f"a confusion matrix is kept for up to {MOST_CONFUSED:,} classes, here are {self.num_labels:,}; "
                "compare the predictions with the labels instead"
            )
        return self._cells.total(reduce).round().long().reshape(self.num_labels, self.num_labels)

    def compute(self, reduce: Reduce | None = None) -> dict[str, float]:
        """Return `accuracy`, `macro_f1`, `loss` and `n` (rows) over all processes.

        Args:
            reduce: Sums a tensor over the processes; None for one process.

        Raises:
            ValueError: No row was added on any process.
        """
        sums = self._sums.total(reduce)
        right, actual, predicted = sums[2:].view(3, self.num_labels)
        scores = classification_scores(right, actual, predicted)
        return {**scores, "loss": float(sums[0] / sums[1]), "n": _whole(actual.sum())}


class MultiLabelMetric:
    """F1 at per-label thresholds, mean average precision and loss of a classifier with any number of labels a row.

    Keeps the logits and labels of every row (average precision needs them) until `compute`.

    Args:
        num_labels: Number of labels.
        thresholds: Probability from which each label is given; 0.5 for all by default.
        gather: Concatenates equally long tensors of all processes; accelerate's own by default.

    Raises:
        ValueError: `num_labels` is below 1, or the thresholds do not fit it.
    """

    def __init__(
        self, num_labels: int, *, thresholds: Sequence[float] | None = None, gather: Gather | None = None
    ) -> None:
        self.num_labels = _checked_num_labels(num_labels)
        self.thresholds = _checked_thresholds(thresholds, num_labels)
        self.gather = gather
        self._sums = SumVector(2)
        self._logits: list[Tensor] = []
        self._labels: list[Tensor] = []

    def update(self, logits: Tensor, labels: Tensor, loss_sum: Tensor, count: float) -> None:
        """Add one batch.

        Args:
            logits: float (batch, num_labels).
            labels: 0 or 1, any dtype (batch, num_labels).
            loss_sum: Summed loss, a scalar.
            count: What the summed loss is divided by in the end.

        Raises:
            ValueError: The logits are not `num_labels` wide.
        """
        _check_width(logits, self.num_labels)
        sums = self._sums.at_home_of(logits)
        sums[0] += loss_sum.detach().to(sums.device)
        sums[1] += count
        self._logits.append(logits.detach().float())
        self._labels.append(labels.detach().float())

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the probabilities, float64, and the labels, bool, of all processes' rows: (rows, num_labels).

        Every process must call it, also one without rows. The order is by process, then as added.
        """
        empty = [torch.zeros(0, self.num_labels)]
        both = torch.cat([torch.cat(self._logits or empty), torch.cat(self._labels or empty)], dim=1)
        logits, labels = gather_rows(both, gather=self.gather).cpu().split(self.num_labels, dim=1)
        return torch.sigmoid(logits.double()).numpy(), labels.numpy() > 0.5

    def compute(self, reduce: Reduce | None = None) -> dict[str, float]:
        """Return `multi_label_scores`, `loss` and `n` (rows) over all processes.

        Args:
            reduce: Sums a tensor over the processes; None for one process.

        Raises:
            ValueError: No row was added on any process.
        """
        loss_sum, count = self._sums.total(reduce)
        probabilities, labels = self.rows()
        scores = multi_label_scores(probabilities, labels, self.thresholds)
        return {**scores, "loss": float(loss_sum / count), "n": len(labels)}


class LanguageModelMetric:
    """Loss per token, perplexity and accuracy of the tokens asked for.

    Args:
        masked: The tokens are masked and the model sees those after them: the result is a pseudo-perplexity, which
            is not comparable with a perplexity.
    """

    def __init__(self, *, masked: bool = False) -> None:
        self.perplexity_name = "pseudo_perplexity" if masked else "perplexity"
        self._sums = SumVector(4)

    def update(self, logits: Tensor, labels: Tensor, loss_sum: Tensor, count: float) -> None:
        """Add one batch.

        Args:
            logits: float (..., vocab_size).
            labels: int64 (...), the token asked for at each position; -100 counts for nothing.
            loss_sum: Summed loss, a scalar.
            count: Number of tokens the summed loss is over.
        """
        sums = self._sums.at_home_of(logits)
        sums[0] += loss_sum.detach().to(sums.device)
        sums[1] += count
        sums[2] += (logits.detach().argmax(dim=-1) == labels).sum().to(sums.device)
        sums[3] += (labels != IGNORED).sum().to(sums.device)

    def compute(self, reduce: Reduce | None = None) -> dict[str, float]:
        """Return `loss`, `perplexity` (or `pseudo_perplexity`), `token_accuracy` and `n` (tokens) over all processes.

        Args:
            reduce: Sums a tensor over the processes; None for one process.

        Raises:
            ValueError: No token was added on any process.
        """
        loss_sum, count, hits, tokens = self._sums.total(reduce).tolist()
        if not tokens:
            raise ValueError(_nothing_added("token"))
        loss = loss_sum / count
        return {
            "loss": loss,
            self.perplexity_name: perplexity(loss),
            "token_accuracy": hits / tokens,
            "n": int(tokens),
        }


def perplexity(loss: float) -> float:
    """Return `exp(loss)` for a loss in nats per token; infinity where a float cannot hold it."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def classification_scores(right: Tensor, actual: Tensor, predicted: Tensor) -> dict[str, float]:
    """Return accuracy and macro F1 of the counts of each class: diagonal, rows and columns of a confusion matrix.

    Macro F1 is the plain mean over the classes that occur among the labels or the predictions, 0 for a class never
    predicted right: scikit-learn's `f1_score(labels, predictions, average="macro", zero_division=0)`.

    Args:
        right: Rows of each class that were predicted to be of it: (num_labels,).
        actual: Rows of each class: (num_labels,).
        predicted: Rows that were predicted to be of each class: (num_labels,).

    Raises:
        ValueError: No row was counted.
    """
    if not actual.sum() > 0:
        raise ValueError(_nothing_added("row"))
    occurs = actual + predicted > 0
    f1 = 2 * right[occurs].double() / (actual + predicted)[occurs]
    return {"accuracy": float(right.sum() / actual.sum()), "macro_f1": float(f1.mean())}


def multi_label_scores(
    probabilities: np.ndarray, labels: np.ndarray, thresholds: Sequence[float] | np.ndarray | None = None
) -> dict[str, float]:
    """Return the scores of multi-label predictions.

    Args:
        probabilities: float (rows, num_labels).
        labels: 0 or 1, or bool (rows, num_labels).
        thresholds: Probability from which each label is given; 0.5 for all by default.

    Returns:
        `accuracy` (rows with every label right), `micro_f1` (all decisions counted together), `macro_f1` (mean over
        labels, 0 for a label never found), and `mean_average_precision`: the mean over the labels that occur (the
        others have none), NaN if none does.

    Raises:
        ValueError: Shapes do not agree, there are no rows, labels are not 0 or 1, or thresholds do not fit.
    """
    probabilities, labels = _checked_rows(probabilities, labels)
    given = probabilities >= _checked_thresholds(thresholds, labels.shape[1])
    hits, total = (given & labels).sum(axis=0), given.sum(axis=0) + labels.sum(axis=0)  # (num_labels,)
    f1 = np.where(total > 0, 2 * hits / np.maximum(total, 1), 0.0)
    columns = [average_precision(p, t) for p, t in zip(probabilities.T, labels.T, strict=True) if t.any()]
    return {
        "accuracy": float((given == labels).all(axis=1).mean()),
        "micro_f1": float(2 * hits.sum() / max(total.sum(), 1)),
        "macro_f1": float(f1.mean()),
        "mean_average_precision": float(np.mean(columns)) if columns else math.nan,
    }


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the area under one label's precision-recall steps, equal scores taken together.

    Args:
        scores: float (rows,), higher is likelier.
        labels: bool (rows,), at least one of them true.

    Returns:
        The same number as scikit-learn's `average_precision_score`.
    """
    _, hits, given = _ranked_counts(scores, labels)
    return float(np.sum(np.diff(hits, prepend=0) / labels.sum() * (hits / given)))


def choose_thresholds(probabilities: np.ndarray, labels: np.ndarray, *, least_rows: int = 0) -> list[float]:
    """Choose for each label the probability from which it is given, by best F1 on these rows (validation).

    A threshold is half-way between the two probabilities it separates; of equally good ones the nearest to 0.5 is
    taken, and 0.5 for a label that no row has.

    Args:
        probabilities: float (rows, num_labels).
        labels: 0 or 1, or bool (rows, num_labels).
        least_rows: A label that fewer rows have, or lack, keeps 0.5: of so few any choice is chance.

    Returns:
        One threshold a label.

    Raises:
        ValueError: Shapes do not agree, there are no rows, or labels are not 0 or 1.
    """
    probabilities, labels = _checked_rows(probabilities, labels)
    rarer = np.minimum(labels.sum(axis=0), (~labels).sum(axis=0))  # (num_labels,)
    return [
        0.5 if rows < least_rows else _best_threshold(p, t)
        for p, t, rows in zip(probabilities.T, labels.T, rarer, strict=True)
    ]


def _best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    if not labels.any():
        return 0.5
    steps, hits, given = _ranked_counts(scores, labels)
    f1 = 2 * hits / (given + labels.sum())
    between = (steps + np.append(steps[1:], 0.0)) / 2  # half-way down to the next lower score, or to 0
    best = between[f1 >= f1.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def _ranked_counts(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each distinct score, highest first, with how many labels and how many rows reach it."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last_of_equals = np.append(ranked[1:] != ranked[:-1], True)
    reached = np.flatnonzero(last_of_equals)
    return ranked[reached], np.cumsum(labels[order])[reached], reached + 1


def gather_rows(rows: Tensor, *, gather: Gather | None = None) -> Tensor:
    """Concatenate the rows of all processes, however many each has.

    Collectives need equally long tensors (given 3 and 2 rows they return garbage): rows are padded to the longest
    share, gathered, and the padding is removed again.

    Args:
        rows: (own rows, ...) of this process, perhaps none.
        gather: Concatenates equally long tensors of all processes along axis 0; accelerate's own by default.

    Returns:
        (all rows, ...), by process; the rows themselves where there is one process.
    """
    if gather is None:
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return rows
        gather, rows = accelerate_gather, rows.to(PartialState().device)
    lengths = gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows
    shares = gather(padded).split(max(lengths)) if max(lengths) else [padded] * len(lengths)
    return torch.cat([share[:length] for share, length in zip(shares, lengths, strict=True)])


def _checked_num_labels(num_labels: int) -> int:
    if num_labels < 1:
        raise ValueError(f"num_labels must be at least 1, got {num_labels!r}; pass the number of classes")
    return num_labels


def _check_width(logits: Tensor, num_labels: int) -> None:
    if logits.ndim != 2 or logits.shape[1] != num_labels:
        raise ValueError(
            f"logits must have the shape (batch, {num_labels}), got {tuple(logits.shape)}; "
            "is num_labels that of the model?"
        )


def _checked_thresholds(thresholds: Sequence[float] | np.ndarray | None, num_labels: int) -> np.ndarray:
    values = np.full(num_labels, 0.5) if thresholds is None else np.asarray(thresholds, dtype=np.float64)
    if values.shape != (num_labels,) or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"thresholds must be {num_labels} numbers in [0, 1], one per label, got {thresholds!r}")
    return values


def _checked_rows(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if probabilities.ndim != 2 or probabilities.shape != labels.shape:
        raise ValueError(
            "probabilities and labels must share the shape (rows, num_labels), "
            f"got {probabilities.shape} and {labels.shape}"
        )
    if not len(labels):
        raise ValueError(_nothing_added("row"))
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"multi-label targets must be 0 or 1, got {np.unique(labels)[:5].tolist()}")
    return probabilities, labels.astype(bool)


def _nothing_added(what: str) -> str:
    return f"no {what} was evaluated; is the validation or test data empty?"


def _whole(count: Tensor) -> int:
    return round(float(count))
