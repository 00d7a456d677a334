"""The groups of settings of the image stage: the head, the small backbone, the augmentation."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from ulmfit_pipe.data.augmentation import Augmentation
from ulmfit_pipe.settings.checks import check_choices


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
        """Refuse numbers that make no head."""
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

    flip: bool = Augmentation.flip
    least_crop: float = Augmentation.least_crop
    stretch: float = Augmentation.stretch
    colour: float = Augmentation.colour
    off: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that no image could be changed by."""
        self.build()

    def build(self) -> Augmentation | None:
        """Return the augmentation, or None where it is off."""
        numbers = {name: value for name, value in dataclasses.asdict(self).items() if name != "off"}
        augmentation = Augmentation(**numbers)
        return None if self.off else augmentation
