"""The image stage: a new head on a pretrained backbone, trained alone, then with the layers below it.

What fastai's ``cnn_learner`` and ``fine_tune`` do, with the Learner, phases and learning-rate finder of the text
stages. Numbers are fastai 2.8's where no other source is named.
"""

import dataclasses
import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import ClassLabel, Dataset
from torch import Tensor, nn

from ulmfit_pipe.data.images.augmentation import Augmentation
from ulmfit_pipe.data.images.batches import ImageBatches, ImagePixels
from ulmfit_pipe.data.images.files import SOURCE_ROW, ImageError, ImageScan, scan_images
from ulmfit_pipe.data.labels import label_type_of, list_apart
from ulmfit_pipe.data.tables.tables import check_table
from ulmfit_pipe.images.network import build_image_network
from ulmfit_pipe.images.plans import image_phases
from ulmfit_pipe.images.predict import ImagePredictor
from ulmfit_pipe.models.layer_groups.spec import LayerGroupSpec
from ulmfit_pipe.models.quiet_transformers import one_builds
from ulmfit_pipe.settings.checks import home_path
from ulmfit_pipe.settings.images import AugmentationSettings, ImageClassifierSettings
from ulmfit_pipe.stages.artifacts import model_identity
from ulmfit_pipe.stages.config_notes import remember_label_type
from ulmfit_pipe.stages.context import RunContext, exclusive_run
from ulmfit_pipe.stages.finished import StageResult
from ulmfit_pipe.stages.presets import AUTO, StageOptimizer
from ulmfit_pipe.stages.progress import refuse_unbegun
from ulmfit_pipe.stages.saved_learner import groups_of
from ulmfit_pipe.stages.stage import StageRun
from ulmfit_pipe.storage.digests import digest_of
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.metrics import ClassificationMetric
from ulmfit_pipe.training.objectives import ClassificationObjective
from ulmfit_pipe.training.records import Phase, Task

STAGE = "image_classifier"
PRESET = "fastai"  # the one recipe there is for images
OPTIMIZER = StageOptimizer((0.9, 0.99), 1e-5, 0.01, True, None)  # fastai's Adam; one-cycle sets the first beta
BATCH_SIZE = 64  # fastai's bs
STEPS_PER_EPOCH = 25  # small data narrow the batch until an epoch has about this many steps; ours
LEAST_BATCH = 16  # but no further: a batch norm's statistics are taken over the batch
EVALUATION_BATCH = 64
FASTAI_NAMES = {"cut": "keep_stages", "n_in": "channels", "split_on": "layer_groups", "train_bn": "train_norm"}


@dataclass(frozen=True)
class ImageParts:
    """An image classifier ready to train, with what belongs to it."""

    learner: Learner
    pixels: ImagePixels
    phases: list[Phase]
    label_names: list[str]


@exclusive_run()
def train_image_classifier(
    train: Dataset | ImageScan,
    validation: Dataset | ImageScan | None,
    *,
    model: str | None,
    output_dir: Path | str,
    settings: ImageClassifierSettings | None = None,
    context: RunContext | None = None,
    custom_head: nn.Module | None = None,
    layer_groups: Sequence[LayerGroupSpec] | None = None,
) -> StageResult:
    """Train a classifier on labelled images.

    Args:
        train: From `load_images`; what `scan_images` gave is not scanned again.
        validation: The same, held out; it chooses the best epoch. None where the last epoch is kept.
        model: Folder or hub id of any image model of transformers, or the folder of an image classifier that this stage
            wrote: with the same classes its head is kept, with others its backbone gets a new one. None builds
            a small ResNet with random weights.
        output_dir: Folder to write; a finished stage with the same settings and data is not run again.
        settings: Settings of the stage.
        context: Seed, precision, time.
        custom_head: A module from the backbone's ``last_hidden_state`` to logits, in place of pooling and head.
        layer_groups: Layer groups in place of those the settings name, input side first, names as in the classifier
            (``backbone.*`` and ``head``).

    Returns:
        The folder, its validation metrics and seconds.
    """
    model, output_dir = home_path(model), home_path(output_dir)
    settings, context = settings or ImageClassifierSettings(), _image_context(context)
    scans = [_scanned(part, settings, context) for part in (train, validation)]
    given: dict[str, Any] = {"model": model, "custom_head": custom_head, "layer_groups": layer_groups}
    identity = {**context.identity(settings, model=None, data=_digest(scans)), **_identity_of(**given)}
    run = StageRun(STAGE, output_dir, identity, model, context)
    if (done := run.begin()) is not None:
        return done
    parts = build_image_learner(*scans, settings=settings, context=context, **given)
    run.keep(parts.learner)
    with run.comparing_weights(parts.learner):
        history = parts.learner.fit_plan(parts.phases, keep_best=settings.keep == "best")
    refuse_unbegun(len(history.steps), output_dir, context)
    metrics = {} if scans[1] is None else _predictor(parts, context).score(scans[1].table)
    skipped = [problem for scan in scans if scan is not None for problem in scan.skipped]
    return run.save(
        parts.learner,
        parts.phases,
        history,
        metrics,
        seconds=run.seconds(history),
        record={"labels": parts.label_names, "skipped_images": skipped},
        write=partial(_write, parts),
        shown=", ".join(f"{name} {value:.4g}" for name, value in metrics.items()) or "not validated",
    )


