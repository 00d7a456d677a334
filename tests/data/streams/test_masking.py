import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from ulmfit_pipe.data.streams.masking import IGNORED, TokenMasking, masking_of, word_starts_of
from ulmfit_pipe.data.text.tokenization import tokens_in_order

MASK, SPECIAL = 4, (0, 1, 2, 3, 4)
TEXT = np.arange(5, 105)  # 100 tokens that are all different


def masking(**settings):
    return TokenMasking(MASK, 200, SPECIAL, **settings)


def random(seed=0):
    return np.random.default_rng(seed)


def test_the_targets_are_the_tokens_that_were_drawn_and_nothing_else():
    inputs, targets = masking().mask(TEXT, random())
    drawn = targets != IGNORED
    assert drawn.sum() == 15
    assert (targets[drawn] == TEXT[drawn]).all()
    assert (inputs[~drawn] == TEXT[~drawn]).all()


@pytest.mark.parametrize(
    ("length", "probability", "number"), [(100, 0.15, 15), (10, 0.15, 2), (3, 0.15, 1), (1, 0.15, 1), (100, 0.4, 40)]
)
def test_a_fixed_share_is_drawn_and_one_token_at_least(length, probability, number):
    for seed in range(5):
        _, targets = masking(probability=probability).mask(TEXT[:length], random(seed))
        assert (targets != IGNORED).sum() == number


def test_of_the_drawn_tokens_eight_in_ten_are_masked_one_is_changed_and_one_stays():
    fates = {"masked": 0, "changed": 0, "kept": 0}
    for seed in range(1000):
        inputs, targets = masking().mask(TEXT, random(seed))
        drawn = targets != IGNORED
        fates["masked"] += int((inputs[drawn] == MASK).sum())
        fates["kept"] += int((inputs[drawn] == TEXT[drawn]).sum())
        fates["changed"] += int(((inputs != MASK) & (inputs != TEXT))[drawn].sum())
    shares = {name: count / 15_000 for name, count in fates.items()}
    assert shares == pytest.approx({"masked": 0.8, "changed": 0.1, "kept": 0.1}, abs=0.01)


def test_every_place_is_drawn_alike_and_every_ordinary_token_can_take_a_place():
    places, replacements = np.zeros(100), set()
    for seed in range(2000):
        inputs, targets = masking(mask_share=0.0, random_share=1.0).mask(TEXT, random(seed))
        places += targets != IGNORED
        replacements |= set(inputs[targets != IGNORED].tolist())
    assert places / 2000 == pytest.approx(np.full(100, 0.15), abs=0.04)
    assert replacements == set(range(5, 200))


def test_special_tokens_are_never_drawn_and_never_put_in():
    tokens = np.array([0, 7, 2, 8, 1, 9, 3, 4])
    for seed in range(200):
        inputs, targets = masking(probability=0.9, mask_share=0.5, random_share=0.5).mask(tokens, random(seed))
        assert (targets != IGNORED).tolist() == [False, True, False, True, False, True, False, False]
        assert not set(inputs[[1, 3, 5]].tolist()) & {0, 1, 2, 3}


def test_a_block_of_special_tokens_asks_for_nothing():
    inputs, targets = masking().mask(np.array([2, 1, 2]), random())
    assert inputs.tolist() == [2, 1, 2]
    assert targets.tolist() == [IGNORED] * 3


def test_the_block_itself_is_not_changed_and_the_same_stream_gives_the_same_masks():
    tokens = TEXT.copy()
    first, again, other = (masking().mask(tokens, random(seed)) for seed in (3, 3, 4))
    assert np.array_equal(tokens, TEXT)
    assert np.array_equal(first, again)
    assert not np.array_equal(first[1], other[1])


def test_without_chance_every_drawn_token_is_behind_the_mask():
    plain = masking(probability=0.3).without_chance()
    inputs, targets = plain.mask(TEXT, random())
    assert (targets != IGNORED).sum() == 30
    assert (inputs[targets != IGNORED] == MASK).all()


def words(*inside):
    """A vocabulary in which these ids go on with a word."""
    return np.isin(np.arange(200), inside, invert=True)


def test_whole_words_are_drawn_whole():
    inside = random(1).permutation(TEXT)[:60]
    starts = words(*inside)[TEXT]
    for seed in range(100):
        _, targets = masking(probability=0.3, word_starts=words(*inside)).mask(TEXT, random(seed))
        drawn = targets != IGNORED
        goes_on = drawn[1:][~starts[1:]]  # a token that goes on with the word before it is drawn with it
        assert np.array_equal(goes_on, drawn[:-1][~starts[1:]])
        assert 25 <= drawn.sum() <= 30


