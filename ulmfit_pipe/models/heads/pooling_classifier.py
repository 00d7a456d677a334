"""A classifier on any transformers backbone with another head than the backbone's own.

Concat pooling and ULMFiT's two blocks; or one of a sentence encoder's poolings (mean, maximum, first or last token),
perhaps normalized, and a linear layer. A saved folder is ours, as an AWD-LSTM's is: it loads where
``ulmfit_pipe.stages`` has been imported, elsewhere by the code that it holds.

Sources: Howard & Ruder 2018, section 3.3; Reimers & Gurevych 2019, section 3 (mean, maximum, first token).
"""

import inspect
import os
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import SequenceClassifierOutput

from ulmfit_pipe.models.heads.classifier_heads import (
    ConcatPooling,
    LinearHead,
    PoolingClassifierHead,
    TokenPooling,
    initialize_head,
)
from ulmfit_pipe.models.heads.document_windows import document_lengths
from ulmfit_pipe.models.quiet_transformers import quiet_transformers
from ulmfit_pipe.storage.model_code import save_code

MODEL_TYPE = "pooling_classifier"
AUTO_MAP = {
    "AutoConfig": "pooling_classifier.PoolingClassifierConfig",
    "AutoModelForSequenceClassification": "pooling_classifier.PoolingForSequenceClassification",
}


@strict
class PoolingClassifierConfig(PreTrainedConfig):
    """Configuration of `PoolingForSequenceClassification`.

    Args:
        encoder_config: Configuration of the backbone.
        pooling: ``concat``, [summary, max, mean] and two blocks; or ``mean``, ``max``, ``cls`` (first token) or
            ``last`` (token), and one linear layer.
        normalize: Divide what one linear layer reads by its length, as sentence encoders compared by cosine are made.
        summary: Which position concat pooling takes beside the maximum and the mean: the last (a causal model has read
            all of the text only there), or the first ([CLS] of a model that reads both ways).
        head_hidden_size: Width of the inner layer of the head of two blocks; 50 in ULMFiT.
        head_dropout: Dropout of every layer of the head; 0.1 as in BERT's own.
        **kwargs: What every transformers configuration takes (id2label, problem_type, ...).

    Raises:
        ValueError: The backbone is of a type that is not registered.
    """

    model_type = MODEL_TYPE
    sub_configs_defaults = {  # noqa: RUF012  # transformers reads it from the class
        "encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="bert", optional=True)
    }

    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    pooling: Literal["concat", "mean", "max", "cls", "last"] = "concat"
    normalize: bool = False
    summary: Literal["first", "last"] = "last"
    head_hidden_size: int = 50
    head_dropout: float | int = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        """Let transformers take the common settings."""
        kind = self.encoder_config.get("model_type") if isinstance(self.encoder_config, dict) else None
        if kind is not None and kind not in CONFIG_MAPPING:
            raise ValueError(
                f"the classifier's backbone is a {kind!r} model, which transformers does not know and whose code is "
                "not in the classifier's folder; register its classes with AutoConfig and AutoModel first"
            )
        super().__post_init__(**kwargs)

    def get_text_config(self, *_args: Any, **_kwargs: Any) -> Any:
        """Return the backbone's configuration, which knows vocabulary, width and padding."""
        return self if self.encoder_config is None else self.encoder_config

    def to_dict(self) -> dict[str, Any]:
        """Return all settings, with the `auto_map` that names the code beside them."""
        return {**super().to_dict(), "auto_map": dict(AUTO_MAP)}

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, and the code that builds the model from it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        save_code(save_directory, __name__)


class PoolingForSequenceClassification(PreTrainedModel):
    """A backbone, its outputs over a text's tokens pooled, and a head on them."""

    config_class = PoolingClassifierConfig
    config: PoolingClassifierConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True  # where the backbone does
    _supports_sdpa = True  # the backbone decides for itself
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: PoolingClassifierConfig) -> None:
        """Build backbone and head from the configuration."""
        super().__init__(config)
        encoder: Any = config.encoder_config
        self.backbone = AutoModel.from_config(encoder, trust_remote_code=False, **backbone_options(encoder))
        width, labels = output_width(encoder), config.num_labels or 2
        self.pooling: nn.Module
        self.classifier: nn.Module
        if config.pooling != "concat":
            self.pooling = TokenPooling(config.pooling, normalize=config.normalize)
            self.classifier = LinearHead(width, labels, dropout=config.head_dropout)
        else:
            self.pooling = ConcatPooling()
            self.classifier = PoolingClassifierHead(
                3 * width,
                config.head_hidden_size,
                labels,
                dropout=config.head_dropout,
                hidden_dropout=config.head_dropout,
            )
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **inputs: Any,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Score texts.

        Args:
            input_ids: int64 (batch, seq_len), right-padded.
            attention_mask: (batch, seq_len), 1 at real tokens; None takes every id but the padding id as real.
            labels: int64 (batch,), or float (batch, num_labels) of 0 and 1 for multi-label.
            return_dict: False returns a plain tuple.
            **inputs: What else the backbone takes, such as token_type_ids.

        Raises:
            ValueError: A row is empty or not right-padded.
        """
        lengths = document_lengths(input_ids, attention_mask, pad_token_id=self.config.get_text_config().pad_token_id)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        mask = positions < lengths.to(input_ids.device)[:, None]  # (batch, seq_len)
        encoded = self.backbone(input_ids=input_ids, attention_mask=mask.long(), **inputs)
        outputs = encoded.last_hidden_state  # (batch, seq_len, hidden)
        pooled = self.pooling(outputs, mask)  # (batch, 3 * hidden), of one pooling (batch, hidden)
        if self.config.pooling == "concat" and self.config.summary == "first":
            pooled = torch.cat([outputs[:, 0], pooled[:, outputs.shape[-1] :]], dim=1)
        logits = self.classifier(pooled)  # (batch, num_labels)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        output = SequenceClassifierOutput(loss=loss, logits=logits)
        return output.to_tuple() if return_dict is False else output

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, without its progress bar."""
        with quiet_transformers():
            super().save_pretrained(*args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        initialize_head(module)  # the backbone initializes itself


def output_width(config: Any) -> int:
    """Return the width of a backbone's last hidden state, which OPT projects to that of its embeddings."""
    text_config = config.get_text_config()
    return getattr(text_config, "word_embed_proj_dim", text_config.hidden_size)


def backbone_options(config: Any) -> dict[str, Any]:
    """Return how `AutoModel` builds a backbone without a pooler that nothing would read."""
    kind: Any = AutoModel._model_mapping[type(config)]
    kind = kind[0] if isinstance(kind, tuple) else kind
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}
