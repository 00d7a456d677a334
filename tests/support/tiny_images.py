"""Folders of small images and models of a few thousand weights, for whole runs of seconds."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, ViTImageProcessorPil

from ulmfit_pipe.settings.images import (
    AugmentationSettings,
    ImageClassifierSettings,
    ImageHeadSettings,
    SmallResNetSettings,
)

SIDE = 16
SMALL_HEAD = ImageHeadSettings(hidden_sizes=[6])
STILL = AugmentationSettings(off=True)
QUICK = ImageClassifierSettings(
    epochs_per_phase=1,
    final_epochs=1,
    batch_size=4,
    image_size=SIDE,
    head=SMALL_HEAD,
    augmentation=AugmentationSettings(least_crop=0.8),
    backbone=SmallResNetSettings(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1]),
)
RESNET = {"embedding_size": 4, "hidden_sizes": [4, 6, 8], "depths": [1, 1, 1], "layer_type": "basic"}
VIT = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 10,
    "image_size": SIDE,
    "patch_size": 8,
}


def write_images(folder: Path, classes: tuple[str, ...] = ("dark", "light"), *, count: int = 8, seed: int = 0) -> Path:
    """Write a folder of images a class, told by how bright they are."""
    chance = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            values = chance.integers(0, 90, (20, 24, 3)) + number * 160 // max(1, len(classes) - 1)
            Image.fromarray(values.astype(np.uint8)).save(folder / name / f"{seed}-{index}.png")
    return folder


def save_backbone(folder: Path, kind: str = "resnet", *, head: bool = False, processor: bool = True, **changes) -> Path:
    """Write a random image model as the hub has them: the base model, or with the architecture's own head."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**{"resnet": RESNET}.get(kind, VIT), **changes})
    (AutoModelForImageClassification if head else AutoModel).from_config(config).save_pretrained(folder)
    if processor:
        ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder
