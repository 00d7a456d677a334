"""An image classifier on any backbone of transformers: max and average pooling, then a head of batch-norm blocks.

It is put together as fastai's ``cnn_learner`` does: a body without its own classifier, and a new head. The whole is a
transformers model (`save_pretrained`, `AutoModelForImageClassification` where `ulmfit_pipe.stages` is imported).

Source: fastai 2.8 vision/learner.py, ``create_head`` and ``cnn_learner``.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from ulmfit_pipe.models.heads.classifier_heads import NORM_BIAS, HeadBlock, at_least_single, needs_two_rows
from ulmfit_pipe.models.images.backbones import build_backbone, channels_of, drop_unused, dropped_from, inspect_backbone
from ulmfit_pipe.models.quiet_transformers import quiet_transformers

# What a loader names as missing in a process where this class is not registered.
AUTO_MAP = {"AutoConfig": "import_ulmfit_pipe_stages_first.UlmfitImageConfig"}
HEAD_INITS: dict[str, Callable[[Tensor], Any]] = {
    "kaiming-normal": init.kaiming_normal_,  # cnn_learner's default
    "kaiming-uniform": init.kaiming_uniform_,
    "xavier-normal": init.xavier_normal_,
    "xavier-uniform": init.xavier_uniform_,
}
FINAL_NORM_MOMENTUM = 0.01  # of the norm on the logits, fastai's bn_final


@strict
class UlmfitImageConfig(PreTrainedConfig):
    """Configuration of `UlmfitForImageClassification`.

    Args:
        backbone_config: Configuration of the backbone, or its dictionary.
        feature_size: Channels that the backbone outputs.
        prefix_tokens: Number of tokens before the image's patches; the first of them is the class token.
        channels_last: The backbone's map has its channels last.
        unused_modules: Parts of the backbone that the classifier leaves out (poolers, mask tokens).
        concat_pool: Pool by max and average (True), or by average alone.
        head_hidden_sizes: Widths of the head's inner layers.
        head_dropouts: Dropout before each linear layer of the head, the last one's last.
        final_norm: A batch norm on the logits.
        head_init: How the head's linear layers start; a key of `HEAD_INITS`.
        custom_head_class: Class name of a head that was given as a module, or None.
        layer_groups: ``early-late-head``, ``stages``, or a list of ``[name, [prefix, ...]]``, input side first.
        image_size: Height and width of the images, in pixels.
        **kwargs: What every transformers configuration takes (id2label, ...).

    Raises:
        ValueError: The sizes of the head contradict one another, or `head_init` is unknown.
    """

    model_type = "ulmfit_image"

    backbone_config: Any = None
    feature_size: int = 1
    prefix_tokens: int = 0
    channels_last: bool = False
    unused_modules: list[str] | tuple[str, ...] = ()
    concat_pool: bool = True
    head_hidden_sizes: list[int] | tuple[int, ...] = (512,)  # lin_ftrs, fastai 2.8
    head_dropouts: list[float | int] | tuple[float | int, ...] = (0.25, 0.5)  # ps 0.5, fastai 2.8
    final_norm: bool = False
    head_init: str = "kaiming-normal"
    custom_head_class: str | None = None
    layer_groups: str | list | tuple = "early-late-head"
    image_size: list[int] | tuple[int, ...] = (224, 224)

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the values, then let transformers take the common settings."""
        kwargs.pop("auto_map", None)
        if isinstance(self.backbone_config, dict):
            self.backbone_config = CONFIG_MAPPING[self.backbone_config["model_type"]].from_dict(self.backbone_config)
        if len(self.head_dropouts) != len(self.head_hidden_sizes) + 1:
            raise ValueError(
                f"a head with the inner widths {list(self.head_hidden_sizes)} has {len(self.head_hidden_sizes) + 1} "
                f"linear layers, got {len(self.head_dropouts)} dropouts {list(self.head_dropouts)}; give one each, "
                "or a single number"
            )
        if any(not 0 <= dropout < 1 for dropout in self.head_dropouts):
            raise ValueError(f"dropouts of the head must lie in [0, 1), got {list(self.head_dropouts)}; 0 is off")
        if any(width < 1 for width in self.head_hidden_sizes):
            raise ValueError(f"inner widths of the head must be 1 or more, got {list(self.head_hidden_sizes)}")
        if self.head_init not in HEAD_INITS:
            raise ValueError(f"head_init must be one of {', '.join(HEAD_INITS)}, got {self.head_init!r}")
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings, with the `auto_map` that makes an unregistered loader stop."""
        return {**super().to_dict(), "auto_map": dict(AUTO_MAP)}


class ImagePooling(nn.Module):
    """Concatenate max and average over an image's positions, and the class token where the backbone has one.

    Args:
        concat: Max and average, or the average alone.
        prefix_tokens: Number of leading tokens that are not patches.
        channels_last: A map has its channels last.
    """

    def __init__(self, *, concat: bool, prefix_tokens: int, channels_last: bool) -> None:
        super().__init__()
        self.concat, self.prefix_tokens, self.channels_last = concat, prefix_tokens, channels_last

    def forward(self, hidden: Tensor) -> Tensor:
        """Map float (batch, channels, height, width) or (batch, tokens, channels) to float (batch, width)."""
        if hidden.ndim == 4:
            places = hidden.flatten(1, 2) if self.channels_last else hidden.flatten(2).transpose(1, 2)
        else:
            places = hidden[:, self.prefix_tokens :]  # (batch, positions, channels)
        pooled = [hidden[:, 0]] if self.prefix_tokens else []
        if self.concat:
            pooled.append(places.amax(1))
        pooled.append(at_least_single(places).mean(1).to(places.dtype))
        return torch.cat(pooled, dim=1)


class ImageHead(nn.Module):
    """Pooling, then blocks of batch norm, dropout and linear layer, with ReLU between them.

    Key names do not depend on the dropouts.
    """

    def __init__(self, config: UlmfitImageConfig) -> None:
        """Build the head from the configuration."""
        super().__init__()
        self.pooling = ImagePooling(
            concat=config.concat_pool, prefix_tokens=config.prefix_tokens, channels_last=config.channels_last
        )
        parts = (1 if config.prefix_tokens else 0) + (2 if config.concat_pool else 1)
        num_labels = len(config.id2label or {})
        widths = [parts * config.feature_size, *config.head_hidden_sizes, num_labels]
        last = len(widths) - 2
        self.blocks = nn.ModuleList(
            HeadBlock(widths[index], widths[index + 1], dropout=dropout, activation=index < last)
            for index, dropout in enumerate(config.head_dropouts)
        )
        final = nn.BatchNorm1d(num_labels, momentum=FINAL_NORM_MOMENTUM)
        self.final_norm = final if config.final_norm else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        """Map the backbone's last hidden state to logits float (batch, num_labels).

        Raises:
            ValueError: A training batch has one image, of which batch norm cannot take a variance.
        """
        if len(hidden) == 1 and any(
            isinstance(part, nn.BatchNorm1d) and needs_two_rows(part) for part in self.modules()
        ):
            raise ValueError(
                "batch norm in training needs at least 2 images in a batch, got 1; use a larger batch size, or merge "
                "the last batch with its neighbour"
            )
        features = self.pooling(hidden)
        for block in self.blocks:
            features = block(features)
        return self.final_norm(features)


class UlmfitForImageClassification(PreTrainedModel):
    """A backbone and a head; `last_hidden_state` of the one goes into the other.

    Args:
        config: What both are.
        custom_head: The head's module, where the configuration says that it was made elsewhere.

    Raises:
        ValueError: The configuration names a custom head and none is given.
    """

    config_class = UlmfitImageConfig
    config: UlmfitImageConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = "image"

    def __init__(self, config: UlmfitImageConfig, custom_head: nn.Module | None = None) -> None:
        super().__init__(config)
        if config.custom_head_class is not None and custom_head is None:
            raise ValueError(
                f"this classifier has a head of its own, a {config.custom_head_class}, which no configuration can "
                "build; give it: custom_head=that module"
            )
        self.backbone = build_backbone(config.backbone_config)
        drop_unused(self.backbone, config.unused_modules)
        self.head = ImageHead(config) if custom_head is None else custom_head
        self.post_init()

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, without its progress bar."""
        with quiet_transformers():
            super().save_pretrained(*args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        # The backbone starts by its own rules, and a custom head as its maker left it.
        if not isinstance(self.head, ImageHead):
            return
        if isinstance(module, nn.Linear):
            HEAD_INITS[self.config.head_init](module.weight)
        elif isinstance(module, nn.BatchNorm1d):
            init.ones_(module.weight)
            init.constant_(module.bias, 0.0 if module is self.head.final_norm else NORM_BIAS)
            for name, buffer in module.named_buffers():
                init.constant_(buffer, 1 if name == "running_var" else 0)

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutputWithNoAttention:
        """Classify images.

        Args:
            pixel_values: float (batch, channels, height, width), normalized as the processor does.
            labels: int64 (batch,); given, the output holds the mean cross-entropy as ``loss``.
            **kwargs: Passed on to the backbone.
        """
        hidden = self.backbone(pixel_values=pixel_values, **kwargs).last_hidden_state
        logits = self.head(hidden)  # (batch, num_labels)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


def register_image_classifier() -> None:
    """Make transformers' Auto classes know the image classifier; doing it twice is harmless."""
    AutoConfig.register(UlmfitImageConfig.model_type, UlmfitImageConfig, exist_ok=True)
    AutoModelForImageClassification.register(UlmfitImageConfig, UlmfitForImageClassification, exist_ok=True)


def head_dropouts(dropout: float | Sequence[float], *, num_layers: int) -> list[float]:
    """Return one dropout a linear layer: a single number is the last layer's, half of it the others'.

    Source: fastai 2.8 ``create_head``.
    """
    if isinstance(dropout, int | float):
        return [dropout / 2] * (num_layers - 1) + [float(dropout)]
    return [float(value) for value in dropout]


def build_image_classifier(
    backbone: Any,
    *,
    label_names: Sequence[str],
    height: int,
    width: int,
    concat_pool: bool = True,
    hidden_sizes: Sequence[int] = (512,),
    dropout: float | Sequence[float] = 0.5,
    final_norm: bool = False,
    head_init: str = "kaiming-normal",
    custom_head: nn.Module | None = None,
    layer_groups: str | list[Any] = "early-late-head",
) -> UlmfitForImageClassification:
    """Put a new head on a backbone, whose weights are taken over.

    Args:
        backbone: A model of transformers that takes images; its unused parts are taken out.
        label_names: Names of the classes, in order.
        height: Height of the images, in pixels.
        width: Width of the images.
        concat_pool: Pool by max and average, or by average alone.
        hidden_sizes: Widths of the head's inner layers; empty for a single linear layer.
        dropout: Before the last linear layer, half of it before the others; or one per layer.
        final_norm: A batch norm on the logits.
        head_init: How the linear layers start.
        custom_head: A module from the backbone's last hidden state to logits, in place of pooling and head.
        layer_groups: As in `UlmfitImageConfig`.

    Raises:
        ValueError: The backbone cannot read such images, or the head does not fit it.
    """
    facts = inspect_backbone(backbone, channels=channels_of(backbone.config), height=height, width=width)
    config = UlmfitImageConfig(
        backbone_config=backbone.config,
        feature_size=facts.feature_size,
        prefix_tokens=facts.prefix_tokens,
        channels_last=facts.channels_last,
        unused_modules=[*dropped_from(backbone), *facts.unused],
        concat_pool=concat_pool,
        head_hidden_sizes=list(hidden_sizes),
        head_dropouts=head_dropouts(dropout, num_layers=len(hidden_sizes) + 1),
        final_norm=final_norm,
        head_init=head_init,
        custom_head_class=None if custom_head is None else type(custom_head).__name__,
        layer_groups=layer_groups,
        image_size=[height, width],
        id2label=dict(enumerate(label_names)),
        label2id={name: index for index, name in enumerate(label_names)},
        problem_type="single_label_classification",
    )
    drop_unused(backbone, facts.unused)
    model = UlmfitForImageClassification(config, custom_head=custom_head)
    model.backbone.load_state_dict(backbone.state_dict())
    if custom_head is not None:
        _try_head(model, custom_head, height=height, width=width)
    return model


@torch.no_grad()
def _try_head(model: UlmfitForImageClassification, head: nn.Module, *, height: int, width: int) -> None:
    """Raise unless a custom head turns the backbone's output into one logit per class."""
    channels, labels = channels_of(model.backbone.config), len(model.config.id2label or {})
    image = torch.zeros(2, channels, height, width, device=model.device, dtype=model.dtype)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    hidden = model.backbone(pixel_values=image).last_hidden_state
    cause: Exception | None = None
    try:
        found = f"gives {tuple(head(hidden).shape)}"
    except Exception as error:  # whatever a module of somebody else raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        found, cause = f"fails on it ({reason})", error
    for module, training in modes:
        module.training = training
    if found != f"gives {(2, labels)}":
        raise ValueError(
            f"the backbone gives a last_hidden_state of shape {tuple(hidden.shape)} for 2 images, of which the custom "
            f"head must make logits of shape {(2, labels)}, one per class; {type(head).__name__} {found}: make its "
            "layers as wide"
        ) from cause
