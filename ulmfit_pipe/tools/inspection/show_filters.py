"""What fine-tuning did to a model, as pictures: first-layer filters, activations, and how far each layer group moved.

Filters and activations are of image models; the weights of text models are compared in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ulmfit_pipe.data.images.batches import ImagePixels
from ulmfit_pipe.data.images.files import open_image, read_source
from ulmfit_pipe.images.predict import load_pixels
from ulmfit_pipe.models.images.backbones import channels_of
from ulmfit_pipe.models.images.layer_activations import default_layers, first_filters, layer_activations
from ulmfit_pipe.reports.filters import plot_activations, plot_filters
from ulmfit_pipe.reports.plots import Picture
from ulmfit_pipe.settings.model_files import ShowFiltersSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, refuse_foreign_folder, save_stage
from ulmfit_pipe.storage.json_files import write_json
from ulmfit_pipe.tools.inspection.weight_comparison import ModelPair, changes_of, load_pair
from ulmfit_pipe.training.logs.weight_changes import WeightChanges

STAGE = "show_filters"
CHANGES_FILE = "weight_changes.json"
MOST_LAYERS = 4  # drawn where none is named: from the first stage to the last


@dataclass(frozen=True)
class ShownFilters:
    """What was drawn.

    Attributes:
        output_dir: The folder.
        pictures: Names of its PNG files.
        changes: How far the weights moved.
    """

    output_dir: Path
    pictures: list[str]
    changes: WeightChanges


def show_filters(settings: ShowFiltersSettings) -> ShownFilters:
    """Draw what fine-tuning did to a model.

    Args:
        settings: The two models, the images, the folder to write.

    Returns:
        The pictures' names, and how far the weights moved.

    Raises:
        ArtifactError: A model cannot be loaded, the two are of different architectures, or a text model is asked for
            filters.
        ImageError: An image does not open.
        ValueError: A layer has no such name or gives no map.
    """
    output = Path(settings.output_dir)
    refuse_foreign_folder(output, STAGE)
    pair = load_pair(settings.before, settings.after)
    if settings.images and not pair.takes_images:
        raise ArtifactError(
            f"{settings.after} is a {pair.after.config.model_type!r} model, which reads text: filters and activations "
            "are of image models; leave images and layers out to see how far its weights moved"
        )
    changes = changes_of(pair)
    figures = {"weight_changes.png": changes.plot()}
    if pair.takes_images:
        figures |= {"filters.png": _draw_filters(pair), **_draw_activations(pair, settings)}

    def write(folder: Path) -> None:
        for name, figure in figures.items():
            figure.savefig(folder / name, format="png")
        write_json(folder / CHANGES_FILE, changes.to_dict())

    record = {"before": settings.before, "after": settings.after, "pictures": list(figures)}
    save_stage(output, stage=STAGE, record=record, write=write)
    return ShownFilters(output, list(figures), changes)


def _draw_filters(pair: ModelPair) -> Picture:
    channels = [channels_of(_backbone_config(model)) for model in (pair.before, pair.after)]
    if channels[0] != channels[1]:
        raise ArtifactError(
            f"{pair.name_before} reads images of {channels[0]} channels, {pair.name_after} of {channels[1]}: neither "
            "filters nor activations can be compared; compare_weights reports how far the other weights moved"
        )
    before, after = (first_filters(model)[1].numpy() for model in (pair.before, pair.after))
    return plot_filters(before, after)


def _draw_activations(pair: ModelPair, settings: ShowFiltersSettings) -> dict[str, Picture]:
    if not settings.images:
        return {}
    pixels = load_pixels(settings.after, _backbone_config(pair.after))
    opened = [open_image(read_source({"path": path}, path), path, grey=pixels.grey) for path in settings.images]
    layers = list(settings.layers) or _from_first_to_last(default_layers(pair.after))
    values = pixels.plain(opened)  # (images, channels, height, width)
    after = layer_activations(pair.after, values, layers)
    earlier = {layer: _earlier_layer(pair, layer) for layer in layers}
    before = layer_activations(pair.before, values, list(earlier.values()))
    seen = _seen(pixels, opened)
    return {
        f"activations_{layer}.png": plot_activations(
            seen, before[earlier[layer]].numpy(), after[layer].numpy(), layer=layer, channels=settings.channels
        )
        for layer in layers
    }


def _earlier_layer(pair: ModelPair, layer: str) -> str:
    name = pair.earlier_name(layer)
    if name is None:
        raise ArtifactError(
            f"{pair.name_before} has nothing that layer {layer!r} of {pair.name_after} could be compared with; take a "
            f"layer inside {pair.prefix_after.rstrip('.')!r}, such as {default_layers(pair.after)[-1]!r}"
        )
    return name


def _backbone_config(model: Any) -> Any:
    return getattr(model.config, "backbone_config", None) or model.config


def _from_first_to_last(layers: Sequence[str]) -> list[str]:
    """Return at most `MOST_LAYERS` layers, the first and the last among them."""
    count = min(MOST_LAYERS, len(layers))
    places = [round(place * (len(layers) - 1) / (count - 1)) for place in range(count)]
    return [layers[place] for place in places]


def _seen(pixels: ImagePixels, opened: Sequence[Any]) -> np.ndarray:
    """Return what the model sees of images, in [0, 1]: float (images, height, width[, 3])."""
    colour = [image.convert("RGB") for image in opened]
    values = np.asarray(pixels.processor(images=colour, return_tensors="np", do_normalize=False)["pixel_values"])
    shown = values.transpose(0, 2, 3, 1).clip(0, 1)  # (images, height, width, 3)
    return shown[..., 0] if pixels.grey else shown
