import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests.support.image_files import picture, png
from ulmfit_pipe.data.images.files import image_table, scan_images
from ulmfit_pipe.data.sample.image_samples import LETTERS, handwritten_digits, printed_letters, rotation_task


def pixels(table):
    return [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in table]


def test_the_digits_are_scikit_learns_with_a_fifth_of_each_held_out():
    parts = handwritten_digits()
    assert {name: len(part) for name, part in parts.items()} == {"train": 1437, "test": 360}
    assert parts["train"].features["label"].names == [str(digit) for digit in range(10)]
    assert set(Counter(parts["test"]["label"][:]).values()) <= {34, 35, 36, 37}
    originals = Counter(np.round(image * 255 / 16).astype(np.uint8).tobytes() for image in load_digits().images)
    found = Counter(image.tobytes() for part in parts.values() for image in pixels(part))
    assert found == originals
    again = handwritten_digits()["test"]
    assert again["label"][:] == parts["test"]["label"][:]


def test_printed_letters_are_as_small_as_the_digits_and_no_two_alike():
    table = printed_letters(52, seed=1)
    images = pixels(table)
    assert {image.shape for image in images} == {(8, 8)}
    assert table["label"][:] == [*range(26), *range(26)]
    assert table.features["label"].names == list(LETTERS)
    assert len({image.tobytes() for image in images}) > 45
    assert all(image.max() > 127 and image.min() < 64 for image in images)  # strokes, and ground between them
    assert len(scan_images(table).table) == 52
    assert [image.tobytes() for image in pixels(printed_letters(52, seed=1))] == [image.tobytes() for image in images]
    assert [image.tobytes() for image in pixels(printed_letters(52, seed=2))] != [image.tobytes() for image in images]


def test_letters_come_at_least_once_each():
    with pytest.raises(ValueError, match="count must be at least one image of each of 26 letters, got 25"):
        printed_letters(25)


def test_the_rotation_task_asks_of_every_image_how_often_it_was_turned():
    table = image_table([png(picture(seed=row)) for row in range(2)], [0, 0], ["ant"])
    task = rotation_task(table)
    assert task["label"][:] == task["quarter_turns"][:] == [0, 1, 2, 3] * 2
    assert task.features["label"].names == ["0", "90", "180", "270"]
    assert [row["image"]["bytes"] for row in task] == [table[0]["image"]["bytes"]] * 4 + [
        table[1]["image"]["bytes"]
    ] * 4
