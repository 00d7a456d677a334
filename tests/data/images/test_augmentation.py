import numpy as np
import pytest
from PIL import Image

from tests.support.image_files import picture
from ulmfit_pipe.data.images.augmentation import Augmentation

STILL = {"flip": False, "least_crop": 1.0, "stretch": 1.0, "colour": 0.0}


def changed(image, seed=0, *, height=8, width=8, **numbers):
    chance = np.random.default_rng(seed)
    return Augmentation(**numbers).apply(image, height=height, width=width, resample=2, chance=chance)


def test_the_same_chance_gives_the_same_image_and_another_another():
    image = picture(width=40, height=30)
    assert changed(image, 1) == changed(image, 1)
    assert changed(image, 1) != changed(image, 2)


def test_with_everything_off_an_image_of_the_right_shape_is_only_resized():
    image = picture(width=24, height=24)
    assert changed(image, **STILL) == image.resize((8, 8), Image.Resampling.BILINEAR)


def test_a_mirrored_image_is_the_image_mirrored_about_half_of_the_time():
    image = picture(width=8, height=8)
    mirror = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    found = [changed(image, seed, **{**STILL, "flip": True}) for seed in range(40)]
    assert all(one in (image, mirror) for one in found)
    assert 10 < sum(one == mirror for one in found) < 30


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60), (200, 10), (1, 1)])
@pytest.mark.parametrize("least_crop", [0.3, 1.0])
def test_a_crop_lies_inside_the_image_and_has_the_area_and_shape_asked_for(width, height, least_crop):
    image = Image.new("L", (width, height))
    augmentation = Augmentation(least_crop=least_crop, stretch=4 / 3)
    for seed in range(20):
        left, top, right, bottom = augmentation._box(image, shape=2.0, chance=np.random.default_rng(seed))
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        shape = (right - left) / (bottom - top)
        assert 2.0 * 3 / 4 - 1e-6 <= shape <= 2.0 * 4 / 3 + 1e-6
        largest = min(width, height * shape) * min(height, width / shape)
        assert least_crop - 1e-6 <= (right - left) * (bottom - top) / largest <= 1 + 1e-6


def test_colours_change_by_no_more_than_asked_and_grey_images_stay_grey():
    image = Image.new("RGB", (8, 8), (100, 100, 100))
    values = np.array([np.asarray(changed(image, seed, **{**STILL, "colour": 0.2})).mean() for seed in range(30)])
    assert 79 <= values.min() < 90
    assert 110 < values.max() <= 121
    grey = Image.new("L", (8, 8), 100)
    assert changed(grey, colour=0.2).mode == "L"
