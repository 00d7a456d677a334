import pytest
import torch

from ulmfit_pipe.models.heads.document_windows import document_lengths, gradient_starts, reversed_documents


@pytest.mark.parametrize(
    ("length", "kept"),
    [
        (1, 1),
        (72, 72),
        (1369, 1369),
        (1440, 1440),
        (1441, 1369),
        (1500, 1428),
        (1512, 1440),
        (1513, 1369),
        (9999, 1431),
    ],
)
def test_the_kept_length_is_fastais(length, kept):
    start = gradient_starts(torch.tensor([length]), bptt=72, gradient_window=1368).item()
    assert start % 72 == 0
    assert length - start == kept


def test_a_window_that_is_no_multiple_of_bptt_starts_on_one_all_the_same():
    starts = gradient_starts(torch.arange(1, 30), bptt=4, gradient_window=5)
    kept = torch.arange(1, 30) - starts
    assert set((starts % 4).tolist()) == {0}
    assert kept[-21:].min().item() == 6 and kept.max().item() == 9


def test_lengths_come_from_the_mask_or_from_the_padding_id():
    ids = torch.tensor([[2, 5, 7], [2, 1, 1]])
    assert document_lengths(ids, None, pad_token_id=1).tolist() == [3, 1]
    assert document_lengths(ids, torch.tensor([[1, 1, 0], [1, 1, 1]]), pad_token_id=1).tolist() == [2, 3]
    assert document_lengths(ids, None, pad_token_id=None).tolist() == [3, 3]


def test_an_empty_row_is_refused_by_number():
    with pytest.raises(ValueError, match="row 1 of the batch has no token"):
        document_lengths(torch.tensor([[2, 5, 7], [1, 1, 1]]), None, pad_token_id=1)


@pytest.mark.parametrize("mask", [[0, 1, 1], [1, 0, 1]])
def test_padding_before_the_last_token_is_refused_by_row_number(mask):
    with pytest.raises(ValueError, match="row 1 of the batch has padding before its last token; pad on the right"):
        document_lengths(torch.full((2, 3), 5), torch.tensor([[1, 1, 0], mask]), pad_token_id=1)


def test_reversing_turns_the_tokens_and_leaves_the_padding_to_the_right():
    ids = torch.tensor([[2, 5, 7, 8], [2, 9, 1, 1]])
    assert reversed_documents(ids, torch.tensor([4, 2])).tolist() == [[8, 7, 5, 2], [9, 2, 1, 1]]
