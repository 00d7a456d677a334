"""Image backbones of every kind, a few thousand weights each, built from their configurations."""

from typing import Any

import torch
from transformers import AutoConfig

from ulmfit_pipe.models.images.backbones import build_backbone
from ulmfit_pipe.models.images.classifier import UlmfitForImageClassification, build_image_classifier

_VIT = {
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}
_PYRAMID = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2]}

# Architecture -> options of its configuration; the images are SIZES pixels a side, else 32.
BACKBONES: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 12, 16], "depths": [1, 2, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]},
    "convnextv2": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]},
    "vit": _VIT,
    "deit": _VIT,
    "beit": {**_VIT, "out_indices": [0]},
    "dinov2": {name: value for name, value in _VIT.items() if name != "intermediate_size"},
    "dinov2_with_registers": {name: value for name, value in _VIT.items() if name != "intermediate_size"},
    "dinov3_vit": {**_VIT, "hidden_size": 16},
    "swin": {
        "embed_dim": 8,
        "depths": [1, 1, 2],
        "num_heads": [2, 2, 2],
        "window_size": 2,
        "image_size": 32,
        "patch_size": 4,
    },
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "groups_width": 8},
    "mobilenet_v2": {"depth_multiplier": 0.25, "depth_divisible_by": 4, "min_depth": 4},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.3, "depth_divisor": 4, "hidden_dim": 320},
    "bit": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_groups": 4},
    "poolformer": {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]},
    "pvt": {**_PYRAMID, "image_size": 32},
    "pvt_v2": {**_PYRAMID, "image_size": 32},
    "focalnet": {"embed_dim": 8, "depths": [1, 1], "image_size": 32},
    "levit": {
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [1, 1, 2],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
        "image_size": 64,
    },
    "mobilevit": {
        "hidden_sizes": [8, 8, 8],
        "neck_hidden_sizes": [4, 4, 4, 4, 4, 4, 16],
        "num_attention_heads": 2,
        "image_size": 64,
    },
    "clip_vision_model": _VIT,
    "siglip_vision_model": _VIT,
}
SIZES = {"levit": 64, "mobilevit": 64}


def size_of(kind: str) -> int:
    return SIZES.get(kind, 32)


def tiny_backbone(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return build_backbone(AutoConfig.for_model(kind, **{**BACKBONES[kind], **changes})).eval()


def tiny_classifier(kind: str, **settings: Any) -> UlmfitForImageClassification:
    size = size_of(kind)
    numbers = {"label_names": ["ant", "bee", "wasp"], "height": size, "width": size, "hidden_sizes": [7]}
    return build_image_classifier(tiny_backbone(kind), **{**numbers, **settings}).eval()


def tiny_images(kind: str, count: int = 2) -> torch.Tensor:
    size = size_of(kind)
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))
