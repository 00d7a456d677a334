"""Where each document of a right-padded batch ends, where its gradients start, and its tokens turned around.

Pure functions of a batch's lengths; `AwdLstmForSequenceClassification` reads documents by them.
"""

import torch


def document_lengths(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, *, pad_token_id: int | None
) -> torch.Tensor:
    """Return the number of real tokens of each row, int64 (batch,) on the CPU.

    Raises:
        ValueError: A row has no token, or a padding position before its last token; the row is named.
    """
    if attention_mask is None:
        mask = input_ids != (-1 if pad_token_id is None else pad_token_id)
    else:
        mask = attention_mask.bool()
    lengths = mask.sum(1)  # (batch,)
    expected = torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]
    lengths, misplaced = torch.stack([lengths, (mask != expected).any(1)]).cpu()
    if (lengths == 0).any():
        row = int((lengths == 0).nonzero()[0])
        raise ValueError(f"row {row} of the batch has no token (all padding); every document starts with xxbos")
    if misplaced.any():
        row = int(misplaced.nonzero()[0])
        raise ValueError(
            f"row {row} of the batch has padding before its last token; pad on the right "
            "(tokenizer.padding_side = 'right'), and pass attention_mask if the padding id is also a token"
        )
    return lengths


def gradient_starts(lengths: torch.Tensor, *, bptt: int, gradient_window: int) -> torch.Tensor:
    """Return where each document's gradients start: the first multiple of bptt with at most window + bptt tokens left.

    Args:
        lengths: int64 (batch,).
        bptt: Tokens read at a time.
        gradient_window: Documents up to `gradient_window + bptt` tokens start at 0; fastai's `max_len` is this sum.

    Returns:
        int64 (batch,).
    """
    excess = (lengths - gradient_window - bptt).clamp(min=0)
    return (excess + bptt - 1).div(bptt, rounding_mode="floor") * bptt


def reversed_documents(input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Turn each row's real tokens around; int64 (batch, seq_len), padding stays to the right."""
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)  # (seq_len,)
    mirrored = lengths.to(input_ids.device)[:, None] - 1 - positions  # (batch, seq_len), negative at padding
    return input_ids.gather(1, torch.where(mirrored >= 0, mirrored, positions))
