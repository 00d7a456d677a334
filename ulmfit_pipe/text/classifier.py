"""The classifier stage: a head on the fine-tuned language model's encoder, unfrozen group by group.

The third step of ULMFiT, for the AWD-LSTM and for any text model of transformers. The best epoch over all phases is
kept, selected on validation data alone; or the last one (``keep``), which needs no validation data.

Source: Howard & Ruder 2018, section 3.3.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.model_selection import StratifiedKFold
from transformers import PreTrainedTokenizerBase

from ulmfit_pipe.data.labels import label_type_of
from ulmfit_pipe.data.tables.tables import check_table
from ulmfit_pipe.models.heads.window_classifier import bare_classifier
from ulmfit_pipe.models.quiet_transformers import one_builds, quiet_transformers
from ulmfit_pipe.settings.checks import home_path
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.artifacts import ModelName, find_model, model_identity, model_type_of
from ulmfit_pipe.stages.classifier_labels import labels_of
from ulmfit_pipe.stages.config_notes import remember_label_type, set_thresholds, thresholds_of
from ulmfit_pipe.stages.context import RunContext, exclusive_run
from ulmfit_pipe.stages.finished import StageResult
from ulmfit_pipe.stages.progress import epochs_of_checkpoint, refuse_unbegun
from ulmfit_pipe.stages.saved_learner import groups_of
from ulmfit_pipe.stages.stage import StageRun
from ulmfit_pipe.storage.digests import digest_of
from ulmfit_pipe.text.classifier_network import load_as_classifier
from ulmfit_pipe.text.classifier_task import build_classifier_task
from ulmfit_pipe.text.families.family import family_of
from ulmfit_pipe.text.head_probe import HeadStart, ProbeError, main_number, start_head
from ulmfit_pipe.text.plans import PROBED, classifier_phases, decided_by_folds, possible_epochs, settled, within_time
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.text.scores.calibrated_head import calibrate_classifier
from ulmfit_pipe.text.scores.thresholds import settle_thresholds
from ulmfit_pipe.text.tables import label_names_of
from ulmfit_pipe.text.updating.head_rows import start_new_rows
from ulmfit_pipe.training.history import History
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.records import Phase
from ulmfit_pipe.training.resume.run_state import random_kept

# Of the probe's scores, when training resumes from them: a head that is certain of every row leaves no gradient. Ours:
# with 8 labels a class of TREC-6 0.3 instead of 1 took the accuracy from 81.6 to 84.0 % (4 splits each)
START_SCALE = 0.3
OWN_START = "the head's new rows start at the mean of its others"
FOLDS = 3  # of a small table, to decide whether unfreezing pays


@dataclass(frozen=True)
class ClassifierParts:
    """A classifier ready to train, with what belongs to it."""

    learner: Learner
    tokenizer: PreTrainedTokenizerBase
    phases: list[Phase]
    label_names: list[str]
    multi_label: bool

    @property
    def network(self) -> Any:
        """Return the classifier that is saved: the learner's model, without the wrapper that reads windows."""
        return bare_classifier(self.learner.model)


