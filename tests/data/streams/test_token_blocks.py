import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.support.unique_tokens import as_lists, make_documents
from ulmfit_pipe.data.streams.masking import IGNORED, TokenMasking
from ulmfit_pipe.data.streams.token_blocks import BlockLayout, TokenBlockBatches, block_layout
from ulmfit_pipe.data.text.pretrained_tokenizers import SpecialTokens

MASKING = TokenMasking(2, 1000, (0, 1, 2, 3))
FRAME = BlockLayout(SpecialTokens(prefix=(0,), suffix=(1,), prefix_types=(0,), suffix_types=(0,)))


def rows_of(batches, name="input_ids"):
    return [row for batch in batches for row in batch[name].tolist()]


def unmasked(batches):
    """Rows as they were before masking: what is asked for stands in the targets."""
    return [
        torch.where(batch["targets"] == IGNORED, batch["input_ids"], batch["targets"])[row].tolist()
        for batch in batches
        for row in range(len(batch["input_ids"]))
    ]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("count", "block_size"), [(7, 5), (23, 8), (41, 64), (90, 3), (300, 17)])
def test_every_token_is_the_target_of_the_one_before_it(count, block_size, shuffle):
    documents = make_documents(count)
    batches = TokenBlockBatches(documents, block_size=block_size, batch_size=4, shuffle=shuffle, seed=5)
    pairs = {
        pair for inputs, targets in as_lists(batches) for pair in zip(sum(inputs, []), sum(targets, []), strict=True)
    }
    follows = dict(pairs)
    assert len(follows) == len(pairs), "a token has one follower in an epoch"
    everything = {token for document in documents for token in document}
    assert set(follows) | set(follows.values()) == everything
    assert len(follows) == len(everything) - 1 == batches.tokens_per_epoch
    for document in documents:
        assert [follows[token] for token in document[:-1]] == document[1:]


def test_without_shuffling_the_blocks_are_the_stream_in_order():
    documents = [[5, 6, 7], [], [8, 9], [10, 11, 12, 13, 14]]
    batches = TokenBlockBatches(documents, block_size=3, batch_size=2, shuffle=False)
    assert as_lists(batches) == [
        ([[5, 6, 7], [8, 9, 10]], [[6, 7, 8], [9, 10, 11]]),
        ([[11, 12, 13]], [[12, 13, 14]]),
    ]
    assert len(batches) == batches.batches_in_epoch(4) == 2


@pytest.mark.parametrize(("total", "block_size", "blocks", "length"), [(21, 10, 3, 7), (20, 10, 2, 10), (23, 10, 3, 8)])
def test_blocks_are_as_few_as_hold_all_and_equally_long(total, block_size, blocks, length):
    documents = [list(range(100, 100 + total))]
    batches = TokenBlockBatches(documents, block_size=block_size + 2, batch_size=64, masking=MASKING, layout=FRAME)
    rows = unmasked(batches)
    assert (len(rows), batches.num_blocks, batches.block_length) == (blocks, blocks, length + 2)
    assert {len(row) for row in rows} == {length + 2}
    tokens = [token for row in rows for token in row[1:-1]]
    assert set(tokens) == set(documents[0])
    assert len(tokens) - total < blocks, "neighbours share one token at most"


def test_a_masked_models_block_stands_between_special_tokens_that_are_never_asked_for():
    batches = TokenBlockBatches(make_documents(60), block_size=20, batch_size=3, masking=MASKING, layout=FRAME)
    for batch in batches:
        assert batch["input_ids"].dtype == batch["targets"].dtype == torch.int64
        assert (batch["input_ids"][:, 0] == 0).all()
        assert (batch["input_ids"][:, -1] == 1).all()
        assert (batch["targets"][:, [0, -1]] == IGNORED).all()
        asked = (batch["targets"] != IGNORED).sum(dim=1)
        assert (asked == round(0.15 * (batches.block_length - 2))).all()


def test_a_causal_models_frame_is_never_asked_for():
    batches = TokenBlockBatches(make_documents(20), block_size=9, batch_size=3, layout=FRAME)
    for batch in batches:
        assert (batch["input_ids"][:, 0] == 0).all()
        assert (batch["targets"][:, 0] == IGNORED).all()
        assert (batch["targets"][:, 1:-1] != IGNORED).all()