def test_a_special_token_inside_a_word_is_not_drawn_with_it():
    tokens = np.array([10, 11, 2, 12, 13])
    for seed in range(20):
        _, targets = masking(probability=0.5, word_starts=words(11, 2, 13)).mask(tokens, random(seed))
        assert (targets != IGNORED).tolist() in [[True, True, False, False, False], [False, False, False, True, True]]


def test_where_every_word_is_too_long_the_shortest_is_drawn():
    starts = words(6, 7, 8, 10, 11, 13, 14)  # words of 4, 3 and 3 tokens
    _, targets = masking(probability=0.1, word_starts=starts).mask(TEXT[:10], random())
    assert np.flatnonzero(targets != IGNORED).tolist() == [4, 5, 6]


def test_without_chance_whole_words_stay_whole_words():
    starts = words(6, 7)
    assert masking(word_starts=starts).without_chance().word_starts is starts


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1])
def test_a_probability_out_of_range_is_refused(probability):
    words = rf"mask_probability must lie in \(0, 1\), got {probability}; 0.15 is BERT's value"
    with pytest.raises(ValueError, match=words):
        masking(probability=probability)


@pytest.mark.parametrize(("mask_share", "random_share"), [(0.8, 0.3), (-0.1, 0.5), (0.5, -0.1)])
def test_shares_that_do_not_add_up_are_refused(mask_share, random_share):
    words = f"0 or more and at most 1 together, got {mask_share} and {random_share}; 0.8 and 0.1 are BERT's values"
    with pytest.raises(ValueError, match=words):
        masking(mask_share=mask_share, random_share=random_share)


def test_a_vocabulary_of_special_tokens_is_refused():
    with pytest.raises(ValueError, match="all 5 ids of the vocabulary are special, so nothing can be masked"):
        TokenMasking(4, 5, SPECIAL)


def tokenizer_of(model, **special):
    names = {"mask_token": "[MASK]", "sep_token": "[SEP]", **special}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **names)


def numbered(*tokens):
    return {token: number for number, token in enumerate(tokens)}


def test_a_tokenizers_masking_knows_its_mask_its_size_and_its_special_tokens():
    tokenizer = tokenizer_of(models.WordLevel(numbered("[SEP]", "a", "b", "[MASK]", "c")))
    found = masking_of(tokenizer, probability=0.2)
    assert (found.mask_token_id, found.vocab_size, found.probability) == (3, 5, 0.2)
    assert sorted(found.special_ids) == [0, 3]
    assert found.word_starts is None
    assert masking_of(tokenizer, whole_words=True).word_starts.all()


def test_a_tokenizer_without_a_mask_token_is_refused():
    tokenizer = tokenizer_of(models.WordLevel(numbered("[SEP]", "a")), mask_token=None)
    with pytest.raises(ValueError, match="has no mask token, which a masked language model needs; set its mask_token"):
        masking_of(tokenizer)


def test_a_vocabulary_with_a_gap_is_as_large_as_its_largest_id():
    tokenizer = tokenizer_of(models.WordPiece({"[SEP]": 0, "[MASK]": 1, "film": 5, "##s": 7}, unk_token="[SEP]"))
    found = masking_of(tokenizer, whole_words=True)
    assert found.vocab_size == 8
    assert found.word_starts.tolist() == [True] * 7 + [False]


def starts_by_token(tokenizer):
    return dict(zip(tokens_in_order(tokenizer), word_starts_of(tokenizer).tolist(), strict=True))


def test_wordpiece_marks_what_goes_on_with_a_word():
    pieces = models.WordPiece(numbered("[SEP]", "[MASK]", "film", "##s", "##.", "."), unk_token="[SEP]")
    expected = {"[SEP]": True, "[MASK]": True, "film": True, "##s": False, "##.": False, ".": True}
    assert starts_by_token(tokenizer_of(pieces)) == expected


@pytest.mark.parametrize("mark", ["▁", "Ġ"])
def test_other_subwords_are_told_by_the_space_before_them_and_punctuation_is_a_word(mark):
    pieces = models.BPE(numbered("[SEP]", "[MASK]", f"{mark}film", "s", ".", "'t", f"{mark}.", mark, "9"), [])
    expected = [True, True, True, False, True, True, True, True, False]
    assert list(starts_by_token(tokenizer_of(pieces)).values()) == expected


def test_a_vocabulary_that_does_not_mark_where_words_begin_is_refused():
    unmarked = models.BPE(numbered("[SEP]", "[MASK]", "a", "b"), [])
    ends = models.BPE(numbered("[SEP]", "[MASK]", "a</w>", "Ġb"), [], end_of_word_suffix="</w>")
    for model in (unmarked, ends):
        with pytest.raises(ValueError, match="does not mark where words begin, so they cannot be masked whole; leave"):
            masking_of(tokenizer_of(model), whole_words=True)
