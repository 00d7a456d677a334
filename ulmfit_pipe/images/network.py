"""The network of an image classifier and what feeds it: backbone, new head, and the model's own image processor."""

import copy
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from transformers import AutoModel, AutoModelForImageClassification

from ulmfit_pipe.console import print_line
from ulmfit_pipe.data.images.batches import ImagePixels
from ulmfit_pipe.models.images.backbones import (
    build_backbone,
    channels_of,
    check_takes_images,
    inspect_backbone,
    rebuild_backbone,
    show_all_places,
    small_resnet_config,
)
from ulmfit_pipe.models.images.classifier import (
    UlmfitForImageClassification,
    UlmfitImageConfig,
    build_image_classifier,
    head_dropouts,
)
from ulmfit_pipe.models.layer_groups.spec import LayerGroupSpec
from ulmfit_pipe.settings.images import ImageClassifierSettings, ImageHeadSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, load_config, load_image_processor, load_model, resolve_model
from ulmfit_pipe.stages.classifier_labels import labels_of

OURS = UlmfitImageConfig.model_type
TIMM = "timm_wrapper"
PLAIN_SIZE = 224  # pixels per side where neither model nor settings define it
PLAIN_MEAN = 0.5  # mean and deviation of a processor made here: pixels are then in -1..1
CROPS_BELOW = 384  # pixels a side from which ConvNeXt's processor does not crop; 224 of 256 is its share below
TIMM_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers


def build_image_network(
    model: str | None,
    names: Sequence[str],
    settings: "ImageClassifierSettings",
    *,
    custom_head: nn.Module | None = None,
    layer_groups: Sequence[LayerGroupSpec] | None = None,
    say: Callable[[str], None] = print_line,
) -> tuple[UlmfitForImageClassification, ImagePixels]:
    """Put a head on a backbone, or continue with a saved classifier of the same classes.

    Args:
        model: Folder or hub id; None builds a small ResNet with random weights.
        names: Class names, in order.
        settings: Settings of the stage.
        custom_head: In place of pooling and head.
        layer_groups: In place of those the settings name.
        say: Receives log lines on what is new or left out.

    Raises:
        ArtifactError: The model takes no images, is not whole, or cannot be had.
        ImageError: The processor's images cannot be put in batches.
        ValueError: Settings do not fit the model or one another.
    """
    config = None if model is None else _config_of(model)
    if config is not None and config.model_type == OURS and settings.pretrained and custom_head is None:
        saved, _ = labels_of(str(model), config)
        if saved == list(names) and config.custom_head_class is None:
            return _go_on(str(model), config, settings, layer_groups, say)
        say(f"{model} is a classifier of {', '.join(saved)}: its backbone is taken, the head is new")
    processor = _processor_of(model, config, settings.image_size)
    backbone, missing = _backbone_of(model, config, settings)
    if settings.keep_stages is not None or settings.channels not in (None, channels_of(backbone.config)):
        backbone, fresh = rebuild_backbone(backbone, stages=settings.keep_stages, channels=settings.channels)
        if fresh and model is not None:
            say(f"{model}: new weights for {', '.join(fresh)}, as the stages before it are fewer")
    pixels = ImagePixels(processor, channels=channels_of(backbone.config))
    _refuse_gaps(model, backbone, missing, pixels)
    head = settings.head
    network = build_image_classifier(
        backbone,
        label_names=names,
        height=pixels.height,
        width=pixels.width,
        concat_pool=head.concat_pool,
        hidden_sizes=head.hidden_sizes,
        dropout=_dropout_of(head),
        final_norm=head.final_norm,
        head_init=head.init,
        custom_head=custom_head,
        layer_groups=_groups_to_store(settings, layer_groups),
    )
    return network, pixels


def _config_of(model: str) -> Any:
    """Load the configuration; raise with the remedy if timm is missing."""
    try:
        return load_config(model, images=True)
    except ArtifactError as error:
        if isinstance(error.__cause__, ImportError) and "timm" in str(error.__cause__):
            raise ArtifactError(f"{model} is a model of timm, which is not installed: pip install timm") from error
        raise


