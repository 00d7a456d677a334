import pytest
import torch

from ulmfit_pipe.training.frozen_cache.row_tensors import (
    PrefixError,
    about_equal,
    has_tokens,
    join_rows,
    picked,
    split_rows,
)


def texts(*lengths, width=None, left=False):
    """A batch of texts; token t of row r is 100 r + t."""
    width = width or max(lengths)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    mask = mask.flip(1) if left else mask
    ids = 100 * torch.arange(len(lengths))[:, None] + torch.arange(width)
    rows = torch.arange(len(lengths))
    return {"input_ids": ids, "attention_mask": mask, "row": rows, "labels": rows % 2}


def images(count):
    return {"pixel_values": torch.rand(count, 3, 2), "row": torch.arange(count), "labels": torch.arange(count)}


def test_texts_are_split_into_their_tokens_and_joined_with_zeros_for_padding():
    batch = texts(3, 1, 2)
    value = torch.rand(3, 3, 5)
    parts = split_rows(value, batch, tokens=True)
    assert [part.shape for part in parts] == [(3, 5), (1, 5), (2, 5)]
    assert torch.equal(join_rows(parts, batch, tokens=True), value * batch["attention_mask"][:, :, None])
    wider = texts(1, 3, width=6, left=True)
    again = join_rows([parts[1], parts[0]], wider, tokens=True)
    assert again.shape == (2, 6, 5)
    assert torch.equal(again[0, 5:], value[1, :1]) and torch.equal(again[1, 3:], value[0])
    assert again[0, :5].eq(0).all()


def test_a_vector_per_row_stays_whole():
    batch, value = images(2), torch.rand(2, 5, 3)
    assert has_tokens(torch.rand(2, 3, 5), texts(3, 1)) and not has_tokens(value, batch)
    assert torch.equal(join_rows(split_rows(value, batch, tokens=False), batch, tokens=False), value)


def test_a_documents_windows_stay_together():
    batch = {**texts(3, 2, 1, 3), "document": torch.tensor([0, 0, 1, 2]), "row": torch.tensor([7, 8, 9])}
    value = torch.rand(4, 3, 5)
    parts = split_rows(value, batch, tokens=True)
    assert [len(part) for part in parts] == [5, 1, 3]
    assert torch.equal(join_rows(parts, batch, tokens=True), value * batch["attention_mask"][:, :, None])
    assert [len(part) for part in split_rows(torch.rand(4, 5), batch, tokens=False)] == [2, 1, 1]


def test_another_number_of_rows_is_refused():
    with pytest.raises(PrefixError, match=r"a batch of 2 rows gave a tensor of the shape \(3, 5\)"):
        split_rows(torch.rand(3, 5), texts(3, 1), tokens=False)


def test_tokens_in_one_batch_and_not_in_another_are_refused():
    with pytest.raises(PrefixError, match=r"a batch of 2 rows gave a tensor of the shape \(2, 4, 5\)"):
        split_rows(torch.rand(2, 4, 5), texts(3, 1), tokens=True)


def test_a_row_of_another_length_is_refused():
    parts = split_rows(torch.rand(2, 3, 5), texts(3, 1), tokens=True)
    with pytest.raises(PrefixError, match="a row has another length than it had before"):
        join_rows(parts, texts(3, 2), tokens=True)


def test_windows_out_of_order_are_refused():
    batch = {**texts(3, 2, 1), "document": torch.tensor([1, 0, 0]), "row": torch.arange(2)}
    with pytest.raises(PrefixError, match=r"windows of a batch are not in the order of their rows: \[1, 0, 0\]"):
        split_rows(torch.rand(3, 3, 5), batch, tokens=True)


def test_windows_follow_their_rows_into_a_picked_batch():
    batch = {**texts(3, 2, 1, 3), "document": torch.tensor([0, 0, 1, 2]), "row": torch.tensor([7, 8, 9])}
    batch["labels"] = torch.tensor([0, 1, 1])
    chosen = picked(batch, [2, 0, 2])
    assert chosen["row"].tolist() == [9, 7, 9] and chosen["labels"].tolist() == [1, 0, 1]
    assert chosen["document"].tolist() == [0, 1, 1, 2]
    assert chosen["input_ids"][:, 0].tolist() == [300, 0, 100, 300]


def test_about_equal_is_a_matter_of_the_type():
    ones = torch.ones(3)
    assert about_equal(ones, ones * (1 + 5e-5)) and not about_equal(ones, ones * (1 + 2e-4))
    assert not about_equal(ones.double(), ones.double() * (1 + 5e-5))
    assert about_equal(ones.bfloat16(), ones.bfloat16() * 1.01)
    assert not about_equal(ones, ones.double()) and not about_equal(ones, ones[:2])
    assert not about_equal(ones * torch.nan, ones * torch.nan)
    assert about_equal(torch.ones(0), torch.ones(0))
    assert about_equal(torch.arange(3), torch.arange(3)) and not about_equal(torch.arange(3), torch.arange(3) + 1)
