"""The rules against fastai's own output, and against the same rules applied one by one."""

import html
import json
import random
import re
from pathlib import Path

import pytest

from ulmfit_pipe.data.text.text_rules import SPECIAL_TOKENS, apply_rules, join_fields, undo_marks

REFERENCE = Path(__file__).parents[2] / "reference" / "text_rules.json"

GOLDEN = [  # fastai 2.8.12
    ("I LOVE this sooooo much!!!", "xxbos i xxup love this s xxrep 5 o much xxrep 3 !"),
    (
        "It's GREAT great great great GREAT stuff",
        "xxbos xxmaj it's xxup great xxwrep 3 great xxup great stuff",
    ),
    ("word word word word again", "xxbos xxwrep 4 word again"),
    ("<br />New line and/or #1 best", "xxbos xxmaj new line and / or # 1 best"),
    ("Hello World FOO Bar a I A", "xxbos xxmaj hello xxmaj world xxup foo xxmaj bar a i a"),
    ("McDonald's iPhone U.S.A. OK", "xxbos mcdonald's iphone xxup u.s.a. xxup ok"),
    ("... wait... what", "xxbos … wait … what"),
    ("HTML &amp; &lt;b&gt;", "xxbos xxup html && <b>"),
    ("ÀÉ ÉCOLE École", "xxbos àé école école"),
    ("", "xxbos "),
]


def one_rule_after_another(text):
    """The eight rules as fastai writes them, without any short cut."""
    for old, new in [
        ("#39;", "'"),
        ("amp;", "&"),
        ("#146;", "'"),
        ("nbsp;", " "),
        ("#36;", "$"),
        ("\\n", "\n"),
        ("quot;", "'"),
        ("<br />", "\n"),
        ('\\"', '"'),
        ("<unk>", "xxunk"),
        (" @.@ ", "."),
        (" @-@ ", "-"),
        ("...", " …"),
    ]:
        text = text.replace(old, new)
    text = html.unescape(text)
    text = re.sub(r"(\S)(\1{2,})", lambda m: f" xxrep {len(m[2]) + 1} {m[1]} ", text)
    text = re.sub(
        r"(?:\s|^)(\w+)\s+((?:\1\s+)+)\1(\s|\W|$)",
        lambda m: f" xxwrep {len(m[2].split()) + 2} {m[1]} {m[3]}",
        text,
    )
    text = re.sub(r"([/#\\])", r" \1 ", text)
    text = re.sub(" {2,}", " ", text)

    def marked(mark):
        return lambda m: f"{m[1]}{mark if len(m[2]) > 1 else ''}{m[2].lower()}"

    text = re.sub(r"(\s|^)([A-Z]+[^a-z\s]*)(?=(\s|$))", marked("xxup "), text)
    text = re.sub(r"(\s|^)([A-Z][^A-Z\s]*)(?=(\s|$))", marked("xxmaj "), text)
    return "xxbos " + text.lower().strip()


def test_special_tokens_have_fastai_ids():
    assert SPECIAL_TOKENS == ("xxunk", "xxpad", "xxbos", "xxeos", "xxfld", "xxrep", "xxwrep", "xxup", "xxmaj")


@pytest.mark.parametrize(("text", "expected"), GOLDEN)
def test_golden_texts_come_out_as_in_fastai(text, expected):
    assert apply_rules(text) == expected


def test_stored_output_of_fastai_is_reproduced():
    cases = json.loads(REFERENCE.read_text(encoding="utf-8"))
    assert len(cases) > 20
    for case in cases:
        assert apply_rules(case["text"]) == case["after_rules"], case["text"]


def test_short_cuts_change_nothing_on_random_texts():
    generator = random.Random(3)
    parts = [
        "A",
        "B",
        "a",
        "b",
        " ",
        " ",
        "  ",
        "\n",
        "\t",
        "\x1c",
        "\xa0",
        "é",
        "É",
        "İ",
        "Σ",
        "ß",
        "'",
        ".",
        "…",
        "!",
    ]
    parts += [
        "1",
        "2",
        "&amp;",
        "&#39;",
        "&#xD800;",
        "amp;",
        "quot;",
        "\\n",
        "\\",
        "#",
        "/",
        "<br />",
        "<unk>",
        " @.@ ",
    ]
    parts += ["xxmaj", "XXMAJ", "word ", "Word ", "\x00", "😀", "\u0301", "_", "...", "Ab", "aB"]
    for _ in range(20_000):
        text = "".join(generator.choices(parts, k=generator.randrange(14)))
        assert apply_rules(text) == one_rule_after_another(text), repr(text)


@pytest.mark.parametrize("unit", ["ab", "AB", "word ", "Ab cD ", " ", "&"])
def test_time_grows_with_the_length_only(unit, cost_ratio):
    short, long = (unit * (count // len(unit)) + "c" for count in (60_000, 480_000))
    assert cost_ratio(lambda: apply_rules(short), lambda: apply_rules(long)) < 32  # 8 times the text; squared: 64


def test_character_reference_of_thousands_of_digits_does_not_crash():
    assert apply_rules("a &#" + "9" * 5000 + "; b") == "xxbos a \ufffd b"
    assert apply_rules("a &#" + "0" * 5000 + "65; b") == "xxbos a a b"


def test_lone_surrogates_pass_through_the_rules():
    assert apply_rules("a \ud800 b") == "xxbos a \ud800 b"


def test_fields_are_joined_behind_their_numbers():
    assert join_fields(["A title", "A body"]) == "xxfld 1 A title xxfld 2 A body"
    assert apply_rules(join_fields(["A title", "b"])) == "xxbos xxfld 1 a title xxfld 2 b"


def test_one_field_alone_gets_no_mark():
    assert join_fields(["only"]) == "only"


def test_no_field_is_refused():
    with pytest.raises(ValueError, match="at least one field, got an empty list"):
        join_fields([])


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        ("xxbos xxmaj hello xxup ok", "Hello OK"),
        ("s xxrep 5 o much", "s ooooo much"),
        ("xxwrep 3 great day", "great great great day"),
        ("xxfld 1 a xxfld 2 b", "a b"),
        ("xxunk xxpad xxeos", "xxunk"),
        ("xxmaj", ""),
        ("xxmaj xxup a", "A"),
        ("xxrep 3", "3"),
        ("xxrep 99999999 a", "99999999 a"),
    ],
)
def test_marks_are_undone_for_people(marked, expected):
    assert undo_marks(marked) == expected
