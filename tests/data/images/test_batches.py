import copy

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessorPil, ConvNextImageProcessorPil, ViTImageProcessorPil

from tests.support.image_files import picture, png
from ulmfit_pipe.data.images.augmentation import Augmentation
from ulmfit_pipe.data.images.batches import QUARTER_TURNS, ImageBatches, ImagePixels
from ulmfit_pipe.data.images.files import ImageError, image_table

MEAN, STD = [0.2, 0.4, 0.6], [0.1, 0.2, 0.3]
VIT = ViTImageProcessorPil(size={"height": 10, "width": 14}, image_mean=MEAN, image_std=STD)


def table_of(count=7, *, turned=False):
    files = [png(picture(width=20 + row, height=30, seed=row)) for row in range(count)]
    table = image_table(files, [row % 3 for row in range(count)], ["ant", "bee", "wasp"])
    if not turned:
        return table
    turns = datasets.Dataset.from_dict({QUARTER_TURNS: [row % 4 for row in range(count)]})
    return datasets.concatenate_datasets([table, turns], axis=1)


def batches_of(table=None, *, processor=VIT, channels=3, **settings):
    pixels = ImagePixels(processor, channels=channels)
    return ImageBatches(table or table_of(), pixels, **{"batch_size": 3, "shuffle": False, **settings})


def rows_of(batches):
    return [batch["row"].tolist() for batch in batches]


def same(first, second):
    pairs = list(zip(first, second, strict=True))
    return all(torch.equal(one[name], other[name]) for one, other in pairs for name in one)


@pytest.mark.parametrize(
    "processor",
    [
        VIT,
        ConvNextImageProcessorPil(size={"shortest_edge": 16}),
        BitImageProcessorPil(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16}),
    ],
    ids=["exact size", "crop share", "shortest edge and crop"],
)
def test_evaluation_gives_what_the_processor_gives(processor):
    images = [picture(width=20 + row, height=30, seed=row) for row in range(7)]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    found = torch.cat([batch["pixel_values"] for batch in batches_of(processor=processor)])
    assert torch.equal(found, expected)
    assert found.dtype == torch.float32


def test_augmented_images_have_the_processors_size_and_normalization():
    still = Augmentation(flip=False, least_crop=1.0, stretch=1.0, colour=0.0)
    image = picture(width=28, height=20)  # the target's shape: nothing is cut off
    table = image_table([png(image)], [0], ["ant"])
    found = next(iter(batches_of(table, augmentation=still)))["pixel_values"]
    assert torch.equal(found, VIT(images=[image], return_tensors="pt")["pixel_values"])


def test_grey_images_have_one_channel_and_the_average_normalization():
    image = Image.fromarray(np.arange(140, dtype=np.uint8).reshape(10, 14))
    table = image_table([png(image)], [0], ["ant"])
    found = next(iter(batches_of(table, channels=1)))["pixel_values"]
    assert found.shape == (1, 1, 10, 14)
    expected = (torch.arange(140).reshape(10, 14) / 255 - 0.4) / 0.2
    torch.testing.assert_close(found[0, 0], expected)


def test_an_image_of_one_pixel_makes_a_tensor_like_any_other():
    table = image_table([png(Image.new("RGB", (1, 1), (255, 0, 0)))] * 2, [0, 1], ["ant", "bee"])
    for augmentation in (None, Augmentation()):
        values = next(iter(batches_of(table, augmentation=augmentation)))["pixel_values"]
        assert values.shape == (2, 3, 10, 14)
        assert values.isfinite().all()


def test_labels_and_rows_belong_to_their_images():
    batches = batches_of(shuffle=True, seed=4)
    alone = {row: batch["pixel_values"][0] for row, batch in enumerate(batches_of(batch_size=1))}
    for batch in batches:
        assert batch["labels"].tolist() == [row % 3 for row in batch["row"].tolist()]
        for row, values in zip(batch["row"].tolist(), batch["pixel_values"], strict=True):
            assert torch.equal(values, alone[row])
    assert "labels" not in next(iter(batches_of(table_of().remove_columns("label"))))


def test_order_and_changes_are_a_function_of_seed_epoch_and_row():
    settings = {"shuffle": True, "augmentation": Augmentation(), "seed": 3}
    first, again = batches_of(**settings), batches_of(**settings)
    assert same(first, again)
    assert same(first, first)
    again.set_epoch(1)
    assert rows_of(again) != rows_of(first)
    assert not same(batches_of(**settings, batch_size=7), batches_of(**{**settings, "seed": 5}, batch_size=7))
    plain, other = (batches_of(augmentation=Augmentation(), seed=3, batch_size=7) for _ in range(2))
    other.set_epoch(1)
    changed = next(iter(plain))["pixel_values"] != next(iter(other))["pixel_values"]
    assert changed.flatten(1).any(dim=1).all()  # every image differs from one epoch to the next