@exclusive_run()
def train_classifier(
    train: Dataset,
    validation: Dataset | None,
    *,
    model: ModelName,
    output_dir: Path | str,
    settings: ClassifierSettings | None = None,
    context: RunContext | None = None,
    update: bool = False,
) -> StageResult:
    """Train a classifier on labelled texts, from a language model or encoder, or resuming from a saved classifier.

    Args:
        train: Columns ``text`` and ``label``.
        validation: The same, held out; it chooses the best epoch and, for multi-label, the thresholds. None where the
            last epoch is kept anyway: then nothing is measured, and a label counts as given from 0.5 on.
        model: Folder or name of a language model, of an encoder, or of a classifier with the same labels.
        output_dir: Folder to write; a finished stage with the same settings and data is not run again.
        settings: Settings of the stage.
        context: Preset, seed, precision, time.
        update: The model is a classifier that keeps its head, which gets a row for each label that it does not have;
            those come after its own.

    Returns:
        The folder, its validation metrics and seconds.
    """
    _check_tables(train, validation, of="train_classifier")
    model, output_dir = find_model(model), home_path(output_dir)
    settings, context = settings or ClassifierSettings(), (context or RunContext()).for_model(model_type_of(model))
    identity = {**classifier_identity(train, validation, settings, context), "model": model_identity(model)}
    identity |= {"update": True} if update else {}
    run = StageRun("classifier", output_dir, identity, model, context)
    if (done := run.begin()) is not None:
        return done
    settings, by_folds = _settled(train, validation, settings, context)
    parts = build_classifier_learner(train, validation, model=model, settings=settings, context=context, update=update)
    run.keep(parts.learner, parts.tokenizer)
    start = partial(start_new_rows, old=len(labels_of(model, model.loaded)[0])) if update else start_head
    probe = _probed(parts, settings, context, start, rows=len(train)) if update or settings.plan in PROBED else None
    pays = partial(_unfreezing_pays, train, model, settings, context) if by_folds else None
    phases, history = _train(parts, probe, settings, context, run, pays)
    if settings.norm_statistics == "recomputed":
        parts.learner.recompute_norm_statistics()
    predictor = Predictor([parts.network], parts.tokenizer, accelerator=context.accelerator)
    left = None if phases else probe  # the probe is what is saved
    calibrated = calibrate_classifier(
        predictor, train, validation, wanted=settings.calibrate, probe=left, context=context
    )
    metrics = {} if validation is None else _final_metrics(parts, predictor, validation, context)
    return run.save(
        parts.learner,
        phases,
        history,
        metrics,
        seconds=run.seconds(history),
        record=_record_of(parts, probe) | calibrated,
        write=partial(_write, parts),
        shown=_shown(metrics),
    )


def _record_of(parts: ClassifierParts, probe: HeadStart | None) -> dict[str, Any]:
    """Return what ``stage.json`` keeps of a classifier beside its training."""
    return {
        "labels": parts.label_names,
        **({} if probe is None else {"probe": probe.record}),
        **({"thresholds": thresholds_of(parts.network.config)} if parts.multi_label else {}),
    }


def _settled(
    train: Dataset, validation: Dataset | None, settings: ClassifierSettings, context: RunContext
) -> tuple[ClassifierSettings, bool]:
    """Return the settings without ``auto``, and whether held-out folds decide if more than the head is trained."""
    recipe, held_out, rows = context.recipe, validation is not None, len(train)
    by_folds = decided_by_folds(settings, recipe, held_out=held_out, rows=rows)
    return settled(settings, recipe, held_out=held_out, rows=rows), by_folds


def _check_tables(train: Any, validation: Any, *, of: str) -> None:
    check_table(train, what=f"train of {of}", columns=("text", "label"))
    if validation is not None:
        check_table(validation, what=f"validation of {of}", columns=("text", "label"))


def _probed(
    parts: ClassifierParts,
    settings: ClassifierSettings,
    context: RunContext,
    start: Callable[..., HeadStart],
    *,
    rows: int,
) -> HeadStart | None:
    """Set the head from the frozen network's features; None where its weights cannot be set so."""
    try:
        return start(parts.learner, parts.network, context=context, num_labels=len(parts.label_names), rows=rows)
    except ProbeError as error:
        if settings.plan == "probe":
            raise
        context.tell(f"{'the head starts at random' if start is start_head else OWN_START}: {error}")
        return None


def _train(
    parts: ClassifierParts,
    probe: HeadStart | None,
    settings: ClassifierSettings,
    context: RunContext,
    run: StageRun,
    pays: Callable[[HeadStart, list[Phase], float], bool] | None,
) -> tuple[list[Phase], History]:
    """Run the phases, or as many of their epochs as the time allows, and return them with their history."""
    learner, keep_best = parts.learner, settings.keep == "best"
    if probe is None:
        with run.comparing_weights(learner):
            history = learner.fit_plan(parts.phases, keep_best=keep_best)
        refuse_unbegun(len(history.steps), run.output_dir, context)
        return parts.phases, history
    phases = epochs_of_checkpoint(parts.phases, run.output_dir) if context.resume else None
    if phases is None:
        possible = main_number(possible_epochs(probe.seconds, context.deadline), context.accelerator)
        phases, line = within_time(parts.phases, possible)
        if line:
            context.tell(line)
        if phases and pays is not None and not pays(probe, phases, possible):
            phases = []
    if not phases:
        return [], History(epochs=[probe.start], best=probe.start if keep_best else None)
    probe.set_scale(START_SCALE)
    with run.comparing_weights(learner):
        history = learner.fit_plan(phases, keep_best=keep_best, start=probe.start)
    if keep_best and history.best is not None and history.best.phase == probe.start.phase:
        probe.set_scale(1.0)
        context.tell(
            f"no epoch with unfrozen layers was better on the validation rows, so {probe.name} is what is kept"
        )
    return phases, history


