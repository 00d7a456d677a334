"""What an image backbone outputs, and a pretrained one with fewer stages or other channels.

A backbone is any model of transformers that takes ``pixel_values`` and gives a ``last_hidden_state``: a map float
(batch, channels, height, width), or tokens float (batch, tokens, channels) as in a ViT.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedConfig, ResNetConfig

from ulmfit_pipe.models.quiet_transformers import quiet_transformers

# Parameters of tokens that precede the image's patches, by the names that libraries give them.
PREFIX_TOKENS = (
    "cls_token",
    "class_embedding",
    "distillation_token",
    "dist_token",
    "register_tokens",
    "reg_token",
)
DEPTHS = ("depths", "num_hidden_layers")  # names under which a configuration holds its stages or blocks
COUNTS = ("num_stages", "num_encoder_blocks")  # and those under which it counts its stages once more
DROPPED = "dropped_by_ulmfit_pipe"  # attribute of a backbone: what was taken out of it
VISION_PART = (
    "; or the part of this one that sees: AutoModel.from_pretrained(name).vision_model.save_pretrained(folder), and "
    "AutoImageProcessor.from_pretrained(name).save_pretrained(folder)"
)
DERIVED = ("stage_names", "out_features", "out_indices", "_out_features", "_out_indices")  # follow from the depths


@dataclass(frozen=True)
class BackboneFacts:
    """Facts of a backbone that a head depends on.

    Attributes:
        feature_size: Channels of ``last_hidden_state``.
        prefix_tokens: Number of tokens before the image's patches, the class token first.
        channels_last: The map is (batch, height, width, channels), as some models of timm have it.
        unused: Names of modules and parameters that ``last_hidden_state`` does not depend on, such as poolers.
    """

    feature_size: int
    prefix_tokens: int
    channels_last: bool
    unused: tuple[str, ...]


def small_resnet_config(
    *, channels: int = 3, embedding_size: int, hidden_sizes: list[int], depths: list[int]
) -> ResNetConfig:
    """Return the configuration of a small ResNet of basic blocks, to be trained from random weights.

    Args:
        channels: Channels of the images.
        embedding_size: Channels of the stem, which reduces the image four times.
        hidden_sizes: Channels of each stage.
        depths: Blocks of each stage; every stage but the first halves the map.

    Raises:
        ValueError: There are fewer than two stages, or not one depth a stage.
    """
    if len(hidden_sizes) != len(depths) or len(depths) < 2:
        raise ValueError(
            f"a ResNet needs one depth for each of at least 2 stages, got hidden_sizes {list(hidden_sizes)} and depths "
            f"{list(depths)}; [32, 64, 128] and [1, 1, 1] are small"
        )
    return ResNetConfig(
        num_channels=channels,
        embedding_size=embedding_size,
        hidden_sizes=list(hidden_sizes),
        depths=list(depths),
        layer_type="basic",
    )


def build_backbone(config: PreTrainedConfig) -> Any:
    """Build a backbone with random weights from its configuration.

    Raises:
        ValueError: The configuration is of a model that takes no images.
    """
    show_all_places(config)
    with quiet_transformers():
        backbone = AutoModel.from_config(config, trust_remote_code=False)
    check_takes_images(backbone)
    return backbone


def show_all_places(config: PreTrainedConfig) -> None:
    """Turn the masking of a masked autoencoder off: a ViT-MAE hides three quarters of an image in evaluation too.

    Its patches still come in another order each time, which pooling ignores.
    """
    if getattr(config, "mask_ratio", None):
        config.mask_ratio = 0.0


def check_takes_images(backbone: Any) -> None:
    """Raise unless the model's input is an image.

    Raises:
        ValueError: It reads text, sound or several things.
    """
    if backbone.main_input_name != "pixel_values":
        part = getattr(backbone, "vision_model", None)  # of CLIP, SigLIP, ...
        raise ValueError(
            f"{type(backbone).__name__} ({backbone.config.model_type}) reads {backbone.main_input_name!r}, not images "
            "('pixel_values'); give an image model, such as a resnet, convnext or vit"
            f"{'' if part is None else VISION_PART}"
        )


def inspect_backbone(backbone: Any, *, channels: int, height: int, width: int) -> BackboneFacts:
    """Run a zero image through a backbone and return its output's form, and which parameters it used.

    Args:
        backbone: On any device; left as it was.
        channels: Channels of the images.
        height: Height of the images, in pixels.
        width: Width of the images.

    Raises:
        ValueError: The model takes no images, not of this size, outputs no map and no tokens or none for each image,
            or outputs something else each time.
    """
    check_takes_images(backbone)
    was_training = backbone.training
    _forget_caches(backbone)
    backbone.eval()
    trained = [(parameter, parameter.requires_grad) for parameter in backbone.parameters()]
    for parameter, _ in trained:
        parameter.requires_grad_(True)
    try:
        image = torch.zeros(2, channels, height, width, device=backbone.device, dtype=backbone.dtype)
        output = _run(backbone, image)
        hidden = output.last_hidden_state
        _check_same_again(backbone, image, hidden)
        names, parameters = zip(*backbone.named_parameters(), strict=True)
        with torch.enable_grad():
            gradients = torch.autograd.grad(hidden.sum(), parameters, allow_unused=True)
    finally:
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)
        _forget_caches(backbone)
        backbone.train(was_training)
    channels_last = hidden.ndim == 4 and _has_channels_last(backbone, hidden, getattr(output, "pooler_output", None))
    return BackboneFacts(
        feature_size=hidden.shape[1] if hidden.ndim == 4 and not channels_last else hidden.shape[-1],
        prefix_tokens=count_prefix_tokens(backbone) if hidden.ndim == 3 else 0,
        channels_last=channels_last,
        unused=_outermost_unused(
            backbone, {name for name, gradient in zip(names, gradients, strict=True) if gradient is None}
        ),
    )


def _forget_caches(backbone: nn.Module) -> None:
    """Drop what a model keeps between two passes in evaluation mode (LeViT's position biases): training clears it."""
    backbone.train()


def _run(backbone: Any, image: Tensor) -> Any:
    try:
        with torch.enable_grad():
            output = backbone(pixel_values=image)
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{type(backbone).__name__} cannot read images of {image.shape[1]} x {image.shape[2]} x {image.shape[3]} "
            f"(channels, height, width): {reason}; set the image size and channels that it was made for"
        ) from error
    hidden = getattr(output, "last_hidden_state", None)
    if isinstance(hidden, Tensor) and len(hidden) != len(image):
        raise ValueError(
            f"{type(backbone).__name__} outputs {len(hidden)} rows for {len(image)} images: it does not keep the "
            "images of a batch apart; give an image model that does, such as a resnet, convnext or vit"
        )
    if not isinstance(hidden, Tensor) or hidden.ndim not in (3, 4):
        found = "none" if hidden is None else f"one of shape {tuple(hidden.shape)}"
        raise ValueError(
            f"{type(backbone).__name__} must give a last_hidden_state of 3 or 4 axes to pool over, it gives {found}; "
            "take the base model of an image classifier"
        )
    return output