def test_a_shallow_copy_keeps_its_own_epoch():
    batches = batches_of(shuffle=True)
    before = rows_of(batches)
    copied = copy.copy(batches)
    copied.set_epoch(3)
    assert rows_of(batches) == before
    assert rows_of(copied) != before


def test_every_row_comes_once_and_a_last_batch_of_one_joins_its_neighbour():
    assert rows_of(batches_of()) == [[0, 1, 2], [3, 4, 5], [6]]
    trained = rows_of(batches_of(shuffle=True))
    assert [len(rows) for rows in trained] == [3, 4]
    assert sorted(sum(trained, [])) == list(range(7))
    assert len(batches_of(shuffle=True)) == 2


def test_ranks_together_give_one_process_batches():
    settings = {"shuffle": True, "augmentation": Augmentation(), "batch_size": 4}
    whole = list(batches_of(table_of(8), **settings))
    parts = [list(batches_of(table_of(8), **settings, rank=rank, world_size=2)) for rank in (0, 1)]
    assert len(parts[0]) == len(parts[1]) == len(whole)
    for batch, first, second in zip(whole, *parts, strict=True):
        for name, values in batch.items():
            assert torch.equal(values[0::2], first[name])
            assert torch.equal(values[1::2], second[name])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_process_without_an_image_of_a_batch_gets_a_filler(workers):
    shares = [
        list(batches_of(table_of(8), shuffle=True, rank=rank, world_size=3, workers=workers)) for rank in range(3)
    ]
    assert [[hasattr(batch, "filler") for batch in share] for share in shares] == [
        [False, False, False],
        [False, False, False],
        [False, False, True],
    ]
    assert shares[2][2]["row"].tolist() == shares[0][2]["row"].tolist()


def test_threads_that_make_batches_ahead_change_nothing():
    settings = {"shuffle": True, "augmentation": Augmentation(), "batch_size": 2}
    assert same(batches_of(**settings), batches_of(**settings, workers=2))
    endless = iter(batches_of(**settings, workers=2))
    next(endless)
    endless.close()  # what is on its way is dropped


def test_an_image_that_does_not_open_is_named_by_its_row_also_from_a_thread():
    table = image_table([png(picture()), b"bad"], [0, 1], ["ant", "bee"])
    for workers in (0, 1):
        with pytest.raises(ImageError, match="the image of row 2 does not open as an image"):
            list(batches_of(table, workers=workers))


def test_turned_images_are_turned_after_they_are_mirrored():
    square = ViTImageProcessorPil(size={"height": 12, "width": 12}, image_mean=MEAN, image_std=STD)
    table = table_of(8, turned=True)
    plain = torch.cat([batch["pixel_values"] for batch in batches_of(table, processor=square)])
    unturned = torch.cat([batch["pixel_values"] for batch in batches_of(table_of(8), processor=square)])
    assert torch.equal(plain[0], unturned[0])
    assert not torch.equal(plain[1], unturned[1])
    changes = {"processor": square, "augmentation": Augmentation()}
    changed = torch.cat([batch["pixel_values"] for batch in batches_of(table, **changes)])
    still = torch.cat([batch["pixel_values"] for batch in batches_of(table_of(8), **changes)])
    for row in range(8):
        assert torch.equal(changed[row], torch.rot90(still[row], row % 4, dims=(1, 2)))


def test_turned_images_that_are_not_square_are_refused():
    with pytest.raises(ImageError, match="turned images must be square, the processor makes 10 x 14; set image_size"):
        batches_of(table_of(turned=True))


def test_a_processor_that_keeps_shapes_is_refused():
    free = BitImageProcessorPil(size={"shortest_edge": 16}, do_center_crop=False)
    with pytest.raises(ImageError, match=r"images of different sizes \(\(16, 25\) and \(25, 16\)\).*set image_size"):
        ImagePixels(free)


def test_a_number_of_channels_that_images_do_not_have_is_refused():
    with pytest.raises(ImageError, match=r"images have 3 channels \(colour\) or 1 \(grey\), got 4; choose one of them"):
        ImagePixels(VIT, channels=4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"workers": -1}, "workers must be 0 or more threads, got -1"),
        ({"rank": 2, "world_size": 2}, r"rank must lie in 0..world_size-1, got rank=2 with world_size=2"),
        ({"world_size": 4}, "4 processes cannot share batch_size=3: .* set batch_size to 4 or more"),
        ({"batch_size": 9, "world_size": 8}, "7 images cannot be shared by 8 processes"),
    ],
)
def test_sizes_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        batches_of(**settings)
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        batches_of().set_epoch(-1)