@pytest.mark.parametrize("masking", [None, MASKING])
def test_order_and_masks_are_a_function_of_seed_and_epoch(masking):
    def batches(seed, epoch):
        made = TokenBlockBatches(make_documents(60), block_size=12, batch_size=3, masking=masking, seed=seed)
        made.set_epoch(epoch)
        return as_lists(made)

    assert batches(1, 2) == batches(1, 2)
    assert batches(1, 2) != batches(1, 3)
    assert batches(1, 2) != batches(2, 2)


@pytest.mark.parametrize("masking", [None, MASKING])
def test_evaluation_gives_the_same_blocks_and_masks_in_every_epoch(masking):
    batches = TokenBlockBatches(make_documents(60), block_size=12, batch_size=3, masking=masking, shuffle=False)
    first = as_lists(batches)
    batches.set_epoch(7)
    assert as_lists(batches) == first


def test_the_same_block_is_masked_anew_in_the_next_epoch():
    batches = TokenBlockBatches([list(range(100, 200))], block_size=102, batch_size=1, masking=MASKING, layout=FRAME)
    (first,) = rows_of(batches, "targets")
    batches.set_epoch(1)
    (second,) = rows_of(batches, "targets")
    both = sum(a != IGNORED and b != IGNORED for a, b in zip(first, second, strict=True))
    assert both < 15 == sum(a != IGNORED for a in first) == sum(b != IGNORED for b in second)


def test_an_iteration_goes_on_with_the_epoch_it_began_with():
    batches = TokenBlockBatches(make_documents(60), block_size=12, batch_size=3, masking=MASKING)
    expected = as_lists(batches)
    running = iter(batches)
    first = next(running)
    batches.set_epoch(1)
    rest = [{name: value.tolist() for name, value in batch.items()} for batch in running]
    assert [first["input_ids"].tolist(), *(batch["input_ids"] for batch in rest)] == [inputs for inputs, _ in expected]


@pytest.mark.parametrize("masking", [None, MASKING])
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_processes_together_read_what_one_reads(masking, world_size):
    def share(rank, world_size):
        numbers = {"block_size": 12, "batch_size": 5, "masking": masking, "seed": 4}
        return TokenBlockBatches(make_documents(90), **numbers, rank=rank, world_size=world_size)

    alone = list(share(0, 1))
    shares = [list(share(rank, world_size)) for rank in range(world_size)]
    assert {len(part) for part in shares} == {len(alone)}
    for number, batch in enumerate(alone):
        for name in ("input_ids", "targets"):
            together = [row for part in shares for row in part[number][name].tolist()]
            assert sorted(together) == sorted(batch[name].tolist())
            assert all(len(part[number][name]) for part in shares)


@pytest.mark.parametrize(("blocks", "batch_size", "sizes"), [(10, 4, [4, 3, 3]), (8, 4, [4, 4]), (3, 8, [3])])
def test_batches_are_nearly_equally_large(blocks, batch_size, sizes):
    batches = TokenBlockBatches([list(range(100, 101 + 5 * blocks))], block_size=5, batch_size=batch_size)
    assert [len(batch["input_ids"]) for batch in batches] == sizes


def test_a_last_batch_too_small_for_the_processes_is_filled_up_for_those_that_get_none():
    documents = [list(range(100, 116))]  # three blocks of 5
    numbers = {"block_size": 5, "batch_size": 2}
    assert [len(batch["targets"]) for batch in TokenBlockBatches(documents, **numbers)] == [2, 1]
    for rank, fillers in [(0, [False, False]), (1, [False, True])]:
        share = list(TokenBlockBatches(documents, **numbers, rank=rank, world_size=2))
        assert [hasattr(batch, "filler") for batch in share] == fillers
        assert [len(batch["targets"]) for batch in share] == [1, 1]


def test_whole_words_are_masked_whole():
    starts = np.isin(np.arange(50), [11, 13, 15, 17, 18], invert=True)
    masking = TokenMasking(2, 50, (0, 1, 2), 0.4, word_starts=starts)
    documents = [[10, 11, 12, 13], [14, 15], [16, 17, 18]] * 5
    batches = TokenBlockBatches(documents, block_size=12, batch_size=2, masking=masking, layout=FRAME)
    for epoch in range(10):
        batches.set_epoch(epoch)
        for row, targets in zip(unmasked(batches), rows_of(batches, "targets"), strict=True):
            inside = [place for place in range(2, len(row) - 1) if not starts[row[place]]]
            assert [targets[place] == IGNORED for place in inside] == [targets[at - 1] == IGNORED for at in inside]


