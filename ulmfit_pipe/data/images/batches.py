"""Images -> normalized tensors by a model's own processor, in batches, the share of each process.

Training: rows are shuffled and each image is changed a little; both are a pure function of seed, epoch and row.
Evaluation: the table's order, and the processor's own resizing and cropping.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor

from ulmfit_pipe.data.images.augmentation import Augmentation
from ulmfit_pipe.data.images.files import ImageError, describe_source, open_image, read_source
from ulmfit_pipe.data.process_shares import Share, share_of

PROBES = ((97, 61), (61, 97))  # width and height of two images that show which sizes a processor outputs
QUARTER_TURNS = "quarter_turns"  # column of a table of turned images
TURNS = {1: Image.Transpose.ROTATE_90, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_270}


class ImagePixels:
    """A model's image processor, for colour or grey images, with or without augmentation.

    Args:
        processor: Of transformers; its size, crop, filter and normalization are used.
        channels: 3, or 1 for grey: then the average of its three means and deviations normalizes.

    Raises:
        ImageError: The processor gives images of different sizes, or another number of channels is asked for.
    """

    def __init__(self, processor: Any, *, channels: int = 3) -> None:
        if channels not in (1, 3):
            raise ImageError(f"images have 3 channels (colour) or 1 (grey), got {channels!r}; choose one of them")
        self.processor = processor
        self.channels = channels
        shapes = [tuple(self.plain([Image.new("RGB", size)]).shape[-2:]) for size in PROBES]
        if shapes[0] != shapes[1]:
            raise ImageError(
                f"the processor gives images of different sizes ({shapes[0]} and {shapes[1]}), which no batch can "
                "hold; set image_size, which also crops"
            )
        self.height, self.width = shapes[0]

    @property
    def grey(self) -> bool:
        """Whether images are opened in grey."""
        return self.channels == 1

    @property
    def resample(self) -> int:
        """Pillow's number of the processor's filter; bilinear where it has none."""
        found = getattr(self.processor, "resample", None)
        return int(found) if isinstance(found, int) else int(Image.Resampling.BILINEAR)

    def plain(self, images: Sequence[Image.Image]) -> Tensor:
        """Return images as the processor makes them, float (batch, channels, height, width)."""
        return self._processed(images)

    def augmented(
        self, images: Sequence[Image.Image], augmentation: Augmentation, chances: Sequence[np.random.Generator]
    ) -> list[Image.Image]:
        """Return images changed at random, of the processor's size; `normalized` makes tensors of them."""
        return [
            augmentation.apply(image, height=self.height, width=self.width, resample=self.resample, chance=chance)
            for image, chance in zip(images, chances, strict=True)
        ]

    def normalized(self, images: Sequence[Image.Image]) -> Tensor:
        """Return images that have the right size already, float (batch, channels, height, width)."""
        return self._processed(images, do_resize=False, do_center_crop=False)

    def _processed(self, images: Sequence[Image.Image], **changes: bool) -> Tensor:
        if self.grey and getattr(self.processor, "do_normalize", False):
            for name in ("image_mean", "image_std"):
                changes[name] = [float(np.mean(getattr(self.processor, name)))] * 3  # type: ignore[assignment]
        colour = [image.convert("RGB") for image in images]
        values = self.processor(images=colour, return_tensors="pt", **changes)["pixel_values"].float()
        return values[:, : self.channels]


