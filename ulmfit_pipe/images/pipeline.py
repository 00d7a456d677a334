"""A whole run on images: folders in, a backbone (pretrained here if there is none), classifier, metrics, report out."""

import copy
import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image
from torch import nn

from ulmfit_pipe.data.sample.image_samples import printed_letters, rotation_task
from ulmfit_pipe.data.splits import split_train_validation
from ulmfit_pipe.images.classifier import meant_setting, train_image_classifier
from ulmfit_pipe.images.predict import ImagePredictor
from ulmfit_pipe.images.tables import ImageTables, load_image_tables
from ulmfit_pipe.models.layer_groups.spec import LayerGroupSpec
from ulmfit_pipe.reports.result_table import Metrics
from ulmfit_pipe.reports.text_tables import format_table
from ulmfit_pipe.settings.images import ImageSettings
from ulmfit_pipe.stages.artifacts import read_stage
from ulmfit_pipe.stages.context import RunContext, context_of, deadline_after, exclusive_run
from ulmfit_pipe.stages.finished import StageResult
from ulmfit_pipe.stages.python_input import check_call, check_files, check_folder, check_names
from ulmfit_pipe.stages.report import (
    command_line,
    refuse_foreign_output,
    report_line,
    save_records,
    write_report,
)
from ulmfit_pipe.storage.digests import digest_of
from ulmfit_pipe.storage.versions import library_versions

GIVEN_TO_FIT = {  # settings that `ImagePipeline.fit` takes under another name
    "train_images": "fit(train, ...), the first argument",
    "test_images": "test=",
    "model": "ImagePipeline(model)",
}
PRETRAINING_SHARE = 0.4  # of max_seconds goes to the related task
PRETRAINING_HELD_OUT = 0.1  # of its images, to choose its best epoch by


@exclusive_run()
def run_image_pipeline(
    settings: ImageSettings,
    *,
    context: RunContext | None = None,
    train: Dataset | None = None,
    test: Dataset | None = None,
    custom_head: nn.Module | None = None,
    layer_groups: Sequence[LayerGroupSpec] | None = None,
) -> dict[str, Any]:
    """Run every stage and return what ``metrics.json`` holds.

    Args:
        settings: Settings of the run.
        context: Environment; made from the settings by default.
        train: A dataset, instead of ``train_images``.
        test: The same in place of ``test_images``.
        custom_head: A module from the backbone's ``last_hidden_state`` to logits, a copy of which is trained in place
            of pooling and head; a backbone pretrained here gets it afterwards.
        layer_groups: The classifier's layer groups in place of those the settings name, as `train_image_classifier`
            takes them.

    Returns:
        ``test`` and ``validation`` metrics (``test`` is None without test images), the best validation score of each
        phase (``phases``) by the metric ``monitor``, ``seconds`` per stage, ``versions``, ``seed``, and the path of the
        classifier.

    Raises:
        ValueError: The settings contradict each other, or images or model cannot be used.
    """
    _check(settings, train, test)
    output, deadline = Path(settings.output_dir), deadline_after(settings.max_seconds)
    context = context or context_of(settings, preset="fastai")
    context.check_alike(settings)
    refuse_foreign_output(output, ensemble=False)
    tables = load_image_tables(settings, context, train=train, test=test)
    context.check_alike({"data": {name: scan and digest_of(scan.digests) for name, scan in vars(tables).items()}})
    results: dict[str, StageResult] = {}
    model = settings.model
    if model is None and settings.pretraining.task != "none":
        now = time.monotonic()
        context.deadline = None if deadline is None else now + PRETRAINING_SHARE * (deadline - now)
        results["pretraining"] = _pretrain(settings, tables, context)
        model = str(results["pretraining"].path)
    context.deadline = deadline
    results["classifier"] = train_image_classifier(
        tables.train,
        tables.validation,
        model=model,
        output_dir=output / "classifier",
        settings=settings.classifier,
        context=context,
        custom_head=copy.deepcopy(custom_head),
        layer_groups=layer_groups,
    )
    return _finish(settings, tables, context, results, custom_head)