def _identity_of(
    *, model: str | None, custom_head: nn.Module | None, layer_groups: Sequence[LayerGroupSpec] | None
) -> dict[str, Any]:
    """Return what is known of the arguments that a result depends on, as far as JSON can hold it."""
    return {
        "model": model_identity(model, images=True),
        "custom_head": None if custom_head is None else str(custom_head),
        "layer_groups": None if layer_groups is None else [dataclasses.asdict(group) for group in layer_groups],
    }


def _predictor(parts: ImageParts, context: RunContext) -> ImagePredictor:
    return ImagePredictor(parts.learner.model, parts.pixels, accelerator=context.accelerator)


def _write(parts: ImageParts, folder: Path) -> None:
    """Write the network and the processor that its images go through."""
    network: Any = parts.learner.model
    network.save_pretrained(folder)
    parts.pixels.processor.save_pretrained(folder)


@one_builds()
def build_image_learner(
    train: Dataset | ImageScan,
    validation: Dataset | ImageScan | None,
    *,
    model: str | None,
    settings: ImageClassifierSettings | None = None,
    context: RunContext | None = None,
    custom_head: nn.Module | None = None,
    layer_groups: Sequence[LayerGroupSpec] | None = None,
) -> ImageParts:
    """Prepare images, network and phases, without training anything; arguments as in `train_image_classifier`.

    Raises:
        ImageError: An image cannot be used, or the two tables have other classes.
        ArtifactError: The model takes no images or is not whole.
        ValueError: Settings contradict one another, or the best epoch is to be kept and there are no validation images.
    """
    settings, context = settings or ImageClassifierSettings(), _image_context(context)
    scan, held_out = (_scanned(part, settings, context) for part in (train, validation))
    if scan is None or (held_out is None and settings.keep == "best"):
        raise ValueError("keep 'best' needs validation images; give some, or set keep to 'last'")
    names = _class_names(scan.table)
    if held_out is not None and _class_names(held_out.table) != names:
        own, other = list_apart(names, _class_names(held_out.table))
        raise ImageError(f"training has the classes {own}, validation {other}; load both with the same label_names")
    network, pixels = build_image_network(
        model, names, settings, custom_head=custom_head, layer_groups=layer_groups, say=context.tell
    )
    remember_label_type(network.config, label_type_of(scan.table.features["label"]))
    pretrained = settings.pretrained and model is not None
    batches = _batches(scan.table, None if held_out is None else held_out.table, pixels, settings, context)
    weights = _balanced_weights(scan.table, len(names)) if settings.class_weights == "balanced" else None
    task = Task(
        train_batches=batches[0],
        objective=ClassificationObjective(class_weights=weights, label_smoothing=settings.label_smoothing),
        valid_batches=batches[1],
        new_metric=lambda: ClassificationMetric(len(names)),
    )
    groups = groups_of(network)
    options = context.options(
        OPTIMIZER,
        train_norm=settings.train_norm,
        accumulation_steps=settings.accumulation_steps,
        cache_frozen=settings.cache_frozen,
    )
    learner = Learner(
        network,
        groups,
        task,
        options=options,
        accelerator=context.accelerator,
        lr=settings.lr,
        monitor=settings.monitor,
        pretrained=pretrained,
        say=context.say,
    )
    return ImageParts(learner, pixels, image_phases(len(groups), settings, pretrained=pretrained), names)