class ImageBatches:
    """Batches for an image classifier, each a dict of CPU tensors.

    - `pixel_values` float32 (batch, channels, height, width): normalized.
    - `labels` int64 (batch,); absent without a column.
    - `row` int64 (batch,): the row's index in the table.

    Every row comes exactly once per epoch. Order and augmentation are a pure function of (seed, epoch, row); the epoch
    is 0 until `set_epoch`. In training no batch has fewer than two rows (batch norm needs two) where table and
    `batch_size` allow it, in evaluation none fewer than one per process; a smaller last batch joins the one before it.
    A process that gets no row of a batch is given a `FillerBatch`.
    """

    def __init__(
        self,
        table: Dataset,
        pixels: ImagePixels,
        *,
        batch_size: int,
        shuffle: bool = True,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ) -> None:
        """Plan epoch 0; no image is opened yet.

        Args:
            table: Columns `image` and perhaps `label`; with `quarter_turns` each image is turned so often.
            pixels: The model's processor.
            batch_size: Most rows of a global batch, over all processes.
            shuffle: True for training, False for evaluation and prediction.
            augmentation: How images change in training; None leaves them to the processor.
            seed: With the epoch it fixes the order, with the row also the change.
            rank: This process, from 0.
            world_size: Number of processes.
            workers: Threads that make batches ahead; 0 makes each when it is asked for.

        Raises:
            ImageError: There are fewer rows than processes, or turned images would not be square.
            ValueError: A size is out of range.
        """
        _check_sizes(batch_size, seed=seed, rank=rank, world_size=world_size, workers=workers)
        if len(table) < world_size:
            raise ImageError(
                f"{len(table)} images cannot be shared by {world_size} processes: each needs one a batch; give at "
                f"least {world_size}"
            )
        if QUARTER_TURNS in table.column_names and pixels.height != pixels.width:
            raise ImageError(
                f"turned images must be square, the processor makes {pixels.height} x {pixels.width}; set image_size"
            )
        self.table, self.pixels, self.augmentation = table, pixels, augmentation
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rank, self.world_size, self.workers = rank, world_size, workers
        columns = set(table.column_names)
        self._labels = np.asarray(table["label"][:], dtype=np.int64) if "label" in columns else None
        self._turns = np.asarray(table[QUARTER_TURNS][:], dtype=np.int64) if QUARTER_TURNS in columns else None
        self.set_epoch(0)

    @property
    def fixed_rows(self) -> bool:
        """Whether a row is the same in every epoch, as it is without augmentation."""
        return self.augmentation is None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, which seeds its order and augmentation."""
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}")
        self.epoch = epoch
        order = np.arange(len(self.table))
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        starts = list(range(0, len(order), self.batch_size))
        least = min(self.batch_size, 2 if self.shuffle else self.world_size)
        if len(starts) > 1 and len(order) - starts[-1] < least:
            starts.pop()
        self._plan = np.split(order, starts[1:])

    def __len__(self) -> int:
        """Number of batches of an epoch, the same on every rank."""
        return len(self._plan)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """Yield this rank's share of each batch of the current epoch."""
        return self.from_batch(0)

    def from_batch(self, first: int) -> Iterator[dict[str, Tensor]]:
        """Yield the same from a certain batch on; images of those before it are not opened."""
        shares = [share_of(rows, rank=self.rank, world_size=self.world_size) for rows in self._plan[first:]]
        epoch = self.epoch
        if self.workers == 0:
            for share in shares:
                yield self._make(share, epoch)
            return
        threads = ThreadPoolExecutor(self.workers)
        ahead: deque[Future[dict[str, Tensor]]] = deque()
        try:
            for share in shares:
                ahead.append(threads.submit(self._make, share, epoch))
                if len(ahead) > self.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    def _make(self, share: tuple[np.ndarray, Callable[..., Share]], epoch: int) -> Share:
        rows, kind = share
        images = [self._open(int(row)) for row in rows]
        if self.augmentation is None:
            values = self.pixels.plain([self._turned(image, row) for image, row in zip(images, rows, strict=True)])
        else:
            chances = [np.random.default_rng([self.seed, epoch, int(row)]) for row in rows]
            changed = self.pixels.augmented(images, self.augmentation, chances)
            # turned last: a mirrored image that is then turned is still turned so far
            values = self.pixels.normalized(
                [self._turned(image, row) for image, row in zip(changed, rows, strict=True)]
            )
        batch = {"pixel_values": values, "row": torch.from_numpy(rows.astype(np.int64))}
        if self._labels is not None:
            batch["labels"] = torch.from_numpy(self._labels[rows])
        return kind(batch)

    def _open(self, row: int) -> Image.Image:
        example = self.table[row]
        where = describe_source(example, row)
        return open_image(read_source(example["image"] or {}, where), where, grey=self.pixels.grey)

    def _turned(self, image: Image.Image, row: int) -> Image.Image:
        turns = 0 if self._turns is None else int(self._turns[row]) % 4
        return image.transpose(TURNS[turns]) if turns else image


def _check_sizes(batch_size: int, *, seed: int, rank: int, world_size: int, workers: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    if workers < 0:
        raise ValueError(f"workers must be 0 or more threads, got {workers}")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must lie in 0..world_size-1, got rank={rank} with world_size={world_size}")
    if world_size > batch_size:
        raise ValueError(
            f"{world_size} processes cannot share batch_size={batch_size}: each needs one row per batch; set "
            f"batch_size to {world_size} or more, or start fewer processes"
        )
