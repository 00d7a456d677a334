"""Models that differ from others by a known factor on chosen weights."""

from pathlib import Path

import torch

from tests.support.tiny_runs import heard
from ulmfit_pipe.images.network import build_image_network
from ulmfit_pipe.settings.images import ImageClassifierSettings, ImageHeadSettings


@torch.no_grad()
def save_moved(model, folder: Path, part: str, factor: float = 1.1) -> Path:
    """Write a model with every parameter whose name holds some words made larger."""
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.mul_(factor)
    model.save_pretrained(folder)
    return folder


def save_image_classifier(folder: Path, base: Path, *, part: str = "none", classes=("ant", "bee"), **settings) -> Path:
    """Write a classifier of small images on a backbone, some of its weights made larger."""
    made = ImageClassifierSettings(head=ImageHeadSettings(hidden_sizes=[5]), **settings)
    torch.manual_seed(1)
    network, pixels = build_image_network(str(base), list(classes), made, say=heard()[0].append)
    pixels.processor.save_pretrained(folder)
    return save_moved(network, folder, part)