def _go_on(
    model: str,
    config: UlmfitImageConfig,
    settings: "ImageClassifierSettings",
    layer_groups: Sequence[LayerGroupSpec] | None,
    say: Callable[[str], None],
) -> tuple[UlmfitForImageClassification, ImagePixels]:
    """Load a saved classifier whole; settings that would build it differently are refused."""
    head = settings.head
    dropouts = head_dropouts(_dropout_of(head), num_layers=len(head.hidden_sizes) + 1)
    asked = {
        "concat_pool": head.concat_pool,
        "head_hidden_sizes": list(head.hidden_sizes),
        "head_dropouts": dropouts,
        "final_norm": head.final_norm,
    }
    for name, value in asked.items():
        found = getattr(config, name)
        if (list(found) if isinstance(found, tuple) else found) != value:
            raise ValueError(
                f"{model} is a classifier of the same classes, to resume from with its head, whose {name} is {found}, "
                f"not {value}; set the head as it was, or give the model it started from"
            )
    if settings.keep_stages is not None or settings.channels not in (None, channels_of(config.backbone_config)):
        raise ValueError(
            f"{model} is a classifier of the same classes, to resume from as it is; keep_stages and channels cannot "
            "change it: leave them out, or give the model it started from"
        )
    config.layer_groups = _groups_to_store(settings, layer_groups)
    pixels = ImagePixels(
        _processor_of(model, config, settings.image_size), channels=channels_of(config.backbone_config)
    )
    say(f"resuming from the classifier {model}, with its head")
    return load_model(model, AutoModelForImageClassification, config=config), pixels


def _dropout_of(head: ImageHeadSettings) -> float | list[float]:
    return head.dropouts[0] if len(head.dropouts) == 1 else head.dropouts


def _groups_to_store(
    settings: "ImageClassifierSettings", layer_groups: Sequence[LayerGroupSpec] | None
) -> str | list[Any]:
    if layer_groups is None:
        return settings.layer_groups
    return [[group.name, list(group.prefixes)] for group in layer_groups]


def _backbone_of(model: str | None, config: Any, settings: "ImageClassifierSettings") -> tuple[Any, list[str]]:
    """Return the backbone, and the names of weights that its files lack."""
    if model is None:
        small = settings.backbone
        small_config = small_resnet_config(
            channels=settings.channels or 3,
            embedding_size=small.embedding_size,
            hidden_sizes=small.hidden_sizes,
            depths=small.depths,
        )
        return build_backbone(small_config), []
    bare = config.backbone_config if config.model_type == OURS else config
    try:
        if not settings.pretrained:
            return build_backbone(bare), []
        if config.model_type == OURS:
            return _backbone_of_ours(model, config), []
        backbone, found = load_model(model, AutoModel, output_loading_info=True)
        check_takes_images(backbone)
        show_all_places(backbone.config)
    except ArtifactError:
        raise
    except ValueError as error:
        raise ArtifactError(f"{model}: {error}") from error
    return backbone, sorted(found["missing_keys"])


def _backbone_of_ours(model: str, config: UlmfitImageConfig) -> Any:
    given = {} if config.custom_head_class is None else {"custom_head": nn.Identity()}  # its weights are not wanted
    loaded: Any = load_model(model, AutoModelForImageClassification, config=config, output_loading_info=True, **given)
    network, found = loaded
    missing = sorted(name for name in found["missing_keys"] if name.startswith("backbone."))
    if missing:
        raise ArtifactError(
            f"the weights of {model} lack {missing[0]} ({len(missing)} in all), so they are not a whole backbone: take "
            "another save"
        )
    return network.backbone


def _refuse_gaps(model: str | None, backbone: Any, missing: Sequence[str], pixels: ImagePixels) -> None:
    """Raise if weights are missing that the classifier would use; transformers has filled them with random ones."""
    if not missing:
        return
    facts = inspect_backbone(backbone, channels=pixels.channels, height=pixels.height, width=pixels.width)
    kept = backbone.state_dict()  # without the stages that were removed
    needed = [
        name
        for name in missing
        if name in kept and not any(name == part or name.startswith(f"{part}.") for part in facts.unused)
    ]
    if needed:
        raise ArtifactError(
            f"the weights of {model} lack {needed[0]} ({len(needed)} in all), so they are not a complete "
            f"{type(backbone).__name__}: take another save"
        )


# ---- the image processor