def _unfreezing_pays(
    train: Dataset,
    model: ModelName,
    settings: ClassifierSettings,
    context: RunContext,
    probe: HeadStart,
    phases: list[Phase],
    possible: float,
) -> bool:
    """Return whether training all groups is better than the probe on rows of held-out folds, and report it.

    Args:
        train: Columns ``text`` and ``label``.
        model: What the classifier is put on.
        settings: Settings of the stage.
        context: Seed, precision, time and processes.
        probe: What the head starts from.
        phases: What would be trained from there.
        possible: Epochs that the time allows.
    """
    if possible < FOLDS * sum(phase.epochs for phase in phases):  # the folds read two thirds each, then all is read
        context.tell("max_seconds leave no time for held-out folds, so nothing is unfrozen: the probe is the result")
        return False
    with random_kept(context.accelerator.device):
        found = scores_on_folds(train, model=model, settings=settings, context=context)
    if found is None:
        context.tell(f"too few rows per label for {FOLDS} folds, so nothing is unfrozen: the probe is the result")
        return False
    probe.record["folds"] = asdict(found)
    context.tell(found.describe())
    return found.unfreezing_pays


@dataclass(frozen=True)
class FoldScores:
    """A metric on rows of held-out folds, averaged over the rows.

    Attributes:
        metric: Its name; of the loss less is better.
        frozen: With the frozen network and the probe's head.
        trained: With all layer groups trained from there.
        rows: Rows that were held out once.
    """

    metric: str
    frozen: float
    trained: float
    rows: int

    @property
    def unfreezing_pays(self) -> bool:
        """Whether training all layer groups is better than the probe."""
        return self.trained < self.frozen if self.metric == "loss" else self.trained > self.frozen

    def describe(self) -> str:
        """Return it in words, for a line."""
        so = "all layers are trained" if self.unfreezing_pays else "nothing is unfrozen: the probe is the result"
        return (
            f"{self.metric} on {FOLDS} held-out folds of the {self.rows:,} training rows: {self.frozen:.3f} with the "
            f"frozen network, {self.trained:.3f} with all layers trained, so {so}"
        )


def scores_on_folds(
    train: Dataset, *, model: ModelName, settings: ClassifierSettings, context: RunContext
) -> FoldScores | None:
    """Train on folds of the rows, and score the probe and what is trained from it on those held out.

    Args:
        train: Columns ``text`` and ``label``.
        model: What the classifier is put on.
        settings: Settings of the stage, with a plan that resumes from the probe.
        context: Seed, precision and processes; nothing is reported from here.

    Returns:
        The scores, or None where no label has a row for each fold.
    """
    quiet, settings = replace(context, say=lambda _line: None), replace(settings, keep="last")
    first_labels = [labels if isinstance(labels, int) else min(labels, default=-1) for labels in train["label"]]
    if max(Counter(first_labels).values()) < FOLDS:
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=context.seed)
        parts_of_rows = list(folds.split(first_labels, first_labels))
    frozen = trained = 0.0
    for fitted, held_out in parts_of_rows:
        tables = train.select(fitted), train.select(held_out)
        parts = build_classifier_learner(*tables, model=model, settings=settings, context=quiet)
        probe = start_head(
            parts.learner, parts.network, context=quiet, num_labels=len(parts.label_names), rows=len(fitted)
        )
        probe.set_scale(START_SCALE)
        history = parts.learner.fit_plan(parts.phases, keep_best=False)
        metric = str(parts.learner.monitor)
        frozen += probe.start.metrics[metric] * len(held_out) / len(train)
        trained += history.epochs[-1].metrics[metric] * len(held_out) / len(train)
    return FoldScores(metric, frozen, trained, len(train))


