"""What the layers of an image model hold and output: first-layer filters, and activations as maps of channels."""

import difflib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ulmfit_pipe.models.images.backbones import channels_of, check_takes_images, count_prefix_tokens
from ulmfit_pipe.models.layer_groups.image_groups import backbone_stages

NEAREST = 3  # names offered where one is not known
LOOSE = 0.3  # difflib's likeness from which a name is offered


def first_filters(model: Any) -> tuple[str, Tensor]:
    """Return name and weight of the first convolution: the filters that read the image.

    Args:
        model: An image model of transformers; a ViT's patch embedding is such a convolution too.

    Returns:
        The parameter's name, and its values float (filters, channels, height, width).

    Raises:
        ValueError: The model takes no images, or has no convolution that reads one.
    """
    check_takes_images(model)
    channels = channels_of(getattr(model.config, "backbone_config", None) or model.config)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == channels:
            return f"{name}.weight", module.weight.detach()
    raise ValueError(
        f"{type(model).__name__} has no convolution that reads an image of {channels} channels, so it has no filters "
        "to draw; its activations can be drawn"
    )


def default_layers(model: Any) -> list[str]:
    """Return the names of a model's stages (a transformer's blocks), input side first.

    Raises:
        ValueError: The model takes no images, or its stages cannot be found.
    """
    check_takes_images(model)
    return [_last_run(model, prefixes[-1]) for prefixes in backbone_stages(model)]


def _last_run(model: nn.Module, name: str) -> str:
    """Return a module's name, or that of its last part where it is a list, which is never run itself."""
    module = model.get_submodule(name)
    return _last_run(model, f"{name}.{len(module) - 1}") if isinstance(module, nn.ModuleList) else name


@torch.no_grad()
def layer_activations(model: Any, pixel_values: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Run images through a model and return what layers output, as maps.

    Args:
        model: An image model of transformers; run in evaluation mode, and left as it was.
        pixel_values: float (batch, channels, height, width), on the model's device.
        layers: Module names, as ``model.named_modules`` gives them.

    Returns:
        Name of the layer to float (batch, channels, rows, columns). Tokens are laid out as the patches of the image
        they stand for, without class and register tokens.

    Raises:
        ValueError: The model takes no images, has no layer of this name, or the layer does not output a map.
    """
    check_takes_images(model)
    modules = dict(model.named_modules())
    for name in layers:
        if name not in modules or not name:
            near = _nearest(name, modules)
            raise ValueError(f"{type(model).__name__} has no layer {name!r}; names near it: {', '.join(near)}")
    given: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            given[name] = output

        return hook

    handles = [modules[name].register_forward_hook(keep(name)) for name in layers]
    was_training = model.training
    try:
        model.eval()
        model(pixel_values=pixel_values)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    height, width = pixel_values.shape[-2:]
    return {name: _as_map(model, name, given.get(name), height=height, width=width) for name in layers}


def _nearest(name: str, modules: dict[str, nn.Module]) -> list[str]:
    """Return real names near one that is not: those that end so first, as a name without ``backbone.`` does."""
    known = [each for each in modules if each]
    ending = [each for each in known if name and each.endswith(f".{name}")]
    close = difflib.get_close_matches(name, known, n=NEAREST, cutoff=LOOSE)
    return list(dict.fromkeys([*ending, *close]))[:NEAREST] or known[:NEAREST]


def _as_map(model: Any, name: str, output: Any, *, height: int, width: int) -> Tensor:
    """Return a layer's output float (batch, channels, rows, columns)."""
    hidden = _first_tensor(output)
    advice = f"take one that gives a map or tokens, such as {default_layers(model)[-1]!r}"
    if hidden is None:
        kind = type(model.get_submodule(name)).__name__
        raise ValueError(f"layer {name!r} (a {kind}) has no output of its own in a forward pass; {advice}")
    if hidden.ndim == 4:
        return hidden.permute(0, 3, 1, 2) if getattr(model.config, "channels_last", False) else hidden
    if hidden.ndim != 3:
        raise ValueError(f"layer {name!r} outputs {tuple(hidden.shape)}, which is not the shape of a map; {advice}")
    places = hidden.shape[1]
    for tokens in dict.fromkeys([_prefix_tokens(model), 0]):  # some layers are before the class token, or leave it out
        rows = _rows_of(places - tokens, height=height, width=width)
        if rows is not None:
            kept = hidden[:, tokens:]  # (batch, rows * columns, channels)
            return kept.transpose(1, 2).unflatten(2, (rows, -1))
    raise ValueError(
        f"layer {name!r} gives {places} tokens, which cannot be laid out over an image of {height} x {width} pixels; "
        f"{advice}"
    )


def _rows_of(places: int, *, height: int, width: int) -> int | None:
    """Return the number of rows of a patch grid in the proportions of the image, up to one incomplete patch."""
    about = math.isqrt(max(0, places) * height // width)
    for rows in (about, about + 1):
        if rows and places > 0 and places % rows == 0 and abs(rows * width / height - places // rows) < 1:
            return rows
    return None


def _prefix_tokens(model: Any) -> int:
    found = getattr(model.config, "prefix_tokens", None)  # of a classifier of ours
    return count_prefix_tokens(model) if found is None else int(found)


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        output = tuple(output.values())
    if isinstance(output, tuple | list):
        return next((found for part in output if (found := _first_tensor(part)) is not None), None)
    return None
