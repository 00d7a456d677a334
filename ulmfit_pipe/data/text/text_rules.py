"""The clean-up rules that every text passes through, and the special tokens that they write.

fastai's eight rules in fastai's order (fix_html, replace_rep, replace_wrep, spec_add_spaces,
rm_useless_spaces, replace_all_caps, replace_maj, lowercase), with the same result on every text. The costly ones
are preceded by a cheap test whether they have anything to do, and the two on capitals share one pass.

A word such as ``xxmaj`` that is in a user's text stays, and later becomes the special token, as in fastai.

Source: fastai 2.8.12, ``fastai/text/core.py`` (Apache-2.0).
"""

import html
import re
from collections.abc import Sequence
from operator import eq

import numpy as np

UNK, PAD, BOS, EOS, FLD, REP, WREP, UP, MAJ = (
    "xxunk",
    "xxpad",
    "xxbos",
    "xxeos",
    "xxfld",
    "xxrep",
    "xxwrep",
    "xxup",
    "xxmaj",
)
SPECIAL_TOKENS = (UNK, PAD, BOS, EOS, FLD, REP, WREP, UP, MAJ)  # in id order: position = id
"""The nine special tokens; the position of each is its id in every vocabulary."""

# In this order: later pairs see what earlier ones wrote ("&amp;" becomes "&&", as in fastai).
_REPLACEMENTS = (
    ("#39;", "'"),
    ("amp;", "&"),
    ("#146;", "'"),
    ("nbsp;", " "),
    ("#36;", "$"),
    ("\\n", "\n"),
    ("quot;", "'"),
    ("<br />", "\n"),
    ('\\"', '"'),
    ("<unk>", UNK),
    (" @.@ ", "."),
    (" @-@ ", "-"),
    ("...", " …"),
)
_LONG_REFERENCE = re.compile(r"&#([0-9]{100,});?")
_CHARACTER_RUN = re.compile(r"(\S)(\1{2,})")
_WORD_RUN = re.compile(r"(?:\s|^)(\w++)\s++((?:\1\s++)+)\1(\s|\W|$)")
# A whole word that starts with A-Z: group 1 holds it if it has no a-z, else it has no second A-Z.
# Possessive repeats keep the pass linear on a word of any length.
_CAPITALIZED = re.compile(r"[A-Z](?<!\S[A-Z])(?:([^a-z\s]++)|[^A-Z\s]++)(?!\S)")
MAX_UNDONE_RUN = 1000  # "xxrep 999999999 a" is left as it is rather than written out


def apply_rules(text: str) -> str:
    """Clean one document and write its marks.

    Args:
        text: A document as it came, or several fields put together by :func:`join_fields`.

    Returns:
        The text in lower case that starts with ``xxbos``; nothing marks its end. An empty text gives ``"xxbos "``.

    Source: fastai 2.8.12, ``defaults.text_proc_rules``.
    """
    text = _fix_html(text)
    if _has_character_run(text):
        text = _CHARACTER_RUN.sub(_mark_character_run, text)
    words = text.split()
    if any(map(eq, words, words[1:])):
        text = _WORD_RUN.sub(_mark_word_run, text)
    text = text.replace("/", " / ").replace("#", " # ").replace("\\", " \\ ")
    while "  " in text:
        text = text.replace("  ", " ")
    text = _CAPITALIZED.sub(_mark_capitals, text)
    return f"{BOS} {text.lower().strip()}"


def join_fields(fields: Sequence[str]) -> str:
    """Put several text columns of one row into one text, each behind its number.

    Args:
        fields: The columns' texts in order. One field alone is returned as it is.

    Returns:
        ``"xxfld 1 first xxfld 2 second"``, to be given to :func:`apply_rules` like any other text.

    Raises:
        ValueError: There is no field.

    Source: fastai 2.8.12, ``tokenize_df`` with ``mark_fields``.
    """
    if not fields:
        raise ValueError("join_fields needs at least one field, got an empty list")
    if len(fields) == 1:
        return fields[0]
    return " ".join(f"{FLD} {number} {field}" for number, field in enumerate(fields, start=1))


def undo_marks(text: str) -> str:
    """Turn marks back into what they stand for, for people to read: ``xxmaj hello`` into ``Hello``.

    Args:
        text: A text as :func:`apply_rules` writes it. Its clean-ups (HTML, spaces) are not undone.

    Returns:
        The text without any special token but ``xxunk``.
    """
    words: list[str] = []
    pending = text.split(" ")[::-1]
    while pending:
        word = pending.pop()
        following = pending[-1] if pending else ""
        if word in (UP, MAJ) and following not in ("", *SPECIAL_TOKENS):
            pending.pop()
            words.append(following.upper() if word == UP else following[:1].upper() + following[1:])
        elif word in (REP, WREP) and len(pending) > 1 and _is_run_length(following):
            count, repeated = int(pending.pop()), pending.pop()
            words.append(repeated * count if word == REP else " ".join([repeated] * count))
        elif word == FLD and following.isdecimal():
            pending.pop()
        elif word == UNK or word not in SPECIAL_TOKENS:
            words.append(word)
    return " ".join(words)


def _is_run_length(word: str) -> bool:
    return word.isdecimal() and len(word) <= 4 and int(word) <= MAX_UNDONE_RUN


def _fix_html(text: str) -> str:
    for old, new in _REPLACEMENTS:
        text = text.replace(old, new)
    if "&#" in text:
        text = _LONG_REFERENCE.sub(_shorten_reference, text)
    return html.unescape(text)


def _shorten_reference(match: re.Match[str]) -> str:
    """Write "&#000...0065;" as "&#65;": Python refuses to read a number of more than 4300 digits."""
    digits = match[1].lstrip("0") or "0"
    return f"&#{digits[:8]};"  # eight digits are past the last code point already: U+FFFD


def _has_character_run(text: str) -> bool:
    """Return whether any character (a space too: the rule itself skips those) occurs three times in a row."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)  # (characters,)
    same = codes[1:] == codes[:-1]
    return bool((same[1:] & same[:-1]).any())


def _mark_character_run(match: re.Match[str]) -> str:
    return f" {REP} {len(match[2]) + 1} {match[1]} "


def _mark_word_run(match: re.Match[str]) -> str:
    return f" {WREP} {len(match[2].split()) + 2} {match[1]} {match[3]}"


def _mark_capitals(match: re.Match[str]) -> str:
    return f"{UP} {match[0]}" if match[1] else f"{MAJ} {match[0]}"
