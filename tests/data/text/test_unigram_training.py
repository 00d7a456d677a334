"""The unigram trainer: closed-form cases, and the same result whatever the order."""

from collections import Counter

import pytest

from ulmfit_pipe.data.text.unigram_training import train_unigram

COUNTS = Counter({"▁low": 50, "▁lower": 20, "▁newest": 60, "▁widest": 30, "▁wide": 7})
LETTERS = sorted(set("".join(COUNTS)))


def test_frequent_words_become_pieces():
    pieces = dict(train_unigram(COUNTS, num_pieces=len(LETTERS) + 3, alphabet=LETTERS))
    assert "▁newest" in pieces
    assert "▁low" in pieces
    assert set(LETTERS) <= set(pieces)


def test_how_often_a_word_occurs_decides_which_become_pieces():
    """Half of the words, 3 characters each, are frequent: all of these, and none of the others, are worth a piece."""
    words = [f"{a}{b}{c}" for a in "klmn" for b in "aeiou" for c in "rst"]
    counts = Counter({word: 500 if number % 2 else 2 for number, word in enumerate(words)})
    alphabet = sorted(set("".join(words)))
    pieces = {piece for piece, _ in train_unigram(counts, num_pieces=len(alphabet) + 30, alphabet=alphabet)}
    assert pieces - set(alphabet) == {word for word, count in counts.items() if count == 500}


def test_there_are_as_many_pieces_as_asked_for_if_the_text_holds_them():
    words = Counter({f"{a}{b}{c}": 5 for a in "klmn" for b in "aeiou" for c in "rst"})
    assert len(train_unigram(words, num_pieces=31, alphabet="klmnaeiourst")) == 31
    assert len(train_unigram(COUNTS, num_pieces=900, alphabet=LETTERS)) < 40


def test_order_of_the_words_does_not_matter():
    backwards = Counter(dict(reversed(COUNTS.items())))
    assert train_unigram(COUNTS, num_pieces=17, alphabet=LETTERS) == train_unigram(
        backwards, num_pieces=17, alphabet=LETTERS
    )


def test_words_with_other_characters_are_left_out():
    pieces = dict(train_unigram(Counter({"▁ab": 9, "▁xy": 9}), num_pieces=9, alphabet="▁ab"))
    assert not any("x" in piece for piece in pieces)


def test_every_character_of_the_alphabet_is_a_piece_once_whatever_the_words_hold():
    """NUL and ▅ are what sentencepiece leaves out, <unk> what it would call its own token."""
    counts = Counter({"▁ab": 9, "<unk>": 9, "▅": 9, "\0": 9, "a▅": 9, "\ufffd": 9})
    alphabet = {*"".join(counts), "z"}
    pieces = [piece for piece, _ in train_unigram(counts, num_pieces=40, alphabet=alphabet)]
    assert alphabet <= set(pieces)
    assert len(set(pieces)) == len(pieces)


def test_too_few_pieces_are_refused():
    with pytest.raises(ValueError, match="num_pieces=2 has no room for the 3 single characters"):
        train_unigram(COUNTS, num_pieces=2, alphabet="abc")


def test_no_word_is_refused():
    with pytest.raises(ValueError, match="no word to train a vocabulary on"):
        train_unigram({}, num_pieces=9, alphabet="abc")