def test_the_first_tokens_of_documents_are_skipped_and_a_border_is_put_behind_them():
    layout = BlockLayout(skipped=1, border=(8, 9))
    batches = TokenBlockBatches(
        [[0, 5, 6], [], [0], [0, 7]], block_size=50, batch_size=1, shuffle=False, masking=MASKING, layout=layout
    )
    assert unmasked(batches) == [[5, 6, 8, 9, 8, 9, 8, 9, 7, 8, 9]]


def test_token_types_are_given_where_the_frame_has_any():
    frame = SpecialTokens(prefix=(0,), suffix=(1, 1), prefix_types=(2,), content_type=0, suffix_types=(0, 3))
    (batch,) = TokenBlockBatches(
        [[5, 6, 7], [8]], block_size=9, batch_size=1, masking=MASKING, layout=BlockLayout(frame)
    )
    assert batch["token_type_ids"].tolist() == [[2, 0, 0, 0, 0, 0, 3]]
    (plain,) = TokenBlockBatches([[5, 6, 7], [8]], block_size=9, batch_size=1, masking=MASKING, layout=FRAME)
    assert list(plain) == ["input_ids", "targets"]


def word_tokenizer(*, post: tuple[str, ...] = (), **special):
    words = ["[CLS]", "[SEP]", "[MASK]", "</s>", "a", "b", "c", "1", "2", "."]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if post:
        ids = [(token, words.index(token)) for token in post if token != "$A"]
        backend.post_processor = processors.TemplateProcessing(single=" ".join(post), special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def test_a_masked_models_documents_lose_their_prefix_and_keep_their_separator():
    tokenizer = word_tokenizer(post=("[CLS]", "$A", "[SEP]"), sep_token="[SEP]")
    layout = block_layout(tokenizer, masked=True)
    assert (layout.frame.prefix, layout.frame.suffix, layout.skipped, layout.border) == ((0,), (1,), 1, ())
    ids = tokenizer(["a b", "c"])["input_ids"]
    batches = TokenBlockBatches(ids, block_size=9, batch_size=1, masking=MASKING, layout=layout, shuffle=False)
    assert unmasked(batches) == [[0, 4, 5, 1, 6, 1, 1]]


@pytest.mark.parametrize(
    ("post", "special", "masked", "border"),
    [
        ((), {"sep_token": "[SEP]", "eos_token": "</s>"}, True, (1,)),
        ((), {"eos_token": "</s>"}, True, (3,)),
        ((), {}, True, ()),
        ((), {"sep_token": "[SEP]", "eos_token": "</s>"}, False, (3,)),
        (("[CLS]", "$A"), {"eos_token": "</s>"}, False, (3,)),
        (("$A", "</s>"), {"eos_token": "</s>"}, False, ()),
        ((), {}, False, ()),
    ],
)
def test_documents_are_parted_by_the_end_of_text_where_the_tokenizer_puts_nothing_behind_them(
    post, special, masked, border
):
    layout = block_layout(word_tokenizer(post=post, **special), masked=masked)
    assert layout.border == border
    assert masked or (layout.skipped, layout.frame.count) == (0, 0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"block_size": 0}, "block_size must be 1 or more, got 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"rank": 2, "world_size": 2}, r"rank must lie in 0..world_size-1, got rank=2 with world_size=2"),
        ({"batch_size": 2, "world_size": 3}, "3 processes cannot share batch_size=2: .* set batch_size to 3 or more"),
        (
            {"block_size": 3, "layout": FRAME},
            "block_size=3 leaves 1 tokens for text beside 2 special ones, and 2 at least",
        ),
    ],
)
def test_bad_sizes_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        TokenBlockBatches(make_documents(20), **{"block_size": 8, "batch_size": 4, **settings})


def test_too_little_text_is_refused():
    with pytest.raises(ValueError, match="too little text for a language model: 2 tokens in 3 documents; add text"):
        TokenBlockBatches([[5], [], [6]], block_size=8, batch_size=1)
    with pytest.raises(ValueError, match="2 processes cannot share 1 blocks of 8 tokens: each needs one; lower"):
        TokenBlockBatches([[5, 6, 7]], block_size=8, batch_size=2, world_size=2)


def test_a_negative_epoch_is_refused():
    batches = TokenBlockBatches(make_documents(20), block_size=8, batch_size=4)
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        batches.set_epoch(-1)
