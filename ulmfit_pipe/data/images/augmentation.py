"""Light augmentation of an image: a random crop, a mirrored copy, a change of colour. Pillow does all of it."""

from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np
from PIL import Image, ImageEnhance

MIRRORED = 0.5  # share of images that are mirrored


@dataclass(frozen=True)
class Augmentation:
    """How far an image may change, and the change itself.

    Attributes:
        flip: Mirror every other image left to right.
        least_crop: Area of the smallest crop in (0, 1], as a share of the largest crop of that shape that fits.
        stretch: A crop's sides may differ from the target's shape by this ratio, 1 or more, either way.
        colour: Brightness, contrast and saturation change by up to this share in [0, 1), each on its own.
    """

    flip: bool = True
    least_crop: float = 0.5  # RandomResizedCrop(min_scale=0.5), fastbook chapter 2
    stretch: float = 4 / 3  # the ratio of RandomResizedCrop, fastai and torchvision alike
    colour: float = 0.2  # max_lighting of fastai's aug_transforms

    def apply(
        self, image: Image.Image, *, height: int, width: int, resample: int, chance: np.random.Generator
    ) -> Image.Image:
        """Return a changed copy of the given size.

        Args:
            image: Mode RGB or L.
            height: Height of the result, in pixels.
            width: Width of the result.
            resample: Pillow's number of the filter.
            chance: The random generator, the only source of randomness.
        """
        box = self._box(image, shape=width / height, chance=chance)
        changed = image.resize((width, height), Image.Resampling(resample), box=box)
        if self.flip and chance.random() < MIRRORED:
            changed = changed.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.colour:
            kinds = [ImageEnhance.Brightness, ImageEnhance.Contrast]
            kinds += [ImageEnhance.Color] if image.mode == "RGB" else []
            for kind in kinds:
                changed = kind(changed).enhance(float(chance.uniform(1 - self.colour, 1 + self.colour)))
        return changed

    def _box(
        self, image: Image.Image, *, shape: float, chance: np.random.Generator
    ) -> tuple[float, float, float, float]:
        """Return a crop (left, top, right, bottom) of about the target's shape, width over height."""
        shape *= exp(chance.uniform(-log(self.stretch), log(self.stretch)))
        widest, highest = min(image.width, image.height * shape), min(image.height, image.width / shape)
        side = sqrt(chance.uniform(self.least_crop, 1))
        width, height = widest * side, highest * side
        left, top = chance.uniform(0, image.width - width), chance.uniform(0, image.height - height)
        return left, top, min(left + width, image.width), min(top + height, image.height)
