import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.support.unique_tokens import as_lists, make_documents
from ulmfit_pipe.data.streams.lm_batches import LanguageModelBatches


def naive_batches(stream, *, batch_size, bptt):
    """fastai's LMDataLoader with lists: item k is row k % bs, step k // bs."""
    corpus = (len(stream) - 1) // batch_size * batch_size
    row = corpus // batch_size
    batches = []
    for start in range(0, row, bptt):
        stop = min(start + bptt, row)
        batches.append(
            (
                [stream[r * row + start : r * row + stop] for r in range(batch_size)],
                [stream[r * row + start + 1 : r * row + stop + 1] for r in range(batch_size)],
            )
        )
    return batches


@pytest.mark.parametrize(("count", "batch_size", "bptt"), [(7, 1, 3), (23, 3, 5), (41, 4, 7), (60, 6, 40), (90, 7, 1)])
@pytest.mark.parametrize("backward", [False, True])
def test_batches_equal_a_naive_list_implementation(count, batch_size, bptt, backward):
    documents = make_documents(count)
    stream = [token for document in documents for token in document]
    stream = stream[::-1] if backward else stream
    batches = LanguageModelBatches(
        Dataset.from_dict({"input_ids": documents}),
        batch_size=batch_size,
        bptt=bptt,
        shuffle=False,
        backward=backward,
    )
    expected = naive_batches(stream, batch_size=batch_size, bptt=bptt)
    assert as_lists(batches) == expected
    assert len(batches) == len(expected)
    assert batches.tokens_per_epoch == (len(stream) - 1) // batch_size * batch_size


@pytest.mark.parametrize("backward", [False, True])
def test_a_shuffled_epoch_is_the_stream_of_the_documents_in_that_order(backward):
    documents = make_documents(31)
    batches = LanguageModelBatches(documents, batch_size=3, bptt=4, seed=5, backward=backward)
    batches.set_epoch(2)
    order = np.random.default_rng([5, 2, 0]).permutation(31)
    stream = [token for index in order for token in documents[index]]
    assert as_lists(batches) == naive_batches(stream[::-1] if backward else stream, batch_size=3, bptt=4)


def test_a_tiny_stream_by_hand():
    batches = as_lists(
        LanguageModelBatches([[0, 1, 2, 3], [4, 5, 6, 7, 8, 9, 10]], batch_size=2, bptt=3, shuffle=False)
    )
    assert batches == [
        ([[0, 1, 2], [5, 6, 7]], [[1, 2, 3], [6, 7, 8]]),
        ([[3, 4], [8, 9]], [[4, 5], [9, 10]]),
    ]


def test_the_last_window_may_hold_one_token():
    shapes = [tuple(b["input_ids"].shape) for b in LanguageModelBatches([list(range(15))], batch_size=2, bptt=3)]
    assert shapes == [(2, 3), (2, 3), (2, 1)]


def test_tensors_are_int64_on_the_cpu():
    batch = next(iter(LanguageModelBatches([[1, 2, 3, 4]], batch_size=1, bptt=2)))
    assert set(batch) == {"input_ids", "targets"}
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert {str(tensor.device) for tensor in batch.values()} == {"cpu"}


@pytest.mark.parametrize("variable_bptt", [False, True])
def test_each_row_continues_in_the_next_batch(variable_bptt):
    batches = list(LanguageModelBatches(make_documents(200), batch_size=4, bptt=6, variable_bptt=variable_bptt))
    assert len(batches) > 10
    for before, after in zip(batches, batches[1:], strict=False):
        assert before["targets"][:, -1].tolist() == after["input_ids"][:, 0].tolist()
        assert before["input_ids"][:, 1:].tolist() == before["targets"][:, :-1].tolist()


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("variable_bptt", [False, True])
def test_ranks_concatenated_equal_one_process(world_size, variable_bptt):
    settings = {"batch_size": 5, "bptt": 7, "seed": 11, "variable_bptt": variable_bptt}
    alone = LanguageModelBatches(make_documents(150), **settings)
    ranks = [
        LanguageModelBatches(make_documents(150), rank=rank, world_size=world_size, **settings)
        for rank in range(world_size)
    ]
    for loader in [alone, *ranks]:
        loader.set_epoch(3)
    assert {len(loader) for loader in ranks} == {len(alone)}
    for whole, *shares in zip(alone, *ranks, strict=True):
        assert all(len(share["input_ids"]) >= 1 for share in shares)
        for name in ("input_ids", "targets"):
            assert torch.equal(torch.cat([share[name] for share in shares]), whole[name])


