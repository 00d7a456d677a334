"""Prediction: images in, labels and scores out, in the order given."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset
from PIL import Image
from torch import nn
from transformers import AutoModelForImageClassification

from ulmfit_pipe.data.images.batches import ImageBatches, ImagePixels
from ulmfit_pipe.data.images.files import open_image, plain_image, read_source
from ulmfit_pipe.data.labels import list_apart
from ulmfit_pipe.data.tables.tables import check_table
from ulmfit_pipe.models.images.backbones import channels_of
from ulmfit_pipe.models.images.classifier import UlmfitImageConfig
from ulmfit_pipe.settings.checks import home_path
from ulmfit_pipe.stages.artifacts import ArtifactError, load_config, load_image_processor, load_model
from ulmfit_pipe.stages.classifier_labels import labels_of
from ulmfit_pipe.stages.config_notes import typed_labels
from ulmfit_pipe.stages.python_input import check_sequence
from ulmfit_pipe.training.distributed.launch import new_accelerator
from ulmfit_pipe.training.loop import evaluate
from ulmfit_pipe.training.metrics import ClassificationMetric
from ulmfit_pipe.training.objectives import ClassificationObjective

BATCH_IMAGES = 64  # memory, not result


def load_pixels(folder: Path | str, backbone_config: Any) -> ImagePixels:
    """Load the image processor of a saved model.

    Args:
        folder: Where the model was saved.
        backbone_config: Configuration of the model, or of its backbone, which knows the channels of the images.

    Raises:
        ArtifactError: The folder has no image processor.
    """
    try:
        processor = load_image_processor(folder)
    except ArtifactError as error:
        if error.__cause__ is None:
            raise  # refused; otherwise transformers found none
        raise ArtifactError(
            f"{folder} lacks its image processor (preprocessor_config.json); take another save"
        ) from error
    return ImagePixels(processor, channels=channels_of(backbone_config))


class ImagePredictor:
    """A trained image classifier with its processor.

    Args:
        model: The classifier.
        pixels: Its processor.
        accelerator: The device, and this process's share when a table is scored.
    """

    def __init__(self, model: Any, pixels: ImagePixels, *, accelerator: Accelerator | None = None) -> None:
        self.model, self.pixels = model, pixels
        self.label_names, _ = labels_of("the model", model.config)
        self.labels = typed_labels(model.config, self.label_names)
        self._accelerator = accelerator

    @classmethod
    def load(
        cls, folder: Path | str, *, custom_head: nn.Module | None = None, accelerator: Accelerator | None = None
    ) -> "ImagePredictor":
        """Load the folder of an image classifier.

        Args:
            folder: What the image stage wrote.
            custom_head: The head's module where it was trained with one of its own; the weights come from the folder.
            accelerator: Device and processes.

        Raises:
            ArtifactError: The folder is not an image classifier, or was cut short.
        """
        folder = home_path(folder)
        below = Path(folder) / "classifier"
        if (below / "config.json").is_file() and not (Path(folder) / "config.json").is_file():
            raise ArtifactError(f"{folder} is the folder of a whole run; did you mean its classifier, {below}?")
        config = load_config(folder, images=True)
        if config.model_type != UlmfitImageConfig.model_type:
            raise ArtifactError(
                f"{folder} is a {config.model_type!r} model, no image classifier of this project; give the folder that "
                "ulmfit images wrote"
            )
        if config.custom_head_class is not None and custom_head is None:
            raise ArtifactError(
                f"{folder} has a head of its own, a {config.custom_head_class}; give it: "
                f"load(folder, custom_head={config.custom_head_class}(...))"
            )
        given = {} if custom_head is None else {"custom_head": custom_head}
        model = load_model(folder, AutoModelForImageClassification, **given)
        return cls(model, load_pixels(folder, config.backbone_config), accelerator=accelerator)

    @property
    def accelerator(self) -> Accelerator:
        """Device and processes."""
        if self._accelerator is None:
            self._accelerator = new_accelerator()
        return self._accelerator

    def predict(self, images: Sequence[str | Path | Image.Image]) -> list[dict[str, Any]]:
        """Return label, score and all scores of each image, in order.

        Args:
            images: Paths, or opened images of Pillow.

        Returns:
            ``{"label", "score", "scores"}`` per image; labels are integers where the training table's were, else text.

        Raises:
            TypeError: A table, a single path or image instead of a list, or something in it that is neither.
            ImageError: An image does not open.
            ValueError: The model's output for an image is NaN.
        """
        given = enumerate(check_sequence(images, of="image"))
        found: list[dict[str, Any]] = []
        while part := [self._opened(image, place) for place, image in islice(given, BATCH_IMAGES)]:
            found += self._predict_opened(part, first=len(found))
        return found

    def _opened(self, image: Any, place: int) -> Image.Image:
        where = f"image {place} (counted from 0)"
        if isinstance(image, Image.Image):
            return plain_image(image, where, grey=self.pixels.grey)
        if not isinstance(image, str | Path):
            raise TypeError(f"{where} is {type(image).__name__}; give a path or an opened image of Pillow")
        content = read_source({"path": str(image)}, str(image))
        return open_image(content, str(image), grey=self.pixels.grey)

    @torch.no_grad()
    def _predict_opened(self, images: list[Image.Image], *, first: int) -> list[dict[str, Any]]:
        model = self.model.to(self.accelerator.device).eval()
        with self.accelerator.autocast():
            logits = model(pixel_values=self.pixels.plain(images).to(self.accelerator.device)).logits
        probabilities = logits.float().cpu().double().softmax(dim=-1)  # (images, num_labels)
        broken = (~probabilities.isfinite()).any(dim=1).nonzero()
        if len(broken):
            raise ValueError(
                f"the model gives no number for image {first + int(broken[0])} (counted from 0): its weights hold NaN "
                "or infinity; take another save"
            )
        rows = []
        for values in probabilities:
            scores = {label: float(value) for label, value in zip(self.labels, values, strict=True)}
            best = max(scores, key=lambda label: scores[label])
            rows.append({"label": best, "score": scores[best], "scores": scores})
        return rows

    def score(self, table: Dataset) -> dict[str, float]:
        """Return accuracy, macro F1, loss and n on labelled images; every process scores its share.

        Raises:
            TypeError: It is not a table of `load_images`.
            ValueError: The table's class names are not the classifier's, in its order.
        """
        check_table(table, what="the table to score", columns=("image",), loading='load_images("images/test")')
        feature = table.features.get("label")
        names = list(feature.names) if isinstance(feature, ClassLabel) else None
        if names != self.label_names:
            given, own = list_apart(names or ["none"], self.label_names)
            raise ValueError(
                f"the images' classes are {given}, the classifier's are {own}: their numbers would mean "
                "different classes; load the images with label_names of the classifier"
            )
        accelerator = self.accelerator
        batches = ImageBatches(
            table,
            self.pixels,
            batch_size=max(BATCH_IMAGES, accelerator.num_processes),
            shuffle=False,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
        )
        model = self.model.to(accelerator.device)
        metric = ClassificationMetric(len(self.label_names))
        return evaluate(model, batches, ClassificationObjective(), metric, accelerator)
