import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value

from ulmfit_pipe.data.streams.classifier_batches import ClassifierBatches

NAMES = ["a", "b", "c"]


def make_table(rows, *, longest=30, seed=1, labels=True):
    random = np.random.default_rng(seed)
    columns = {"input_ids": [random.integers(2, 90, random.integers(1, longest)).tolist() for _ in range(rows)]}
    features = {"input_ids": List(Value("int32"))}
    if labels:
        columns["label"] = random.integers(0, 3, rows).tolist()
        features["label"] = ClassLabel(names=NAMES)
    return Dataset.from_dict(columns, features=Features(features))


def sizes(batches):
    return [len(batch["row"]) for batch in batches]


def rows_of(batches):
    return [batch["row"].tolist() for batch in batches]


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("rows", [2, 7, 33, 260])
def test_every_row_comes_once_with_its_own_tokens_mask_and_label(rows, shuffle):
    table = make_table(rows)
    seen = []
    for batch in ClassifierBatches(table, batch_size=4, shuffle=shuffle, pad_token_id=0):
        assert {name: tensor.dtype for name, tensor in batch.items()} == {
            "input_ids": torch.int64,
            "attention_mask": torch.int64,
            "row": torch.int64,
            "labels": torch.int64,
        }
        for ids, mask, label, row in zip(
            *(batch[n] for n in ("input_ids", "attention_mask", "labels", "row")), strict=True
        ):
            expected = table[int(row)]
            length = len(expected["input_ids"])
            assert ids.tolist() == expected["input_ids"] + [0] * (len(ids) - length)
            assert mask.tolist() == [1] * length + [0] * (len(ids) - length)
            assert label == expected["label"]
            seen.append(int(row))
    assert sorted(seen) == list(range(rows))


