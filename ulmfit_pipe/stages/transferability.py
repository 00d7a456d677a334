"""How transferable are the layers? The experiment of Yosinski et al. 2014 (arXiv 1411.1792, figure 2) on own data.

The classes of a labelled table are split in two halves, tasks A and B. Layer groups 1..n of a network trained on one of
them are put into a new network, which is trained on task B with these groups frozen, or thawed after a while. What the
five curves are, `transferability_cells` says; what they mean, `transferability_results`.
"""

import contextlib
import dataclasses
import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ulmfit_pipe.data.labels import list_labels
from ulmfit_pipe.data.row_sources import TableReading
from ulmfit_pipe.models.builtin_models import DEFAULT_MODEL
from ulmfit_pipe.settings.checks import check_above_zero, check_choices, check_whole, with_home_paths
from ulmfit_pipe.settings.images import ImageHeadSettings, SmallResNetSettings
from ulmfit_pipe.stages.presets import PresetName
from ulmfit_pipe.stages.run_context import Precision, RunContext, exclusive_run
from ulmfit_pipe.stages.transferability_cells import SeedOfNetworks, build_learner, networks_of
from ulmfit_pipe.stages.transferability_results import write_transferability
from ulmfit_pipe.stages.transferability_tasks import Examples, load_examples, tasks_of

# Where they are left out: so few rows of a sample that tasks are not learned to perfection, within minutes.
SAMPLES: dict[str, dict[str, int]] = {
    "digits": {"rows_of_a": 150, "rows_of_b": 150, "test_rows": 1000, "frozen_epochs": 4, "final_epochs": 8},
    "docstrings": {
        "rows_of_a": 200,
        "rows_of_b": 200,
        "test_rows": 400,
        "max_length": 48,
        "frozen_epochs": 2,
        "final_epochs": 4,
    },
}
PLAIN = {"test_rows": 1000, "frozen_epochs": 3, "final_epochs": 5}  # where the tables are one's own
SOURCES = ("dataset", "train_images", "train_file")
IMAGES_ONLY, TEXTS_ONLY = ("image_size", "test_images"), ("max_length", "block_groups", "test_file")


@dataclass(frozen=True)
@with_home_paths
class TransferabilitySettings(TableReading):
    """Settings of the experiment.

    Attributes:
        dataset: A sample that needs no files: digits (scikit-learn's, 8 x 8 pixels, ten classes), or docstrings
            (paragraphs of five installed libraries, the library is the class).
        train_file: Labelled table or tables of texts, in place of a sample; four classes or more.
        test_file: The same, tested on; without it a part of train_file is held out.
        train_images: Folder that holds a folder of images a class, a table of paths, or a dataset's saved folder.
        test_images: The same, tested on; without it a part of train_images is held out.
        model: Any image or text model of transformers, or of this project; null takes a small ResNet for images and the
            built-in language model for texts.
        output_dir: Folder for cells and results; several processes may work in it.
        text_column: Column of text; several are joined with field marks.
        image_column: Column of images or paths, in a table or dataset.
        label_column: Column of labels.
        task_a: The classes of task A, the others are task B's; null lets each seed draw a half.
        rows_of_a: Training rows of task A, the same share of each class; null takes all, or a few of a sample's.
        rows_of_b: Training rows of task B.
        test_rows: Most test rows of a task, the same share of each class; null takes 1000, or what suits the sample.
        test_fraction: Part held out where no test table is given.
        seeds: Number of seeds (0, 1, ...), each with its own split and weights.
        layers: Numbers n of layer groups to copy; null takes every n up to all groups but the head.
        frozen_epochs: Epochs in which the copied groups of every curve stand still; 0 thaws those of BnB+ and AnB+ from
            the start, as the paper does; null takes 3, or what suits the sample.
        final_epochs: Epochs after that, in which the copied groups of BnB+ and AnB+ are thawed; null takes 5, or what
            suits the sample.
        lr: Learning rate of all groups, the same for every network; null takes 0.004 for images, 0.005 for an AWD-LSTM,
            0.0003 for any other text model.
        batch_size: Rows of a step; null decides by the number of rows.
        pretrained: The two base networks start from the model's weights; false lets them start at random, as the
            paper does. New layers always start at random.
        image_size: Side of the images in pixels; null takes the model's own, or 32 for the small ResNet.
        max_length: Cut texts to so many tokens; null reads them whole.
        block_groups: Bundle a text transformer's blocks into so many layer groups; null makes each block one.
        preset: Recipe of the optimizer for texts; auto is fastai for an AWD-LSTM and transformer for any other model.
        mixed_precision: no, bf16, fp16 (GPU only), or fp8 (GPUs from Ada on).
        progress: Show progress bars; null decides by the terminal.
        title: Name of the data; null takes the sample's or the folder's name.
        figure: The picture's file; null takes transferability.png in the output folder.
        head: Head of an image classifier; by default a single linear layer, so that the last n trains little else.
        backbone: The small ResNet.
    """

    dataset: Literal["digits", "docstrings"] | None = None
    train_file: list[str] | None = None
    test_file: str | None = None
    train_images: str | None = None
    test_images: str | None = None
    model: str | None = None
    output_dir: str = "runs/transferability"
    text_column: list[str] = field(default_factory=lambda: ["text"])
    image_column: str = "image"
    label_column: str = "label"
    task_a: list[str] | None = None
    rows_of_a: int | None = None
    rows_of_b: int | None = None
    test_rows: int | None = None
    test_fraction: float = 0.25
    seeds: int = 3
    layers: list[int] | None = None
    frozen_epochs: int | None = None
    final_epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    pretrained: bool = True
    image_size: int | None = None
    max_length: int | None = None
    block_groups: int | None = None
    preset: PresetName = "auto"
    mixed_precision: Precision = "no"
    progress: bool | None = None
    title: str | None = None
    figure: str | None = None
    head: ImageHeadSettings = field(default_factory=lambda: ImageHeadSettings(hidden_sizes=[], dropouts=[0.1]))
    backbone: SmallResNetSettings = field(default_factory=SmallResNetSettings)

    def __post_init__(self) -> None:
        """Refuse what contradicts itself before anything is read."""
        check_choices(self)
        check_whole(self, {"rows_of_a": 2, "rows_of_b": 2, "test_rows": 1, "seeds": 1, "final_epochs": 1})
        check_whole(self, {"frozen_epochs": 0, "batch_size": 2, "image_size": 1, "max_length": 1, "block_groups": 1})
        check_above_zero(self, "lr")
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give one of {', '.join(SOURCES)} to take tasks from, got {' and '.join(given) or 'none'}; "
                "--dataset digits needs no files"
            )
        kind, foreign = ("images", TEXTS_ONLY) if self.on_images else ("texts", IMAGES_ONLY)
        if self.dataset is not None:
            foreign = (*foreign, "test_file", "test_images")
        for name in foreign:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} has no meaning for {given[0]} {getattr(self, given[0])!r}, which "
                    f"are {kind}{'' if self.dataset is None else ' with test rows of their own'}; leave it out"
                )

    @property
    def on_images(self) -> bool:
        """Whether the data are images."""
        return self.train_images is not None or self.dataset == "digits"