def _write(parts: ClassifierParts, folder: Path) -> None:
    with quiet_transformers():
        parts.network.save_pretrained(folder)
    parts.tokenizer.save_pretrained(folder)


def classifier_identity(
    train: Dataset, validation: Dataset | None, settings: ClassifierSettings, context: RunContext
) -> dict[str, Any]:
    """Return all that the stage's result depends on but the model it starts from."""
    settings, by_folds = _settled(train, validation, settings, context)
    names = label_names_of(train)[0]
    columns = [table[name] for table in (train, validation) if table is not None for name in ("text", "label")]
    data = digest_of(*columns, names)
    identity = context.identity(settings, model=None, data=data)
    if by_folds:  # it may end at the probe, which is not the result of the plan asked for by its name
        identity["settings"]["plan"] = "auto"
    return {name: value for name, value in identity.items() if name != "model"}


def _final_metrics(
    parts: ClassifierParts, predictor: Predictor, validation: Dataset, context: RunContext
) -> dict[str, float]:
    """Choose thresholds where several labels are possible, then score the kept weights on validation."""
    if parts.multi_label:
        _set_thresholds(parts, predictor, validation, context)
    return predictor.score(validation)


def _shown(metrics: dict[str, float]) -> str:
    values = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    return f"validation {values}" if values else "the last epoch's weights, not validated"


def _set_thresholds(parts: ClassifierParts, predictor: Predictor, validation: Dataset, context: RunContext) -> None:
    probabilities = predictor.probabilities(predictor.tokenize(validation))
    labels = np.zeros(probabilities.shape, dtype=bool)
    for row, chosen in enumerate(validation["label"]):
        labels[row, chosen] = True
    thresholds, line = settle_thresholds(
        probabilities, labels, names=parts.label_names, monitor=str(parts.learner.monitor)
    )
    set_thresholds(parts.network.config, thresholds)
    context.tell(line)


@one_builds()
def build_classifier_learner(
    train: Dataset,
    validation: Dataset | None,
    *,
    model: ModelName,
    settings: ClassifierSettings | None = None,
    context: RunContext | None = None,
    update: bool = False,
) -> ClassifierParts:
    """Prepare tokenizer, batches, model and phases, without training anything; arguments as of `train_classifier`.

    Raises:
        TypeError: A table is not from `load_table`.
        ArtifactError: The model cannot classify texts, its tokenizer is another's, or a classifier's labels differ.
        ValueError: The best epoch is to be kept, and there are no validation rows; a setting has no meaning for
            the model; or the model has no two layer groups to unfreeze one after the other.
    """
    _check_tables(train, validation, of="build_classifier_learner")
    model = find_model(model)
    settings, context = settings or ClassifierSettings(), (context or RunContext()).for_model(model_type_of(model))
    recipe = context.recipe
    settings, _ = _settled(train, validation, settings, context)
    if validation is None and settings.keep == "best":
        raise ValueError("keep 'best' needs validation rows; give some, or set keep to 'last'")
    names, multi_label = label_names_of(train)
    monitor = settings.checked_monitor(multi_label=multi_label)
    network, tokenizer = load_as_classifier(model, names, multi_label, settings, context, update=update)
    reading = family_of(network.config.model_type).choose_reading(settings, network, tokenizer, model=model)
    remember_label_type(network.config, label_type_of(train.features["label"]))
    reader = reading.wrap(network)
    groups = groups_of(reader, max_blocks=settings.block_groups)
    task = build_classifier_task(
        train, validation, network=network, tokenizer=tokenizer, reading=reading, settings=settings, context=context
    )
    options = context.options(
        recipe.classifier_optimizer,
        accumulation_steps=settings.accumulation_steps,
        frozen_dropout=settings.frozen_dropout,
        cache_frozen=settings.cache_frozen,
        train_norm=False if settings.frozen_dropout == "off" else settings.train_norm,
    )
    learner = Learner(
        reader,
        groups,
        task,
        options=options,
        accelerator=context.accelerator,
        monitor=monitor,
        pretrained=not settings.from_scratch,
        say=context.say,
    )
    batch_size = task.train_batches.batch_size  # type: ignore[attr-defined]
    phases = classifier_phases(len(groups), settings, context.recipe, rows=len(train), batch_size=batch_size)
    return ClassifierParts(learner, tokenizer, phases, names, multi_label)