def _check_same_again(backbone: Any, image: Tensor, hidden: Tensor) -> None:
    """Raise if the output is random in evaluation; only the order of the patches may change."""
    again = _run(backbone, image).last_hidden_state
    first, second = (each if each.ndim == 4 else each.float().mean(1) for each in (hidden, again))
    if hidden.shape != again.shape or not torch.allclose(first, second, rtol=1e-2, atol=1e-4, equal_nan=True):
        raise ValueError(
            f"{type(backbone).__name__} outputs something else each time it reads the same image, in evaluation too, "
            "so its classes would be chance; turn what it draws off in its config.json, or give another image model"
        )


def _has_channels_last(backbone: Any, hidden: Tensor, pooled: Tensor | None) -> bool:
    if str(getattr(getattr(backbone, "timm_model", None), "output_fmt", "")).endswith("NHWC"):
        return True
    if pooled is None or hidden.shape[1] == hidden.shape[-1]:
        return False
    return pooled.shape[1] == hidden.shape[-1]


def count_prefix_tokens(backbone: nn.Module) -> int:
    """Count the tokens that are not image patches, by the names of their parameters."""
    found = [parameter for name, parameter in backbone.named_parameters() if name.rpartition(".")[2] in PREFIX_TOKENS]
    return sum(parameter.shape[-2] if parameter.ndim > 1 else 1 for parameter in found)


def _outermost_unused(backbone: nn.Module, unused: set[str]) -> tuple[str, ...]:
    """Return the outermost modules all of whose parameters are unused, and single parameters of others."""
    used = {name for name, _ in backbone.named_parameters()} - unused
    found: dict[str, None] = {}
    for name in sorted(unused):
        parts = name.split(".")
        prefixes = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
        found[next(one for one in prefixes if one == name or not any(key.startswith(f"{one}.") for key in used))] = None
    return tuple(found)


def dropped_from(backbone: nn.Module) -> tuple[str, ...]:
    """Return what `drop_unused` has taken out of a backbone."""
    return tuple(getattr(backbone, DROPPED, ()))


def drop_unused(backbone: nn.Module, unused: Sequence[str]) -> None:
    """Take what `inspect_backbone` found unused out of a backbone: it would never get a gradient."""
    setattr(backbone, DROPPED, (*dropped_from(backbone), *unused))
    for name in unused:
        owner_name, _, leaf = name.rpartition(".")
        owner = backbone.get_submodule(owner_name)
        is_parameter = leaf in dict(owner.named_parameters(recurse=False))
        setattr(owner, leaf, None if is_parameter else nn.Identity())


