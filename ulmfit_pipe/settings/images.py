"""Settings of image runs: the classifier, its head, small backbone and augmentation, the pretraining, the run."""

from dataclasses import dataclass, field
from typing import Literal

from ulmfit_pipe.settings.checks import (
    added_setting,
    check_above_zero,
    check_choices,
    check_types,
    check_whole,
)
from ulmfit_pipe.settings.run import RunSettings


@dataclass(frozen=True)
class ImageHeadSettings:
    """The head that is put on the backbone; the names in brackets are those of fastai's cnn_learner.

    Attributes:
        concat_pool: Pool by max and average, or by average alone [concat_pool].
        hidden_sizes: Widths of the inner layers; empty for a single linear layer [lin_ftrs].
        dropouts: Dropout before each linear layer; one number is the last layer's, and half of it the others' [ps].
        final_norm: A batch norm on the logits [bn_final].
        init: How the linear layers start [init].
    """

    concat_pool: bool = True
    hidden_sizes: list[int] = field(default_factory=lambda: [512])
    dropouts: list[float] = field(default_factory=lambda: [0.5])
    final_norm: bool = False
    init: Literal["kaiming-normal", "kaiming-uniform", "xavier-normal", "xavier-uniform"] = "kaiming-normal"

    def __post_init__(self) -> None:
        """Refuse values that make no head."""
        check_choices(self)
        layers = len(self.hidden_sizes) + 1
        if len(self.dropouts) not in (1, layers) or any(not 0 <= value < 1 for value in self.dropouts):
            raise ValueError(
                f"dropouts must be one number in [0, 1), or {layers} for the inner widths {self.hidden_sizes}, got "
                f"{self.dropouts}"
            )
        if any(isinstance(width, bool) or width < 1 for width in self.hidden_sizes):
            raise ValueError(f"hidden_sizes must be whole numbers of 1 or more, got {self.hidden_sizes}; 512 is usual")


@dataclass(frozen=True)
class SmallResNetSettings:
    """The backbone where no model is given: a ResNet of basic blocks with random weights.

    Attributes:
        embedding_size: Channels of the stem, which reduces the image four times.
        hidden_sizes: Channels of each stage.
        depths: Blocks of each stage; every stage but the first halves the map.
    """

    embedding_size: int = 16
    hidden_sizes: list[int] = field(default_factory=lambda: [32, 64, 128])
    depths: list[int] = field(default_factory=lambda: [1, 1, 1])


