"""Images that need no download: scikit-learn's handwritten digits, and tasks to pretrain a small backbone on.

`printed_letters` draws the letters of the fonts that come with matplotlib, as small as the digits are; nothing of the
digits is in them. `rotation_task` asks of any images which way up they are (Gidaris et al. 2018): it needs no labels.
"""

import io
import string
from collections.abc import Sequence
from pathlib import Path

import datasets
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits

from ulmfit_pipe.data.images.batches import QUARTER_TURNS
from ulmfit_pipe.data.images.files import image_table
from ulmfit_pipe.data.progress_bars import bars_on_a_terminal_only

DIGITS_TEST = 360  # of 1,797; a fifth, the same share of each digit
DIGITS_SEED = 0  # of that split, whatever the seed of a run
DIGITS_TOP = 16  # the brightest value of the digits
LETTERS = string.ascii_uppercase
LETTER_FONTS = "DejaVuSans*.ttf"
CANVAS, FONT_SIZE = 96, 56  # pixels: room to turn and slant a letter
BLOCKS = 32  # pixels a side before 4 x 4 blocks are counted, as the digits were made (UCI optdigits)
TURN, SLANT = 12.0, 0.3  # degrees, and shift to the side per pixel of height, either way
THICKEST = 3  # pixels that strokes may gain
ANGLES = ("0", "90", "180", "270")


def handwritten_digits() -> datasets.DatasetDict:
    """Return scikit-learn's 1,797 digits of 8 x 8 pixels as images: ``train`` (1,437) and ``test`` (360).

    Source: UCI, Optical Recognition of Handwritten Digits; `sklearn.datasets.load_digits`. The split is ours.
    """
    digits = load_digits()
    files = [_png(image * (255 / DIGITS_TOP)) for image in digits.images]
    table = image_table(files, [int(label) for label in digits.target], [str(name) for name in digits.target_names])
    parts = table.train_test_split(test_size=DIGITS_TEST, seed=DIGITS_SEED, stratify_by_column="label")
    return datasets.DatasetDict(train=parts["train"], test=parts["test"])


def printed_letters(count: int, *, seed: int = 0) -> datasets.Dataset:
    """Draw capital letters in several fonts, turned, slanted and thickened at random, as 8 x 8 images.

    Args:
        count: Number of images; the letters take turns.
        seed: Of the changes.

    Raises:
        ValueError: `count` is below one image a letter.
    """
    if count < len(LETTERS):
        raise ValueError(f"count must be at least one image of each of {len(LETTERS)} letters, got {count!r}")
    paths = sorted(Path(matplotlib.get_data_path(), "fonts/ttf").glob(LETTER_FONTS))
    fonts = [ImageFont.truetype(str(path), FONT_SIZE) for path in paths if "Display" not in path.name]
    chance = np.random.default_rng(seed)
    labels = [row % len(LETTERS) for row in range(count)]
    files = [_png(_letter(LETTERS[label], fonts, chance)) for label in labels]
    return image_table(files, labels, list(LETTERS))


def _letter(letter: str, fonts: Sequence[ImageFont.FreeTypeFont], chance: np.random.Generator) -> np.ndarray:
    """Return a letter of 8 x 8 values in 0..255, made as the digits were: a black and white one, blocks counted."""
    canvas = Image.new("L", (CANVAS, CANVAS))
    font, stroke = fonts[int(chance.integers(len(fonts)))], int(chance.integers(THICKEST + 1))
    middle = (CANVAS / 2, CANVAS / 2)
    ImageDraw.Draw(canvas).text(middle, letter, fill=255, font=font, anchor="mm", stroke_width=stroke)
    slant = chance.uniform(-SLANT, SLANT)
    matrix = (1, slant, -slant * CANVAS / 2, 0, 1, 0)
    canvas = canvas.transform(canvas.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    canvas = canvas.rotate(chance.uniform(-TURN, TURN), Image.Resampling.BILINEAR)
    drawn = canvas.crop(canvas.getbbox())
    share = BLOCKS / max(drawn.size)
    small = drawn.resize([max(1, round(side * share)) for side in drawn.size], Image.Resampling.BILINEAR)
    framed = Image.new("L", (BLOCKS, BLOCKS))
    framed.paste(small, ((BLOCKS - small.width) // 2, (BLOCKS - small.height) // 2))
    inked = np.asarray(framed) > 127
    side = BLOCKS // 8
    return inked.reshape(8, side, 8, side).mean(axis=(1, 3)) * 255


def rotation_task(table: datasets.Dataset) -> datasets.Dataset:
    """Return every image four times, turned by a quarter more each time; the label is the turn.

    Source: Gidaris et al. 2018, "Unsupervised Representation Learning by Predicting Image Rotations".
    """
    images = table.select_columns(["image"]).select(np.repeat(np.arange(len(table)), len(ANGLES)))
    turns = list(range(len(ANGLES))) * len(table)
    features = datasets.Features(
        {"label": datasets.ClassLabel(names=list(ANGLES)), QUARTER_TURNS: datasets.Value("int64")}
    )
    labels = datasets.Dataset.from_dict({"label": turns, QUARTER_TURNS: turns}, features=features)
    with bars_on_a_terminal_only():
        return datasets.concatenate_datasets([images, labels], axis=1)


def _png(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.round(values).astype(np.uint8)).save(content, "png")
    return content.getvalue()
