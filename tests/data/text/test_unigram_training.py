"""The unigram trainer: closed-form cases, and the same result whatever the order."""

import math
from collections import Counter

import numpy as np
import pytest

from ulmfit_pipe.data.text import unigram_training
from ulmfit_pipe.data.text.unigram_training import train_unigram

COUNTS = Counter({"▁low": 50, "▁lower": 20, "▁newest": 60, "▁widest": 30, "▁wide": 7})
LETTERS = sorted(set("".join(COUNTS)))


def test_frequent_words_become_pieces():
    pieces = dict(train_unigram(COUNTS, num_pieces=len(LETTERS) + 3, alphabet=LETTERS))
    assert "▁newest" in pieces
    assert "▁low" in pieces
    assert set(LETTERS) <= set(pieces)


def test_there_are_as_many_pieces_as_asked_for_if_the_text_holds_them():
    words = Counter({f"{a}{b}{c}": 5 for a in "klmn" for b in "aeiou" for c in "rst"})
    assert len(train_unigram(words, num_pieces=31, alphabet="klmnaeiourst")) == 31
    assert len(train_unigram(COUNTS, num_pieces=900, alphabet=LETTERS)) < 40


def test_probabilities_sum_to_one_and_fall():
    scores = [score for _, score in train_unigram(COUNTS, num_pieces=19, alphabet=LETTERS)]
    assert scores == sorted(scores, reverse=True)
    assert sum(map(math.exp, scores)) == pytest.approx(1, abs=1e-6)


def test_order_of_the_words_does_not_matter():
    backwards = Counter(dict(reversed(COUNTS.items())))
    assert train_unigram(COUNTS, num_pieces=17, alphabet=LETTERS) == train_unigram(
        backwards, num_pieces=17, alphabet=LETTERS
    )


def test_expected_uses_of_one_word_are_those_of_all_its_cuts():
    """Word "ab", pieces a, ab, b with probabilities .2, .3, .5: cuts "ab" (.3) and "a b" (.1)."""
    segments = unigram_training._find_segments(["ab"], ["a", "ab", "b"])
    fitted = unigram_training._expectation_maximization(
        segments, np.array([100.0]), np.array([0.2, 0.3, 0.5]), np.array([True, False, True])
    )
    expected = np.array([25.0, 75.0, 25.0]) - 0.5
    np.testing.assert_allclose(fitted, expected / expected.sum(), rtol=1e-12)


def test_loss_of_a_piece_is_the_price_of_its_best_replacement():
    segments = unigram_training._find_segments(["a", "ab", "b"], ["a", "ab", "b"])
    segments = segments.keep(segments.piece != segments.string)
    losses = unigram_training._losses_without(segments, np.array([0.2, 0.3, 0.5]))
    assert losses[1] == pytest.approx(0.3 * math.log(0.3 / (0.2 * 0.5)))
    assert losses[0] == math.inf


def test_words_with_other_characters_are_left_out():
    pieces = dict(train_unigram(Counter({"▁ab": 9, "▁xy": 9}), num_pieces=9, alphabet="▁ab"))
    assert not any("x" in piece for piece in pieces)


def test_too_few_pieces_are_refused():
    with pytest.raises(ValueError, match="num_pieces=2 has no room for the 3 single characters"):
        train_unigram(COUNTS, num_pieces=2, alphabet="abc")


def test_no_word_is_refused():
    with pytest.raises(ValueError, match="no word to train a vocabulary on"):
        train_unigram({}, num_pieces=9, alphabet="abc")