def _check(settings: ImageSettings, train: Dataset | None, test: Dataset | None) -> None:
    given = {"train_images": settings.train_images, "dataset": settings.dataset, "train (a dataset)": train}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise ValueError(
            f"give one of {', '.join(given)} to train on, got {' and '.join(named) or 'none'}; train_images is a "
            "folder that holds a folder of images per class"
        )
    held_out = (settings.test_images, settings.validation_images, test)
    if settings.dataset is not None and any(value is not None for value in held_out):
        raise ValueError(
            f"dataset {settings.dataset!r} brings its own test images; leave test and validation images out"
        )
    if settings.model is not None and settings.pretraining.task != "none":
        raise ValueError(
            f"model {settings.model} is pretrained already, so pretraining.task {settings.pretraining.task!r} has "
            "nothing to do; leave one of the two out"
        )


def _pretrain(settings: ImageSettings, tables: ImageTables, context: RunContext) -> StageResult:
    """Train a classifier of the related task from random weights; its backbone is what the next stage takes."""
    numbers = settings.pretraining
    if numbers.task == "printed-letters":
        images = printed_letters(numbers.images, seed=settings.seed)
    else:
        images = rotation_task(tables.train.table)
    parts = split_train_validation(images, fraction=PRETRAINING_HELD_OUT, seed=settings.seed)
    return train_image_classifier(
        parts["train"],
        parts["validation"],
        model=None,
        output_dir=Path(settings.output_dir) / "pretraining",
        settings=dataclasses.replace(
            settings.classifier,
            plan="full",
            final_epochs=numbers.epochs,
            lr=numbers.lr,
            lr_decay=None,
            class_weights="none",
            monitor="accuracy",
            keep="best",
            keep_stages=None,
        ),
        context=context,
    )


def _finish(
    settings: ImageSettings,
    tables: ImageTables,
    context: RunContext,
    results: Mapping[str, StageResult],
    custom_head: nn.Module | None,
) -> dict[str, Any]:
    """Score the finished classifier; write ``metrics.json`` and the report."""
    started, output = time.perf_counter(), Path(settings.output_dir)
    folder = output / "classifier"
    predictor = ImagePredictor.load(folder, custom_head=copy.deepcopy(custom_head), accelerator=context.accelerator)
    test = None if tables.test is None else predictor.score(tables.test.table)
    seconds = {name: round(result.seconds, 2) for name, result in results.items()}
    metrics = {
        "test": test,
        "validation": results["classifier"].metrics,
        "monitor": settings.classifier.monitor,
        "phases": _best_by_phase(folder, settings.classifier.monitor),
        "pretraining": results["pretraining"].metrics if "pretraining" in results else None,
        "seconds": {**seconds, "scoring": round(time.perf_counter() - started, 2)},
        "versions": library_versions(),
        "seed": settings.seed,
        "classifier": str(folder),
        "command": command_line(),
    }
    if context.accelerator.is_main_process:
        save_records(output, settings=settings, metrics=metrics)
        context.tell(report_line(write_report(output)))
    return metrics


def _best_by_phase(folder: Path, monitor: str) -> dict[str, float]:
    """Return the best validation score of each phase: the gain of each unfreezing step."""
    best: dict[str, float] = {}
    choose = min if monitor == "loss" else max
    for epoch in (read_stage(folder) or {}).get("epochs", []):
        value = epoch["metrics"].get(monitor)
        if value is not None:
            best[epoch["phase"]] = choose(value, best.get(epoch["phase"], value))
    return best


def thawing_table(metrics: Mapping[str, Any]) -> str:
    """Return a table of each phase's best validation score and its gain over the phase before.

    Args:
        metrics: From `run_image_pipeline`.
    """
    rows = [("phase", f"best validation {metrics['monitor']}", "gain")]
    before = None
    for phase, value in metrics["phases"].items():
        rows.append((phase, f"{value:.4f}", "" if before is None else f"{value - before:+.4f}"))
        before = value
    return format_table(rows)