def _processor_of(model: str | None, config: Any, image_size: int | None) -> Any:
    """Return the model's image processor, of another size where one is asked for."""
    if model is None:
        return plain_processor(image_size or PLAIN_SIZE)
    if config.model_type == TIMM:
        processor = _timm_processor(model, config)
    else:
        try:
            processor = load_image_processor(model)
        except ArtifactError as error:
            if isinstance(error.__cause__, ImportError):
                processor = _pillow_processor(model, error.__cause__)
                return processor if image_size is None else with_image_size(processor, image_size)
            if error.__cause__ is None:
                raise  # refused; otherwise transformers found none
            if image_size is None:
                raise ArtifactError(
                    f"{model} comes without an image processor (preprocessor_config.json); copy the one of the model "
                    "it was made from, or set image_size for a plain one (pixels in -1..1)"
                ) from error
            return plain_processor(image_size)
    return processor if image_size is None else with_image_size(processor, image_size)


def plain_processor(size: int) -> Any:
    """Return a processor that takes the center crop of an image and scales its pixels to -1..1."""
    return _bit_processor(edge=size, height=size, width=size, mean=[PLAIN_MEAN] * 3, std=[PLAIN_MEAN] * 3, resample=2)


def _bit_processor(*, edge: int, height: int, width: int, mean: list[float], std: list[float], resample: int) -> Any:
    """Return a processor of the plainest kind: shortest edge, centre crop, normalization, all by Pillow."""
    from transformers import BitImageProcessorPil

    return BitImageProcessorPil(
        size={"shortest_edge": edge},
        crop_size={"height": height, "width": width},
        image_mean=mean,
        image_std=std,
        resample=resample,
    )


def _pillow_processor(model: str, error: ImportError) -> Any:
    """Make an equal processor that uses Pillow where the model's own needs torchvision, as DINOv3's does."""
    from transformers import BitImageProcessorPil

    numbers, _ = BitImageProcessorPil.get_image_processor_dict(resolve_model(model))
    if set(numbers.get("size") or ()) != {"height", "width"} or "image_mean" not in numbers:
        raise ArtifactError(
            f"the image processor of {model}, a {numbers.get('image_processor_type')}, needs a library that is not "
            "installed: pip install torchvision; or leave its preprocessor_config.json out of the folder and set "
            "image_size for a plain one (pixels in -1..1)"
        ) from error
    return BitImageProcessorPil.from_dict({**numbers, "do_center_crop": bool(numbers.get("do_center_crop"))})


def _timm_processor(model: str, config: Any) -> Any:
    """Make a processor from timm's entries in a model's configuration; timm's own needs torchvision."""
    if importlib.util.find_spec("timm") is None:
        raise ArtifactError(f"{model} is a model of timm, which is not installed: pip install timm")
    numbers = getattr(config, "pretrained_cfg", None)
    if not numbers:
        raise ArtifactError(
            f"{model} has no pretrained_cfg in its configuration, so the size and normalization of its images are not "
            "known; take a model that timm published"
        )
    _, height, width = numbers["input_size"]
    return _bit_processor(
        edge=round(min(height, width) / numbers.get("crop_pct", 1.0)),
        height=height,
        width=width,
        mean=list(numbers["mean"]),
        std=list(numbers["std"]),
        resample=TIMM_FILTERS.get(numbers.get("interpolation", "bilinear"), 2),
    )


def with_image_size(processor: Any, size: int) -> Any:
    """Return a copy of a processor that makes square images of another size, cropping as much as before."""
    values = processor.to_dict()
    old = dict(values.get("size") or {})
    crop = dict(values.get("crop_size") or {}) if values.get("do_center_crop") else {}
    square = {"height": size, "width": size}
    if "shortest_edge" in old and crop:
        old = {"shortest_edge": round(size * old["shortest_edge"] / min(crop.values()))}
    elif "height" in old and crop:
        old = {side: round(size * old[side] / crop[side]) for side in square}
    else:
        old = {"shortest_edge": size} if set(old) == {"shortest_edge"} else square
    changed = copy.deepcopy(values)
    changed["size"] = old
    if crop:
        changed["crop_size"] = square
    if size < CROPS_BELOW and getattr(processor, "crop_pct", 1) is None:
        changed["crop_pct"] = 224 / 256
    return type(processor).from_dict(changed)
