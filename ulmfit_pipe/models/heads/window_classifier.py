"""A classifier that reads a long document in windows: the document's logits are the mean of its windows'.

The wrapper is used in training and prediction; its weights go by the names of the classifier inside, which is what is
saved.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_outputs import SequenceClassifierOutput

from ulmfit_pipe.models.heads.classifier_heads import at_least_single

INNER = "model"  # name of the classifier inside the wrapper
PIECE_TOKENS = 16_384  # tokens, padding included, that are read at once without gradients: memory, not result
TRAINED_TOKENS = 98_304  # the most of a pass with gradients: above what a batch has by max_tokens, windows overlapping


class WindowsForSequenceClassification(nn.Module):
    """Run a classifier over windows of documents and take the mean of a document's logits.

    Args:
        model: A classifier of single windows.
        piece_tokens: Bound on the tokens of a pass without gradients.
        trained_tokens: Windows of more tokens together are read in such passes with gradients too.
    """

    def __init__(
        self, model: nn.Module, *, piece_tokens: int = PIECE_TOKENS, trained_tokens: int = TRAINED_TOKENS
    ) -> None:
        super().__init__()
        self.model = model
        self.piece_tokens, self.trained_tokens = piece_tokens, trained_tokens

    @property
    def config(self) -> Any:
        """Configuration of the classifier inside."""
        return self.model.config

    def forward(self, input_ids: Tensor, document: Tensor | None = None, **inputs: Tensor) -> SequenceClassifierOutput:
        """Score documents.

        Args:
            input_ids: int64 (windows, seq_len).
            document: int64 (windows,), which document each window is of, from 0 and none left out; None takes each row
                for a document of its own.
            **inputs: Further inputs of the classifier, one row per window.

        Returns:
            ``logits`` float (documents, num_labels).
        """
        logits = self._window_logits(input_ids, inputs)  # (windows, num_labels)
        return SequenceClassifierOutput(logits=logits if document is None else mean_by_document(logits, document))

    def _window_logits(self, input_ids: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Read the windows at once or in groups; with gradients each group is run again in the backward pass."""
        trains = self.training or torch.is_grad_enabled()
        rows = max(1, self.piece_tokens // input_ids.shape[1])
        if len(input_ids) <= rows or (trains and input_ids.numel() <= self.trained_tokens):
            return self.model(input_ids=input_ids, **inputs).logits

        def read(start: int) -> Tensor:
            """Return the logits of one group of windows."""
            named = {"input_ids": input_ids, **inputs}
            return self.model(**{name: value[start : start + rows] for name, value in named.items()}).logits

        starts = range(0, len(input_ids), rows)
        return torch.cat([checkpoint(read, start, use_reentrant=False) if trains else read(start) for start in starts])

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the weights under the names they have in the classifier inside."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights that go by the names of the classifier inside."""
        return self.model.load_state_dict(*args, **kwargs)

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Save the classifier inside."""
        self.model.save_pretrained(folder, **kwargs)  # type: ignore[operator]


def mean_by_document(logits: Tensor, document: Tensor) -> Tensor:
    """Average rows (windows, num_labels) by document int64 (windows,); float (documents, num_labels)."""
    documents = int(document.max()) + 1
    wide = at_least_single(logits)
    total = wide.new_zeros(documents, wide.shape[1]).index_add(0, document, wide)
    counts = wide.new_zeros(documents).index_add(0, document, wide.new_ones(len(document)))
    return total / counts[:, None]


def bare_classifier(model: Any) -> Any:
    """Return the classifier inside a wrapper, or the model itself."""
    return model.model if isinstance(model, WindowsForSequenceClassification) else model


def longest_input(model: Any) -> int | None:
    """Return the most tokens that a transformer has positions for, or None where nothing bounds them.

    A table of positions that begins behind its padding index (RoBERTa, MPNet) has that many fewer positions.
    """
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name.rpartition(".")[2]:
            if module.padding_idx is not None:
                return module.num_embeddings - module.padding_idx - 1
    return limit if limit is not None and limit > 0 else None  # XLNet says -1
