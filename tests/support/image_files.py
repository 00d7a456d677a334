"""Small image files of every kind, good and bad."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(*, width: int = 12, height: int = 9, shade: int = 0, seed: int = 0) -> Image.Image:
    """Return a colour image: noise, brighter by `shade`."""
    noise = np.random.default_rng(seed).integers(0, 100, (height, width, 3))
    return Image.fromarray((noise + shade).astype(np.uint8))


def png(image: Image.Image, **options) -> bytes:
    content = io.BytesIO()
    image.save(content, "png", **options)
    return content.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header says that it is huge."""
    content = bytearray(png(Image.new("L", (3, 3))))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


def image_folder(folder: Path, classes: tuple[str, ...] = ("ant", "bee"), *, count: int = 6, shift: int = 0) -> Path:
    """Write a folder of images a class; a class is told by how bright its images are."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image = picture(shade=number * 150 // max(1, len(classes) - 1), seed=100 * number + index + shift)
            image.save(folder / name / f"{index}.png")
    return folder
