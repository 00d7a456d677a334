import pytest
import torch

from ulmfit_pipe.training.frozen_cache.batch_rows import (
    PrefixError,
    RowAxes,
    about_equal,
    find_axes,
    picked,
    trial_batches,
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


# ---- cutting into rows and putting together again


def test_texts_are_cut_to_their_tokens_and_put_together_with_zeros_for_padding():
    batch = texts(3, 1, 2)
    value = torch.rand(3, 3, 5)
    axes = RowAxes(row=0, text=1, owned=False)
    parts = axes.split(value, batch)
    assert [part.shape for part in parts] == [(3, 5), (1, 5), (2, 5)]
    joined = axes.join(parts, batch)
    assert torch.equal(joined, value * batch["attention_mask"][:, :, None])
    wider = texts(1, 3, width=6, left=True)
    again = axes.join([parts[1], parts[0]], wider)
    assert again.shape == (2, 6, 5)
    assert torch.equal(again[0, 5:], value[1, :1]) and torch.equal(again[1, 3:], value[0])
    assert again[0, :5].eq(0).all()


def test_axes_may_stand_anywhere():
    batch = texts(3, 1)
    value = torch.rand(5, 3, 2)  # (hidden, tokens, rows)
    axes = RowAxes(row=2, text=1, owned=False)
    joined = axes.join(axes.split(value, batch), batch)
    assert torch.equal(joined, value * batch["attention_mask"].T)
    rows = RowAxes(row=1, text=None, owned=False)
    flat = torch.rand(5, 2)
    assert torch.equal(rows.join(rows.split(flat, batch), batch), flat)


def test_a_documents_windows_stay_together():
    batch = {**texts(3, 2, 1, 3), "document": torch.tensor([0, 0, 1, 2]), "row": torch.tensor([7, 8, 9])}
    value = torch.rand(4, 3, 5)
    axes = RowAxes(row=0, text=1, owned=True)
    parts = axes.split(value, batch)
    assert [len(part) for part in parts] == [5, 1, 3]
    assert torch.equal(axes.join(parts, batch), value * batch["attention_mask"][:, :, None])
    pooled = RowAxes(row=0, text=None, owned=True).split(torch.rand(4, 5), batch)
    assert [len(part) for part in pooled] == [2, 1, 1]


def test_another_number_of_rows_is_refused():
    with pytest.raises(PrefixError, match="a batch of 2 rows gave 3"):
        RowAxes(row=0, text=None, owned=False).split(torch.rand(3, 5), texts(3, 1))


def test_a_row_of_another_length_is_refused():
    axes = RowAxes(row=0, text=1, owned=False)
    parts = axes.split(torch.rand(2, 3, 5), texts(3, 1))
    with pytest.raises(PrefixError, match="a row has another length than it had before"):
        axes.join(parts, texts(3, 2))


def test_windows_out_of_order_are_refused():
    batch = {**texts(3, 2, 1), "document": torch.tensor([1, 0, 0]), "row": torch.arange(2)}
    with pytest.raises(PrefixError, match=r"windows of a batch are not in the order of their rows: \[1, 0, 0\]"):
        RowAxes(row=0, text=1, owned=True).split(torch.rand(3, 3, 5), batch)


# ---- finding the axes


def test_axes_are_found_by_what_changes_with_rows_and_tokens():
    first, second = texts(3, 2, 1, 3), texts(4, 1, 1, 1, 1, 1)
    assert find_axes(torch.rand(4, 3, 7), torch.rand(6, 4, 7), (first, second)) == RowAxes(0, 1, owned=False)
    assert find_axes(torch.rand(7, 3, 4), torch.rand(7, 4, 6), (first, second)) == RowAxes(2, 1, owned=False)
    assert find_axes(torch.rand(4, 7), torch.rand(6, 7), (first, second)) == RowAxes(0, None, owned=False)
    owned = [{**batch, "row": torch.arange(count)} for batch, count in ((first, 2), (second, 3))]
    for batch in owned:
        batch["document"] = torch.arange(len(batch["input_ids"])).clamp(max=len(batch["row"]) - 1)
    assert find_axes(torch.rand(4, 3, 7), torch.rand(6, 4, 7), (*owned,)) == RowAxes(0, 1, owned=True)
    assert find_axes(torch.rand(2, 7), torch.rand(3, 7), (*owned,)) == RowAxes(0, None, owned=False)


@pytest.mark.parametrize(
    ("first", "second"),
    [((7, 3), (7, 3)), ((4, 4), (6, 6)), ((4, 8), (6, 9)), ((4, 3), (6,))],
    ids=["no row axis", "two of them", "an axis of its own", "another number of axes"],
)
def test_a_tensor_without_a_row_axis_is_refused(first, second):
    with pytest.raises(PrefixError, match=r"it has the shape \(.*\) for 4 rows and \(.*\) for 6 rows, so it cannot be"):
        find_axes(torch.rand(first), torch.rand(second), (images(4), images(6)))


# ---- batches to try things out on


@pytest.mark.parametrize("left", [False, True])
def test_trial_texts_are_cut_to_rising_lengths_and_their_last_column_is_padding(left):
    first, second, rows = trial_batches(texts(6, 5, 6, 4, 2, width=6, left=left))
    assert first["attention_mask"].sum(1).tolist() == [1, 2, 3, 4]
    assert rows == [3, 2, 1, 0, 3, 0] and second["row"].tolist() == rows
    assert second["input_ids"].shape == (6, 5)
    for place, row in enumerate(rows):
        mine, theirs = second["attention_mask"][place].bool(), first["attention_mask"][row].bool()
        assert second["input_ids"][place][mine].tolist() == first["input_ids"][row][theirs].tolist()


def test_trial_batches_of_a_single_row_differ_in_their_number_of_rows():
    first, second, rows = trial_batches(images(1))
    assert len(first["row"]) == 1 and len(second["row"]) == 3 and rows == [0, 0, 0]


def test_windows_follow_their_rows_into_a_picked_batch():
    batch = {**texts(3, 2, 1, 3), "document": torch.tensor([0, 0, 1, 2]), "row": torch.tensor([7, 8, 9])}
    batch["labels"] = torch.tensor([0, 1, 1])
    chosen = picked(batch, [2, 0, 2])
    assert chosen["row"].tolist() == [9, 7, 9] and chosen["labels"].tolist() == [1, 0, 1]
    assert chosen["document"].tolist() == [0, 1, 1, 2]
    assert chosen["input_ids"][:, 0].tolist() == [300, 0, 100, 300]


def test_batches_without_row_numbers_are_refused():
    with pytest.raises(PrefixError, match="batches name no rows: they have labels, pixel_values and no 'row'"):
        trial_batches({"pixel_values": torch.rand(2, 3), "labels": torch.arange(2)})


def test_texts_of_a_single_token_are_refused():
    with pytest.raises(PrefixError, match="all texts have a single token"):
        trial_batches(texts(1, 1))


def test_about_equal_is_a_matter_of_the_type():
    ones = torch.ones(3)
    assert about_equal(ones, ones * (1 + 5e-5)) and not about_equal(ones, ones * (1 + 2e-4))
    assert not about_equal(ones.double(), ones.double() * (1 + 5e-5))
    assert about_equal(ones.bfloat16(), ones.bfloat16() * 1.01)
    assert not about_equal(ones, ones.double()) and not about_equal(ones, ones[:2])
    assert not about_equal(ones * torch.nan, ones * torch.nan)
    assert about_equal(torch.ones(0), torch.ones(0))
    assert about_equal(torch.arange(3), torch.arange(3)) and not about_equal(torch.arange(3), torch.arange(3) + 1)