@dataclass(frozen=True)
class AugmentationSettings:
    """How images are changed while training.

    Attributes:
        flip: Mirror every other image left to right; false for digits and letters.
        least_crop: Area of the smallest random crop, as a share of the largest that fits; 1 crops nothing at random.
        stretch: A crop's sides may differ from the target's shape by this ratio; 1 keeps the shape.
        colour: Brightness, contrast and saturation change by up to this share; 0 leaves them alone.
        off: Leave images as the processor makes them, in training too.
    """

    flip: bool = True
    least_crop: float = 0.5  # these three as in `data.augmentation.Augmentation`, which has their sources
    stretch: float = 4 / 3
    colour: float = 0.2
    off: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no image could be changed by."""
        if not 0 < self.least_crop <= 1:
            raise ValueError(f"least_crop must lie in (0, 1], got {self.least_crop!r}; 1 crops nothing off at random")
        if not self.stretch >= 1:
            raise ValueError(f"stretch must be 1 or more, got {self.stretch!r}; 1 keeps the shape")
        if not 0 <= self.colour < 1:
            raise ValueError(f"colour must lie in [0, 1), got {self.colour!r}; 0 leaves colours alone")


@dataclass(frozen=True)
class ImageClassifierSettings:
    """Settings of the image stage; the names in brackets are those of fastai's cnn_learner.

    Attributes:
        plan: fine-tune (the head alone, then all groups, as fastai's fine_tune), gradual, chain-thaw, lp-ft, head (the
            head only), full (all groups at once); null takes fine-tune, or full where nothing is pretrained.
        epochs_per_phase: Epochs of each phase that leaves something frozen; for lp-ft the most of the head's.
        final_epochs: Epochs of the last phase.
        lr: Learning rate of the head while it trains alone, and the last group's in plans without such a phase; once
            all groups train, fine-tune goes from a two-hundredth to half of it.
        rest_lr: Learning rate of chain-thaw, and of lp-ft once all groups train; null takes a tenth of lr.
        lr_decay: Ratio of neighbouring groups' rates in the plans gradual and full; null takes 2.6, or 1 where nothing
            is pretrained.
        batch_size: Images of a step, over all processes; null takes 64, or fewer for small data.
        label_smoothing: In [0, 1).
        class_weights: balanced weighs each class by the inverse of its frequency.
        monitor: Validation metric that chooses the best epoch.
        keep: End with the weights of the best epoch on validation data, or of the last epoch.
        train_norm: Whether batch norms of frozen groups train on, their running statistics too [train_bn]; false
            keeps everything below the head fixed.
        pretrained: Start from the model's weights, frozen up to the head; false takes its architecture only, with
            random weights, and freezes nothing [pretrained].
        keep_stages: Number of stages of the backbone (a transformer's blocks) to keep, from the input; negative
            drops that many at its end; null keeps all [cut].
        channels: 1 for grey images, 3 for colour; null takes what the backbone was made for [n_in].
        image_size: Side of the images in pixels; null takes the model's own.
        layer_groups: early-late-head, or stages for one group per stage [split_on].
        accumulation_steps: Micro-batches an optimizer step.
        skip_bad_images: Leave out images that cannot be opened, and log how many, instead of raising.
        num_workers: Threads that open images ahead of the training; null decides.
        cache_frozen: Run frozen groups once an image in each phase, and train the others from what they gave; needs
            train_norm false and augmentation.off true, without which an image gives something else each time.
        head: The head.
        augmentation: How images change while training.
        backbone: The backbone where no model is given.
    """

    plan: Literal["fine-tune", "gradual", "chain-thaw", "lp-ft", "head", "full"] | None = None
    epochs_per_phase: int = 1
    final_epochs: int = 5
    lr: float = 2e-3
    rest_lr: float | None = None
    lr_decay: float | None = None
    batch_size: int | None = None
    label_smoothing: float = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    monitor: Literal["accuracy", "macro_f1", "loss"] = "accuracy"
    keep: Literal["best", "last"] = "best"
    train_norm: bool = True
    pretrained: bool = True
    keep_stages: int | None = None
    channels: int | None = None
    image_size: int | None = None
    layer_groups: Literal["early-late-head", "stages"] = "early-late-head"
    accumulation_steps: int = 1
    skip_bad_images: bool = False
    num_workers: int | None = None
    cache_frozen: bool = added_setting(False)
    head: ImageHeadSettings = field(default_factory=ImageHeadSettings)
    augmentation: AugmentationSettings = field(default_factory=AugmentationSettings)
    backbone: SmallResNetSettings = field(default_factory=SmallResNetSettings)

    def __post_init__(self) -> None:
        """Refuse settings that no training can use, before it begins."""
        check_types(self)
        check_whole(self, {"epochs_per_phase": 1, "final_epochs": 1, "accumulation_steps": 1, "num_workers": 0})
        check_whole(self, {"image_size": 1, "batch_size": 2})
        check_above_zero(self, "lr", "rest_lr", "lr_decay")
        if self.channels not in (None, 1, 3):
            raise ValueError(
                f"channels must be 1 (grey) or 3 (colour), got {self.channels!r}; leave it out for the model's"
            )
        if self.cache_frozen and (self.train_norm or not self.augmentation.off):
            raise ValueError(
                f"cache_frozen keeps what frozen layers give for an image, which changes from epoch to epoch with "
                f"train_norm {self.train_norm} and augmentation.off {self.augmentation.off}; set train_norm to false "
                "and augmentation.off to true, or leave cache_frozen out"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing!r}; 0.1 is common")


@dataclass(frozen=True)
class PretrainingSettings:
    """The related task that a small backbone is pretrained on where no model is given.

    Attributes:
        task: printed-letters (capital letters in the fonts of matplotlib, small as the digits are), rotations (which
            way up the training images are: needs no labels), or none.
        images: Number of printed letters.
        epochs: Epochs of the task.
        lr: Learning rate of the task.
    """

    task: Literal["none", "printed-letters", "rotations"] = "none"
    images: int = 5_200
    epochs: int = 6
    lr: float = 3e-3

    def __post_init__(self) -> None:
        """Refuse values that no training could use."""
        check_types(self)
        check_whole(self, {"images": 260, "epochs": 1})
        check_above_zero(self, "lr")


@dataclass(frozen=True)
class ImageSettings(RunSettings):
    """Settings of a whole run on images.

    Attributes:
        output_dir: Folder for everything the run writes.
        train_images: Folder that holds a folder of images per class, a table of paths, or a dataset's saved folder.
        test_images: The same, scored once at the end.
        validation_images: The same; it chooses the best epoch. Without it a part of the training images is held out.
        dataset: A sample that needs no files, in place of train_images and test_images: the 8 x 8 handwritten digits of
            scikit-learn.
        model: Any image model of transformers (folder or hub id), or a classifier that this recipe wrote; null builds a
            small ResNet, pretrained with the settings of the group pretraining.
        image_column: Column of images or paths, in a table or dataset.
        label_column: Column of labels.
        validation_fraction: Part of the training images held out where no validation images are given.
        max_train_images: Use only this many training images, chosen at random by the seed; null takes all.
        seed: Seed of split, weights, dropout, order and augmentation.
        pretraining: The related task where no model is given.
        classifier: Settings of the image stage.
    """

    output_dir: str
    train_images: str | None = None
    test_images: str | None = None
    validation_images: str | None = None
    dataset: Literal["digits"] | None = None
    model: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    validation_fraction: float = 0.2
    max_train_images: int | None = None
    pretraining: PretrainingSettings = field(default_factory=PretrainingSettings)
    classifier: ImageClassifierSettings = field(default_factory=ImageClassifierSettings)

    def __post_init__(self) -> None:
        """Refuse values that are on no field's list, or out of range."""
        super().__post_init__()
        check_whole(self, {"max_train_images": 1})
