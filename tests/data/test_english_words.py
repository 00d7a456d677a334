"""Word tokens against fastai's (spaCy's), stored by tests/reference/measure_tokenizer_agreement.py."""

import itertools
import json
from pathlib import Path

import pytest

from ulmfit_pipe.data.english_words import cut_words, exceptions
from ulmfit_pipe.data.text_rules import SPECIAL_TOKENS
from ulmfit_pipe.data.tokenization import build_word_tokenizer
from ulmfit_pipe.data.ulmfit_tokenizer import prepare_text

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "word_tokens.json").read_text(encoding="utf-8"))
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