class ImagePipeline:
    """The method on images as one object: a pretrained backbone in, a classifier out.

    Args:
        model: Any image model of transformers, or a classifier's folder to start from; None builds a small ResNet.
    """

    def __init__(self, model: str | Path | None = None) -> None:
        self.model = None if model is None else check_folder(model, "ImagePipeline")
        self.metrics: dict[str, Any] | None = None
        self._predictor: ImagePredictor | None = None

    @classmethod
    def load(cls, folder: str | Path, *, custom_head: nn.Module | None = None) -> "ImagePipeline":
        """Load a classifier folder that a run has written.

        Args:
            folder: The folder.
            custom_head: The head's module where it was trained with one of its own; the weights come from the folder.

        Raises:
            ArtifactError: The folder is not an image classifier, or it has a head of its own and none is given.
        """
        pipeline = cls()
        pipeline._predictor = ImagePredictor.load(check_folder(folder, "ImagePipeline.load"), custom_head=custom_head)
        return pipeline

    def fit(
        self,
        train: str | Path | Dataset | None = None,
        *misplaced: Any,
        output_dir: str | Path | None = None,
        test: str | Path | Dataset | None = None,
        custom_head: nn.Module | None = None,
        layer_groups: Sequence[LayerGroupSpec] | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Run the whole method on images and keep the classifier for `predict`.

        Args:
            train: Folder of class folders, table of paths, a saved dataset's folder, or a dataset of `datasets`.
            misplaced: Nothing: all else is given by name.
            output_dir: Folder for everything the run writes.
            test: The same, scored once.
            custom_head: A module from the backbone's ``last_hidden_state`` to logits, a copy of which is trained in
                place of pooling and head; `load` needs such a module too.
            layer_groups: Layer groups in place of those the settings name, input side first, names as in the
                classifier (``backbone.*`` and ``head``).
            **settings: Any other field of `ImageSettings`.

        Returns:
            What ``metrics.json`` holds.

        Raises:
            TypeError: The images are neither a path nor a dataset; more positional arguments; no output folder.
            ValueError: A setting, image or model cannot be used.
        """
        names = [each.name for each in dataclasses.fields(ImageSettings) if each.name not in GIVEN_TO_FIT]
        check_names(settings, ImageSettings, elsewhere=GIVEN_TO_FIT, meant=lambda name: meant_setting(name, names))
        check_call(misplaced, output_dir, table=False)
        held_out = settings.pop("validation_images", None)
        given = ImageSettings(
            output_dir=check_folder(output_dir, "output_dir"),
            train_images=_path_or_none(train, "train"),
            test_images=_path_or_none(test, "test"),
            validation_images=None if held_out is None else _checked_path(held_out, "validation_images"),
            model=self.model,
            **settings,
        )
        metrics = run_image_pipeline(
            given,
            train=train if isinstance(train, Dataset) else None,
            test=test if isinstance(test, Dataset) else None,
            custom_head=custom_head,
            layer_groups=layer_groups,
        )
        self.metrics = Metrics(metrics)
        self._predictor = ImagePredictor.load(self.metrics["classifier"], custom_head=copy.deepcopy(custom_head))
        return self.metrics

    @property
    def predictor(self) -> ImagePredictor:
        """The classifier that predicts.

        Raises:
            RuntimeError: Nothing was fitted or loaded yet.
        """
        if self._predictor is None:
            raise RuntimeError("there is no classifier yet: call fit, or ImagePipeline.load on a classifier's folder")
        return self._predictor

    def predict(self, images: Sequence[str | Path | Image.Image]) -> list[dict[str, Any]]:
        """Return ``{"label", "score", "scores"}`` for each image, in order."""
        return self.predictor.predict(images)


def _path_or_none(source: str | Path | Dataset | None, name: str) -> str | None:
    return None if source is None or isinstance(source, Dataset) else _checked_path(source, name)


def _checked_path(source: Any, name: str) -> str:
    return check_files(source, name, table=False)[0]