@exclusive_run()
def run_transferability(settings: TransferabilitySettings, *, context: RunContext | None = None) -> dict[str, Any]:
    """Train the networks that are missing, write results.json, results.csv, results.md and the picture.

    Args:
        settings: Settings of the experiment.
        context: Surroundings; made from the settings by default.

    Returns:
        What ``results.json`` holds: among others ``points`` (the curves), ``table`` in Markdown, and ``answer``, the
        sentence that says what the figures show.

    Raises:
        ValueError: A setting, table, image or model cannot be used.
    """
    context = context or RunContext(
        preset=settings.preset, mixed_precision=settings.mixed_precision, progress=settings.progress
    )
    context.refuse_several_processes("the comparison")
    train, test = load_examples(settings, say=context.tell)
    settings = with_defaults(settings)
    tasks_of(settings, train, test, seed=0)  # refused before anything is trained
    groups = group_names(settings, train, test, context)
    settings = dataclasses.replace(settings, layers=checked_layers(groups, settings.layers))
    total = settings.seeds * len(list(networks_of(settings.layers or ())))
    context.tell(f"layer groups: {' | '.join(groups)}; {total} networks to train")
    with quick_collections():
        for seed in range(settings.seeds):
            a, b = tasks_of(settings, train, test, seed=seed)
            context.tell(f"seed {seed}: task A is {list_labels(a.names)}; task B is {list_labels(b.names)}")
            seeded = dataclasses.replace(context, seed=seed)
            networks = SeedOfNetworks(settings, a, b, seeded, test_rows=len(test.table))
            for network in networks_of(settings.layers or ()):
                networks.run(network)
            networks.drop_weights()
    return write_transferability(settings, groups=groups, say=context.tell)


@contextlib.contextmanager
def quick_collections() -> Iterator[None]:
    """Keep what there is out of Python's garbage collections in the block: every training phase ends with one.

    With many small trainings, searching the libraries' own objects each time is a good part of the whole.
    """
    mine = gc.get_freeze_count() == 0
    if mine:
        gc.collect()
        gc.freeze()
    try:
        yield
    finally:
        if mine:
            gc.unfreeze()


def with_defaults(settings: TransferabilitySettings) -> TransferabilitySettings:
    """Return the settings with the model and the sample's sizes filled in where they were left out."""
    changes: dict[str, Any] = {}
    if not settings.on_images and settings.model is None:
        changes["model"] = DEFAULT_MODEL
    sizes = SAMPLES.get(str(settings.dataset), PLAIN)
    changes |= {name: size for name, size in sizes.items() if getattr(settings, name) is None}
    if settings.title is None:
        source = settings.dataset or settings.train_images or (settings.train_file or [""])[0]
        changes["title"] = Path(source).stem
    return dataclasses.replace(settings, **changes)


def group_names(settings: TransferabilitySettings, train: Examples, test: Examples, context: RunContext) -> list[str]:
    """Return the names of the layer groups, input side first."""
    quiet = dataclasses.replace(context, say=lambda _line: None)
    learner = build_learner(settings, tasks_of(settings, train, test, seed=0)[1], quiet, pretrained=False)
    return learner.names


def checked_layers(groups: Sequence[str], layers: Sequence[int] | None) -> list[int]:
    """Return the numbers n of layer groups to copy, rising.

    Args:
        groups: Names of the layer groups; the last is the head, which is always new.
        layers: The numbers wanted; None takes all.

    Raises:
        ValueError: There is one layer group only, or a number is out of range.
    """
    if len(groups) < 2:
        raise ValueError(
            f"the model has {len(groups)} layer group ({', '.join(groups)}), so there is none below the head that "
            "could be copied; give a model with at least two"
        )
    every = list(range(1, len(groups)))
    if layers is None:
        return every
    wrong = [n for n in layers if n not in every]
    if wrong or not layers:
        raise ValueError(
            f"layers must be numbers of layer groups to copy, from 1 to {every[-1]} (the head is always new, n = 0 is "
            f"always run), got {', '.join(map(str, wrong)) or 'none'}; the groups are {', '.join(groups)}"
        )
    return sorted(set(layers))
