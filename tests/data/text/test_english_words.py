"""Word tokens against fastai's (spaCy's), stored by tests/reference/measure_tokenizer_agreement.py."""

import itertools
import json
import random
from pathlib import Path

import pytest

from ulmfit_pipe.data.text import english_words
from ulmfit_pipe.data.text.english_words import cut_words, exceptions
from ulmfit_pipe.data.text.remembered_words import RememberedWords
from ulmfit_pipe.data.text.text_rules import SPECIAL_TOKENS
from ulmfit_pipe.data.text.tokenization import build_word_tokenizer
from ulmfit_pipe.data.text.ulmfit_tokenizer import prepare_text

REFERENCE = json.loads((Path(__file__).parents[2] / "reference" / "word_tokens.json").read_text(encoding="utf-8"))
STORED = REFERENCE["sentences"]


@pytest.mark.parametrize("row", STORED, ids=lambda row: row["text"][:20])
def test_a_sentence_is_cut_into_fastais_tokens(row):
    assert cut_words(prepare_text(row["text"])) == row["tokens"]


def test_the_tokenizer_gives_the_ids_of_fastais_tokens():
    tokens = sorted({token for row in STORED for token in row["tokens"]} - set(SPECIAL_TOKENS))
    tokenizer = build_word_tokenizer([*SPECIAL_TOKENS, *tokens])
    ids = tokenizer.get_vocab()
    texts = [row["text"] for row in STORED]
    expected = [[ids[token] for token in row["tokens"]] for row in STORED]
    assert tokenizer.encode_documents(texts) == expected
    assert tokenizer(texts)["input_ids"] == expected


def test_all_stored_tokens_agree_and_at_least_99_5_percent_of_those_of_1000_reviews():
    """The reviews are no part of the tests: their figure is stored with the sentences."""
    measured = REFERENCE["measured"]
    assert (measured["texts"], measured["fastai_tokens"]) == (1000, 314_159)
    assert measured["agreed"] / measured["fastai_tokens"] >= 0.995
    ours = [cut_words(prepare_text(row["text"])) for row in STORED]
    assert sum(len(row["tokens"]) for row in STORED) == sum(map(len, ours)) == 725


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        ("it's", ["it", "'s"]),
        ("(cannot)!", ["(", "can", "not", ")", "!"]),
        ("couldn't've", ["could", "n't", "'ve"]),
        ("a.m. u.s. end. vs. mr.", ["a.m.", "u.s", ".", "end", ".", "vs.", "mr", "."]),
        ("one \n\n two\n three", ["one", "\n\n▁", "two", "\n▁", "three"]),
        ("so…… ok:)", ["so", "……", "ok", ":)"]),
        ("'s's ''s", ["'s", "'s", "'", "'s"]),
    ],
)
def test_a_few_cuts_by_hand(text, tokens):
    assert cut_words(text) == tokens


def test_a_table_of_exceptions_knows_both_apostrophes():
    table = exceptions()
    assert table["can't"] == ("ca", "n't") and table["can’t"] == ("ca", "n’t")
    assert table["y'all"] == ("y'", "all") and table["10am"] == ("10", "am")
    assert all("".join(pieces) == word for word, pieces in table.items())


def test_no_character_but_white_space_is_lost():
    for row in STORED:
        prepared = prepare_text(row["text"])
        assert "".join("".join(cut_words(prepared)).split()).replace("▁", "") == "".join(prepared.split())


@pytest.mark.parametrize("unit", [":", ".", "a.", "a:@", "'", "n't", "1-", ":)", "(", "a@"])
def test_the_cost_of_a_hostile_word_grows_with_its_square_at_most(unit, cost_ratio):
    short, long = (unit * (count // len(unit)) for count in (120, 960))
    numbers = itertools.count()  # each word is a new one, else it would be looked up

    def cut(word):
        cut_words(f"{word}{next(numbers)}")

    assert cost_ratio(lambda: cut(short), lambda: cut(long)) < 256  # 8 times the word; cubed: 512


def one_affix_after_another(chunk, known):
    """Take affixes off a copy of the rest each time: the plain way, whose time is the square of the length."""
    front = []
    back = []
    while chunk and chunk not in known:
        prefix = english_words._PREFIX.match(chunk)
        start = prefix.end() if prefix else 0
        if prefix and chunk[start:] in known:
            front.append(prefix[0])
            chunk = chunk[start:]
            break
        suffix = english_words._SUFFIX.search(chunk[start:])
        end = start + suffix.start() if suffix else len(chunk)
        if suffix and chunk[:end] in known:
            back.append(suffix[0])
            chunk = chunk[:end]
            break
        if not (prefix or suffix):
            break
        if prefix:
            front.append(prefix[0])
        if suffix:
            back.append(suffix[0])
        chunk = chunk[start:end]
    return [*front, *english_words._cut_core(chunk, known), *reversed(back)]


def test_affixes_come_off_as_in_the_plain_way():
    generator = random.Random(0)
    units = (
        "... .. …… 's ’s n't km km/h mbar кг м/с $ € °c. u.s. a.m. :) :-) (*_*) don't http://a.b/ 日 ca. 10am ²".split(
            " "
        )
    )
    parts = [*"abz019.:;!?()[]'\"’…—–-_/*+%$°,«»·{}<>#&@=^~|oOdps", *units]
    for _ in range(10_000):
        chunk = "".join(generator.choices(parts, k=generator.choice([1, 2, 3, 5, 8, 13])))
        expected = one_affix_after_another(chunk, exceptions())
        assert english_words._apply_rules(chunk, exceptions()) == expected, chunk


def test_work_on_a_run_of_marks_grows_with_its_length_only(monkeypatch):
    class Counted:
        def __init__(self, pattern):
            self.pattern = pattern

        def search(self, text):
            searched.append(len(text))
            return self.pattern.search(text)

    searched = []
    monkeypatch.setattr(english_words, "_SUFFIX", Counted(english_words._SUFFIX))
    work = {}
    for length in (400, 800):
        searched.clear()
        assert len(english_words._apply_rules("'\"" * (length // 2), exceptions())) == length
        work[length] = sum(searched)
    assert 0 < work[800] < 2.1 * work[400]


def test_remembered_pieces_are_bounded_by_their_bytes(monkeypatch):
    few = RememberedWords(20_000)
    monkeypatch.setattr(english_words, "_remembered", few)
    cut_words(" ".join(f"w{number}" for number in range(50)))
    assert len(few.known) == 50
    for number in range(5):
        cut_words("…«" * 499 + str(number))  # a thousand tokens, some 80 bytes each
        assert len(few.known) <= 51
    assert len(few.known) == 1
