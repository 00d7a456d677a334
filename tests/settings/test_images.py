"""Settings of images that no run could use are refused when they are made."""

import dataclasses

import pytest

from ulmfit_pipe.data.images.augmentation import Augmentation
from ulmfit_pipe.settings.images import AugmentationSettings


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"least_crop": 0.0}, r"least_crop must lie in \(0, 1\], got 0.0; 1 crops nothing off at random"),
        ({"least_crop": 1.5}, r"least_crop must lie in \(0, 1\], got 1.5"),
        ({"stretch": 0.5}, "stretch must be 1 or more, got 0.5; 1 keeps the shape"),
        ({"colour": 1.0}, r"colour must lie in \[0, 1\), got 1.0; 0 leaves colours alone"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, words):
    with pytest.raises(ValueError, match=words):
        AugmentationSettings(**numbers)


def test_the_defaults_are_those_of_the_augmentation_itself():
    given = dataclasses.asdict(AugmentationSettings())
    assert given.pop("off") is False
    assert given == dataclasses.asdict(Augmentation())
