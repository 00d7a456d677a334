"""The settings of an AWD-LSTM: sizes, the five dropouts, and how documents are read.

Source: Merity et al. 2017 (AWD-LSTM), Howard & Ruder 2018 (ULMFiT); the defaults are fastai 2.8's.
"""

import copy
import difflib
import os
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ulmfit_pipe.storage.model_code import save_code

MODELING = "modeling_awd_lstm"  # beside this file; it has the configuration too, so that a folder has one of it
AUTO_MAP = {
    "AutoConfig": f"{MODELING}.AwdLstmConfig",
    "AutoModel": f"{MODELING}.AwdLstmModel",
    "AutoModelForCausalLM": f"{MODELING}.AwdLstmForCausalLM",
    "AutoModelForSequenceClassification": f"{MODELING}.AwdLstmForSequenceClassification",
}

# The dropouts that `drop_mult` scales; the head's second dropout (`head_dropout`) keeps its value, as in fastai.
SCALED_DROPOUTS = (
    "embedding_dropout",
    "input_dropout",
    "weight_dropout",
    "hidden_dropout",
    "output_dropout",
)


@strict
class AwdLstmConfig(PreTrainedConfig):
    """Configuration of `AwdLstmModel` and of its language-model and classifier forms.

    Args:
        vocab_size: Rows of the embedding.
        embedding_size: Width of the embedding and of the last LSTM layer (the features a head sees).
        hidden_size: Width of every LSTM layer but the last, which is `embedding_size` wide.
        num_hidden_layers: Number of LSTM layers.
        embedding_dropout: Probability that a whole vocabulary row is dropped.
        input_dropout: Dropout of the embedded text, one mask for all time steps.
        weight_dropout: Dropout of each layer's recurrent weight matrix.
        hidden_dropout: Dropout between LSTM layers, one mask for all time steps.
        output_dropout: Dropout after the last layer: the LM's decoder input, the classifier head's first dropout.
        head_hidden_size: Width of the classifier head's inner layer.
        head_dropout: The classifier head's second dropout.
        pad_token_id: Id of the padding token.
        bos_token_id: Id of the token that starts every document.
        eos_token_id: Id that ends generated text; None generates up to the length asked for.
        bptt: Tokens read at a time; gradients do not cross the border between two such chunks.
        gradient_window: A classified document keeps gradients for its last `gradient_window + 1` to
            `gradient_window + bptt` tokens; the text before is read without. 1368 + 72 is fastai's 1440.
        direction: "forward", or "backward" for a model of the reversed text.
        tie_word_embeddings: The LM's decoder shares the embedding's weight.
        vocab_hash: Hash of the tokenizer's vocabulary, to refuse a tokenizer that belongs to another model.
        thresholds: Per-label decision thresholds of a multi-label classifier.
        **kwargs: What every transformers configuration takes (num_labels, id2label, problem_type, ...).

    Raises:
        ValueError: A size is below 1, a dropout outside [0, 1), or an unknown name resembles a known one.
    """

    model_type = "awd_lstm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["hidden_state", "raw_output", "raw_mask"]

    vocab_size: int = 60008
    embedding_size: int = 400
    hidden_size: int = 1152
    num_hidden_layers: int = 3
    embedding_dropout: float | int = 0.02
    input_dropout: float | int = 0.25
    weight_dropout: float | int = 0.2
    hidden_dropout: float | int = 0.15
    output_dropout: float | int = 0.1
    head_hidden_size: int = 50
    head_dropout: float | int = 0.1
    pad_token_id: int | None = 1
    bos_token_id: int | None = 2
    eos_token_id: int | None = None
    bptt: int = 72
    gradient_window: int = 1368
    direction: Literal["forward", "backward"] = "forward"
    tie_word_embeddings: bool = True
    vocab_hash: str | None = None
    thresholds: list[float] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the values, then let transformers take the common settings."""
        self._refuse_misspelt(kwargs)
        for name in (
            "vocab_size",
            "embedding_size",
            "hidden_size",
            "num_hidden_layers",
            "head_hidden_size",
            "bptt",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)!r}")
        if self.gradient_window < 0:
            raise ValueError(f"gradient_window must be at least 0 tokens, got {self.gradient_window!r}")
        for name in (*SCALED_DROPOUTS, "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)!r}; 0 switches it off")
        super().__post_init__(**kwargs)

    def _refuse_misspelt(self, unknown: dict[str, Any]) -> None:
        """Raise for a setting whose name is nearly, but not quite, one of ours."""
        own = [name for name in AwdLstmConfig.__annotations__ if name != "keys_to_ignore_at_inference"]
        for name in unknown:
            nearest = difflib.get_close_matches(name, own, n=1, cutoff=0.85)
            if nearest:
                raise ValueError(f"AwdLstmConfig has no setting {name!r}; did you mean {nearest[0]!r}?")

    def layer_sizes(self) -> list[tuple[int, int]]:
        """Return (input width, output width) of each LSTM layer, input side first."""
        widths = [self.embedding_size] + [self.hidden_size] * (self.num_hidden_layers - 1) + [self.embedding_size]
        return list(zip(widths[:-1], widths[1:], strict=True))

    def scaled_dropouts(self, drop_mult: float) -> "AwdLstmConfig":
        """Return a copy whose five dropouts are multiplied by `drop_mult` (`head_dropout` is not, as in fastai).

        Raises:
            ValueError: `drop_mult` is negative, or a product is not below 1.
        """
        if drop_mult < 0:
            raise ValueError(f"drop_mult must be at least 0, got {drop_mult!r}; 1 keeps the dropouts, 0 drops nothing")
        scaled = copy.deepcopy(self)
        for name in SCALED_DROPOUTS:
            value = getattr(self, name) * drop_mult
            if value >= 1:
                raise ValueError(
                    f"drop_mult {drop_mult!r} makes {name} {value:g}, which must stay below 1; "
                    f"the largest allowed here is just under {1 / getattr(self, name):g}"
                )
            setattr(scaled, name, value)
        return scaled

    def to_dict(self) -> dict[str, Any]:
        """Return all settings, with the `auto_map` that names the code beside them."""
        return {**super().to_dict(), "auto_map": dict(AUTO_MAP)}

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Save as transformers does, and the code that builds the model from it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        save_code(save_directory, f"{__package__}.{MODELING}")