def _image_context(context: RunContext | None) -> RunContext:
    """Return the context with the preset that images have.

    Raises:
        ValueError: Another preset is asked for.
    """
    context = context or RunContext(preset=PRESET)
    if context.preset not in (AUTO, PRESET):
        raise ValueError(f"images are trained by preset {PRESET!r} only, got {context.preset!r}; leave the preset out")
    return context if context.preset == PRESET else dataclasses.replace(context, preset=PRESET)


def _scanned(
    part: Dataset | ImageScan | None, settings: ImageClassifierSettings, context: RunContext
) -> ImageScan | None:
    if part is None or isinstance(part, ImageScan):
        return part
    check_table(part, what="a table of images", columns=("image",), loading='load_images("images/train")')
    scan = scan_images(part, skip_bad=settings.skip_bad_images)
    tell_of_skipped(scan, context)
    return scan


def tell_of_skipped(scan: ImageScan, context: RunContext) -> None:
    """Log how many images were left out, and why the first was."""
    if scan.skipped:
        total = len(scan.table) + len(scan.skipped)
        context.tell(f"left out {len(scan.skipped):,} of {total:,} images that do not open, such as {scan.skipped[0]}")


def _digest(scans: Sequence[ImageScan | None]) -> str:
    columns: list[Sequence[Any]] = []
    for scan in scans:
        if scan is not None:
            told = [name for name in scan.table.column_names if name not in ("image", SOURCE_ROW)]
            columns += [scan.digests, *(scan.table[name][:] for name in told)]
            columns.append(_class_names(scan.table))
    return digest_of(*columns)


def _class_names(table: Dataset) -> list[str]:
    """Return the class names of a table.

    Raises:
        ImageError: It has no labels, or they have no names.
    """
    feature = table.features.get("label")
    if not isinstance(feature, ClassLabel):
        raise ImageError(
            f"the images have no column 'label' with class names, the columns are {table.column_names}; load them with "
            "load_images"
        )
    return list(feature.names)


def _batches(
    train: Dataset,
    validation: Dataset | None,
    pixels: ImagePixels,
    settings: ImageClassifierSettings,
    context: RunContext,
) -> tuple[ImageBatches, ImageBatches | None]:
    wanted = settings.batch_size or max(LEAST_BATCH, min(BATCH_SIZE, len(train) // STEPS_PER_EPOCH))
    on_cpu = context.accelerator.device.type == "cpu"  # there threads would only take turns with the training
    workers = (0 if on_cpu else 4) if settings.num_workers is None else settings.num_workers
    common: dict[str, Any] = {"workers": workers, **context.shares()}
    train_batches = ImageBatches(
        train,
        pixels,
        batch_size=wanted,
        augmentation=_augmentation_of(settings.augmentation),
        seed=context.seed,
        **common,
    )
    if validation is None:
        return train_batches, None
    size = max(EVALUATION_BATCH, common["world_size"])
    return train_batches, ImageBatches(validation, pixels, batch_size=size, shuffle=False, **common)


def _augmentation_of(settings: AugmentationSettings) -> Augmentation | None:
    """Return the augmentation, or None where it is off."""
    if settings.off:
        return None
    return Augmentation(settings.flip, settings.least_crop, settings.stretch, settings.colour)


def meant_setting(name: str, names: Sequence[str]) -> str | None:
    """Return what was likely meant by a name that is not a setting of a run on images, in Python's spelling, or None.

    Args:
        name: The unknown name.
        names: The run's own settings; those of this stage are offered too, also where fastai's name was given.
    """
    own = [field.name for field in dataclasses.fields(ImageClassifierSettings)]
    near = difflib.get_close_matches(name, [*names, *own], n=1)
    meant = FASTAI_NAMES.get(name) or (near[0] if near else None)
    return meant if meant is None or meant in names else f"classifier=ImageClassifierSettings({meant}=...)"


def _balanced_weights(table: Dataset, num_labels: int) -> Tensor:
    """Weigh each class by n / (classes * count), scikit-learn's ``balanced``."""
    counts = Counter(table["label"][:])
    return torch.tensor([len(table) / (num_labels * max(counts[index], 1)) for index in range(num_labels)])