def test_a_batch_by_hand():
    table = Dataset.from_dict({"input_ids": [[5], [6, 7, 8]], "label": [1, 0]})
    (batch,) = ClassifierBatches(table, batch_size=2, shuffle=False, pad_token_id=9)
    assert batch["input_ids"].tolist() == [[6, 7, 8], [5, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [0, 1]
    assert batch["row"].tolist() == [1, 0]


def test_evaluation_goes_from_longest_to_shortest_whatever_the_epoch():
    batches = ClassifierBatches(make_table(23), batch_size=5, shuffle=False)
    lengths = [n for batch in batches for n in batch["attention_mask"].sum(1).tolist()]
    assert lengths == sorted(lengths, reverse=True)
    before = rows_of(batches)
    batches.set_epoch(3)
    assert rows_of(batches) == before
    assert sizes(batches) == [5, 5, 5, 5, 3]


def test_training_order_is_a_function_of_seed_and_epoch():
    table = make_table(77)
    first, again = (ClassifierBatches(table, batch_size=4, seed=6) for _ in range(2))
    epoch_0 = rows_of(first)
    assert rows_of(again) == epoch_0
    first.set_epoch(1)
    assert rows_of(first) != epoch_0
    first.set_epoch(0)
    assert rows_of(first) == epoch_0
    assert rows_of(ClassifierBatches(table, batch_size=4, seed=7)) != epoch_0


def test_training_starts_with_the_longest_row_and_mixes_the_other_batches():
    batches = ClassifierBatches(make_table(400, longest=300), batch_size=5)
    longest = [batch["input_ids"].shape[1] for batch in batches]
    assert longest[0] == max(longest)
    assert longest[1:] != sorted(longest[1:], reverse=True)


def test_training_batches_hold_documents_of_like_length():
    table = make_table(2_000, longest=400)
    real = sum(len(row) for row in table["input_ids"])
    padded = sum(batch["input_ids"].numel() for batch in ClassifierBatches(table, batch_size=16))
    assert real / padded > 0.95  # 0.5 in random order


@pytest.mark.parametrize(
    ("rows", "shuffle", "expected"),
    [(9, True, [4, 5]), (9, False, [4, 5]), (10, True, [2, 4, 4]), (3, True, [3]), (5, True, [5]), (1, True, [1])],
)
def test_a_last_batch_of_one_row_joins_its_neighbour(rows, shuffle, expected):
    assert sorted(sizes(ClassifierBatches(make_table(rows), batch_size=4, shuffle=shuffle))) == expected


def test_no_batch_of_one_row_whatever_the_number_of_rows():
    for rows in [*range(2, 40), *range(95, 110), *range(145, 160), 225, 226]:
        for batch_size in (2, 3):
            counts = sizes(ClassifierBatches([[5] * (1 + i % 9) for i in range(rows)], batch_size=batch_size))
            assert min(counts) >= 2
            assert max(counts) <= batch_size + 1


def test_a_batch_size_of_one_is_kept_as_asked():
    assert sizes(ClassifierBatches(make_table(5), batch_size=1)) == [1, 1, 1, 1, 1]


@pytest.mark.parametrize("shuffle", [False, True])
def test_the_token_budget_holds_padding_included(shuffle):
    table = make_table(900, longest=50)
    batches = ClassifierBatches(table, batch_size=32, max_tokens=256, shuffle=shuffle)
    for epoch in range(2):
        batches.set_epoch(epoch)
        shapes = [tuple(batch["input_ids"].shape) for batch in batches]
        assert len(shapes) == len(batches) == batches.batches_in_epoch(epoch)
        assert sum(rows for rows, _ in shapes) == 900
        assert max(rows for rows, _ in shapes) <= 32
        assert sum(rows * length > 256 for rows, length in shapes) <= 1  # a merged last batch
        assert np.mean([rows * length for rows, length in shapes]) > 200


def test_a_document_over_the_budget_comes_alone_in_evaluation_and_in_a_pair_in_training():
    table = Dataset.from_dict({"input_ids": [[3] * 10, [3] * 4, [3] * 4, [3] * 4, [3] * 2, [3] * 2]})
    assert rows_of(ClassifierBatches(table, batch_size=8, max_tokens=8, shuffle=False)) == [[0], [1, 2], [3, 4], [5]]
    assert sorted(sizes(ClassifierBatches(table, batch_size=8, max_tokens=8))) == [2, 2, 2]


def test_a_last_row_joins_in_evaluation_where_the_budget_has_room():
    table = Dataset.from_dict({"input_ids": [[3] * 2] * 5})
    assert sizes(ClassifierBatches(table, batch_size=4, max_tokens=10, shuffle=False)) == [5]
    assert sizes(ClassifierBatches(table, batch_size=4, max_tokens=9, shuffle=False)) == [4, 1]


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("max_tokens", [None, 120])
def test_ranks_share_the_batches_of_one_process_and_none_is_empty(world_size, shuffle, max_tokens):
    settings = {"batch_size": 7, "shuffle": shuffle, "max_tokens": max_tokens}
    for rows in (world_size, 8, 9, 10, 61):
        table = make_table(rows)
        alone = rows_of(ClassifierBatches(table, **settings))
        ranks = [
            list(ClassifierBatches(table, rank=rank, world_size=world_size, **settings)) for rank in range(world_size)
        ]
        assert len({len(share) for share in ranks}) == 1
        counted = [[[] if hasattr(batch, "filler") else batch["row"].tolist() for batch in share] for share in ranks]
        assert sorted(row for share in counted for batch in share for row in batch) == list(range(rows))
        assert all(len(batch["row"]) for share in ranks for batch in share)
        if shuffle:  # an evaluation's batches may depend on the number of processes, its numbers do not
            assert [sorted(sum(shares, [])) for shares in zip(*counted, strict=True)] == [
                sorted(rows) for rows in alone
            ]
        else:
            assert not any(hasattr(batch, "filler") for share in ranks for batch in share)


def test_a_process_without_a_row_of_a_training_batch_gets_a_filler():
    table = make_table(8)
    shares = [list(ClassifierBatches(table, batch_size=3, rank=rank, world_size=3)) for rank in range(3)]
    fillers = [[hasattr(batch, "filler") for batch in share] for share in shares]
    assert [sum(flags) for flags in fillers] == [0, 0, 1]  # batches of 3, 3 and 2 rows
    place = fillers[2].index(True)
    assert shares[2][place]["row"].tolist() == shares[0][place]["row"].tolist()


@pytest.mark.parametrize("shuffle", [False, True])
def test_two_ranks_interleaved_equal_one_process(shuffle):
    table = make_table(48)
    alone = rows_of(ClassifierBatches(table, batch_size=8, shuffle=shuffle))
    ranks = [
        rows_of(ClassifierBatches(table, batch_size=8, shuffle=shuffle, rank=rank, world_size=2)) for rank in range(2)
    ]
    for batch, even, odd in zip(alone, *ranks, strict=True):
        assert batch[0::2] == even
        assert batch[1::2] == odd


def test_max_length_keeps_the_beginning_and_backward_reverses_what_is_kept():
    table = Dataset.from_dict({"input_ids": [[1, 2, 3, 4, 5], [6, 7]]})
    (forward,) = ClassifierBatches(table, batch_size=2, shuffle=False, max_length=3, pad_token_id=0)
    (backward,) = ClassifierBatches(table, batch_size=2, shuffle=False, max_length=3, pad_token_id=0, backward=True)
    assert forward["input_ids"].tolist() == [[1, 2, 3], [6, 7, 0]]
    assert backward["input_ids"].tolist() == [[3, 2, 1], [7, 6, 0]]
    assert backward["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_width_is_rounded_up_to_a_multiple():
    batches = ClassifierBatches(make_table(20), batch_size=4, pad_to_multiple_of=8)
    assert {batch["input_ids"].shape[1] % 8 for batch in batches} == {0}
    assert {batch["attention_mask"].shape == batch["input_ids"].shape for batch in batches} == {True}


def test_multi_label_targets_are_multi_hot_floats():
    features = Features({"input_ids": List(Value("int32")), "label": List(ClassLabel(names=NAMES))})
    table = Dataset.from_dict({"input_ids": [[4] * 5, [4] * 3, [4]], "label": [[0, 2], [], [1]]}, features=features)
    (batch,) = ClassifierBatches(table, batch_size=3, shuffle=False)
    assert batch["labels"].dtype == torch.float32
    assert batch["labels"].tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    (wider,) = ClassifierBatches(table, batch_size=3, shuffle=False, num_labels=4)
    assert wider["labels"].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("table", [[[4, 5], [6]], Dataset.from_dict({"input_ids": [[4, 5], [6]], "text": ["x", "y"]})])
def test_prediction_needs_no_labels(table):
    (batch,) = ClassifierBatches(table, batch_size=2, shuffle=False)
    assert set(batch) == {"input_ids", "attention_mask", "row"}


def test_labels_of_a_selected_table_follow_their_rows():
    table = make_table(12).select([7, 2, 11])
    for batch in ClassifierBatches(table, batch_size=3):
        assert batch["labels"].tolist() == [table[int(row)]["label"] for row in batch["row"]]


def test_a_document_without_tokens_is_named():
    with pytest.raises(ValueError, match=r"row 1 \(counted from 0\) has no tokens \(2 such rows\): drop empty texts"):
        ClassifierBatches([[1], [], [2], []], batch_size=2)


def test_an_empty_table_is_refused():
    with pytest.raises(ValueError, match="the table has no rows"):
        ClassifierBatches([], batch_size=2)


def test_a_missing_label_is_named():
    with pytest.raises(ValueError, match=r"row 1 \(counted from 0\) has no label; drop the column"):
        ClassifierBatches(Dataset.from_dict({"input_ids": [[1], [2]], "label": [0, None]}), batch_size=2)


@pytest.mark.parametrize(
    ("labels", "num_labels", "words"),
    [
        ([0, 5], 3, r"row 1 .* has label 5, labels must lie in 0..2; .* label names that the model knows"),
        ([0, -1], None, r"row 1 .* has label -1, labels must be 0 or more"),
        ([[0], [1, 4]], 3, r"row 1 .* has label 4, labels must lie in 0..2"),
    ],
)
def test_a_label_out_of_range_is_named(labels, num_labels, words):
    table = Dataset.from_dict({"input_ids": [[1], [2]], "label": labels})
    with pytest.raises(ValueError, match=words):
        ClassifierBatches(table, batch_size=2, num_labels=num_labels)


def test_multi_label_lists_without_names_need_their_number():
    table = Dataset.from_dict({"input_ids": [[1], [2]], "label": [[0], [1]]})
    with pytest.raises(ValueError, match="multi-label targets need num_labels"):
        ClassifierBatches(table, batch_size=2)


def test_labels_that_are_no_ids_are_refused():
    with pytest.raises(
        ValueError, match=r"labels must be class ids \(integers\) or lists of them, the column holds string"
    ):
        ClassifierBatches(Dataset.from_dict({"input_ids": [[1], [2]], "label": ["a", "b"]}), batch_size=2)


def test_fewer_rows_than_processes_are_refused():
    with pytest.raises(ValueError, match="2 rows cannot be shared by 3 processes: .* start 2 processes or fewer"):
        ClassifierBatches([[1], [2]], batch_size=4, world_size=3)


def test_a_batch_smaller_than_the_processes_is_refused():
    with pytest.raises(ValueError, match="3 processes cannot share batch_size=2: .* set batch_size to 3 or more"):
        ClassifierBatches([[1], [2], [3]], batch_size=2, world_size=3)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more, got 0"),
        ({"max_length": 0}, "max_length must be 1 or more, got 0"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of must be 1 or more, got 0"),
        ({"seed": -2}, "seed must be 0 or more, got -2"),
        ({"rank": 1}, "rank must lie in 0..world_size-1, got rank=1 with world_size=1"),
    ],
)
def test_sizes_out_of_range_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        ClassifierBatches([[1], [2]], **{"batch_size": 2, **wrong})


def test_a_negative_epoch_is_refused():
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        ClassifierBatches([[1], [2]], batch_size=2).set_epoch(-1)