def test_the_order_is_a_function_of_seed_and_epoch_only():
    documents = make_documents(50)
    first = LanguageModelBatches(documents, batch_size=2, bptt=5, seed=1)
    again = LanguageModelBatches(documents, batch_size=2, bptt=5, seed=1)
    again.set_epoch(4)
    list(again)
    again.set_epoch(0)
    epoch_0 = as_lists(first)
    assert epoch_0 == as_lists(first) == as_lists(again)
    first.set_epoch(1)
    assert as_lists(first) != epoch_0
    assert as_lists(LanguageModelBatches(documents, batch_size=2, bptt=5, seed=2)) != epoch_0


def test_changing_the_epoch_leaves_a_running_iteration_alone():
    batches = LanguageModelBatches(make_documents(50), batch_size=2, bptt=5)
    expected = as_lists(batches)
    running = iter(batches)
    first = next(running)
    batches.set_epoch(1)
    assert as_lists([first, *running]) == expected


def test_variable_windows_follow_the_awd_lstm_scheme_and_len_stays_true():
    batches = LanguageModelBatches([list(range(400_001))], batch_size=2, bptt=70, variable_bptt=True)
    counts = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        lengths = [batch["input_ids"].shape[1] for batch in batches]
        assert len(lengths) == len(batches) == batches.batches_in_epoch(epoch)
        assert sum(lengths) == 200_000
        assert min(lengths[:-1]) >= 5
        full = [length for length in lengths if length > 52]
        assert len(full) / len(lengths) == pytest.approx(0.95, abs=0.02)
        assert np.mean(full) == pytest.approx(69.5, abs=0.5)  # truncated to whole tokens
        assert np.std(full) == pytest.approx(5.0, abs=0.4)
        counts.append(len(lengths))
    assert len(set(counts)) > 1


def test_short_variable_windows_hold_five_tokens_at_least():
    lengths = [
        b["input_ids"].shape[1]
        for b in LanguageModelBatches([list(range(999))], batch_size=1, bptt=4, variable_bptt=True)
    ]
    assert min(lengths[:-1]) == 5
    assert sum(lengths) == 998


def test_nothing_but_the_tail_of_the_stream_is_left_out():
    documents = make_documents(80)
    total = sum(map(len, documents))
    seen = [
        t
        for batch in LanguageModelBatches(documents, batch_size=7, bptt=5)
        for t in batch["input_ids"].flatten().tolist()
    ]
    assert len(seen) == len(set(seen)) == (total - 1) // 7 * 7


def test_too_little_text_is_refused_with_its_numbers():
    with pytest.raises(
        ValueError, match="5 tokens in 2 documents, and batch_size=8 needs at least 9; lower batch_size"
    ):
        LanguageModelBatches([[1, 2], [3, 4, 5]], batch_size=8, bptt=3)
    with pytest.raises(ValueError, match="0 tokens in 0 documents"):
        LanguageModelBatches([], batch_size=1, bptt=3)


def test_a_process_without_a_row_gets_a_filler_that_says_so():
    settings = {"batch_size": 2, "bptt": 4, "shuffle": False}
    shares = [LanguageModelBatches([list(range(20))], rank=rank, world_size=3, **settings) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 3, 3]
    for none, first, second in zip(*shares, strict=True):
        assert none.filler and none["input_ids"].tolist() == first["input_ids"].tolist()
        assert not hasattr(first, "filler") and not hasattr(second, "filler")
        assert first["input_ids"].tolist() != second["input_ids"].tolist()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"bptt": 0}, "bptt must be 1 or more, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"rank": 2, "world_size": 2}, "rank must lie in 0..world_size-1, got rank=2 with world_size=2"),
    ],
)
def test_sizes_out_of_range_are_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        LanguageModelBatches([[1] * 50], **{"batch_size": 3, "bptt": 2, **wrong})


def test_a_negative_epoch_is_refused():
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        LanguageModelBatches([[1, 2, 3]], batch_size=1, bptt=2).set_epoch(-1)


def test_a_million_tokens_are_read_and_walked_once():
    random = np.random.default_rng(0)
    documents = [random.integers(0, 15_000, 100) for _ in range(10_000)]
    batches = LanguageModelBatches(documents, batch_size=64, bptt=72)
    assert sum(batch["targets"].numel() for batch in batches) == 15_624 * 64