def rebuild_backbone(backbone: Any, *, stages: int | None = None, channels: int | None = None) -> tuple[Any, list[str]]:
    """Return a backbone with the weights of another, but fewer stages or other channels.

    Args:
        backbone: The pretrained backbone.
        stages: Number of stages (a transformer's blocks) to keep, from the input; negative drops that many at the
            end, as fastai's ``cut``. None keeps all.
        channels: Channels of the images; None keeps those it has.

    Returns:
        The new backbone, and the names of norm weights after the last stage that could not be taken over.

    Raises:
        ValueError: The architecture's configuration names neither its depth nor its channels, or the number of stages
            is out of range.
    """
    config = copy.deepcopy(backbone.config)
    if stages is not None:
        config = _with_stages(config, stages)
    if channels is not None:
        config = _with_channels(config, channels)
    rebuilt = build_backbone(config)
    drop_unused(rebuilt, dropped_from(backbone))
    return rebuilt, _take_over(rebuilt, backbone.state_dict())


def channels_of(config: PreTrainedConfig) -> int:
    """Return the channels of the images that a backbone's configuration is made for; 3 by default."""
    if config.model_type == "timm_wrapper":
        return int((getattr(config, "model_args", None) or {}).get("in_chans", 3))
    return int(getattr(config, "num_channels", 3))


def _with_stages(config: PreTrainedConfig, stages: int) -> PreTrainedConfig:
    name = next((name for name in DEPTHS if getattr(config, name, None) is not None), None)
    if name is None:
        raise ValueError(
            f"stages cannot be removed from a {config.model_type!r} model: its configuration has neither "
            f"{' nor '.join(DEPTHS)}; keep all stages, or give a smaller model"
        )
    depths = getattr(config, name)
    count = depths if isinstance(depths, int) else len(depths)
    kept = stages + count if stages < 0 else stages
    if not 2 <= kept <= count:
        raise ValueError(
            f"keep_stages must leave 2 to {count} of the {count} stages of this {config.model_type!r} model, got "
            f"{stages!r}; -1 drops the last one"
        )
    if isinstance(depths, int):
        values = {**config.to_dict(), name: kept}
    else:
        values = {
            key: value[:kept] if isinstance(value, list | tuple) and len(value) == count else value
            for key, value in config.to_dict().items()
        }
        values.update(dict.fromkeys([each for each in COUNTS if values.get(each) == count], kept))
    try:
        return _config_from({key: value for key, value in values.items() if key not in DERIVED})
    except (StrictDataclassError, ValueError) as error:
        raise ValueError(
            f"this {config.model_type!r} model cannot be reduced to {kept} of its {count} stages: "
            f"{str(error).strip().splitlines()[-1].strip()}; keep more of them, or all"
        ) from error


def _with_channels(config: PreTrainedConfig, channels: int) -> PreTrainedConfig:
    values = config.to_dict()
    if config.model_type == "timm_wrapper":
        return _config_from({**values, "model_args": {**(values.get("model_args") or {}), "in_chans": channels}})
    if "num_channels" not in values:
        raise ValueError(
            f"the channels of a {config.model_type!r} model cannot be changed: its configuration has no num_channels; "
            f"leave the channels as they are ({channels_of(config)})"
        )
    return _config_from({**values, "num_channels": channels})


def _config_from(values: dict[str, Any]) -> PreTrainedConfig:
    return CONFIG_MAPPING[values["model_type"]].from_dict(values)


def _take_over(target: nn.Module, weights: dict[str, Tensor]) -> list[str]:
    """Copy weights by name, the first convolution's turned to other channels; return what stays fresh."""
    fresh, taken = [], target.state_dict()
    for name, value in taken.items():
        given = weights.get(name)
        if given is None:
            raise ValueError(f"the pretrained weights lack {name!r}, so the backbone cannot end there; keep all stages")
        if given.shape == value.shape:
            taken[name] = given
        elif given.ndim == 4 and given.shape[0] == value.shape[0] and given.shape[2:] == value.shape[2:]:
            taken[name] = adapt_channels(given, value.shape[1])
        elif given.ndim == 1:  # the norm after the last stage, made for more channels
            fresh.append(name)
        else:
            raise ValueError(
                f"the pretrained {name!r} has the shape {tuple(given.shape)}, the shortened backbone needs "
                f"{tuple(value.shape)}; keep all stages"
            )
    target.load_state_dict(taken)
    return fresh


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Turn the first convolution's weight for colour images into one for another number of channels.

    Args:
        weight: float (out, 3, height, width).
        channels: 1 sums the three, so that a grey image gives what its three equal channels gave; 2 takes the first
            two times 1.5; more than 3 adds zeros.

    Raises:
        ValueError: The weight is not for 3 channels.

    Source: fastai 2.8 vision/learner.py, ``_load_pretrained_weights``.
    """
    if weight.shape[1] != 3:
        raise ValueError(
            f"the first convolution reads {weight.shape[1]} channels, only one for 3 can be turned into one for "
            f"{channels}; leave the channels as they are"
        )
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    if channels == 2:
        return weight[:, :2] * 1.5
    extra = weight.new_zeros(weight.shape[0], channels - 3, *weight.shape[2:])
    return torch.cat([weight, extra], dim=1)
