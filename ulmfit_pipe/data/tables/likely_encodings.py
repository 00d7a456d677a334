"""Which East Asian encoding a file may be in, for a hint: it decodes to its end, and to letters of one script."""

import codecs
from collections.abc import Callable
from typing import IO

BLOCK = 1 << 20  # bytes read at once; the letters of the first are counted
KANA_SHARE = 0.2  # of Japanese letters at least
HANGUL_SHARE = 0.9  # of Korean letters
COMMON_SHARE = 0.8  # of Chinese letters are in the part of the frequent ones, which each of its encodings has
CANDIDATES = {  # in this order: what decodes as an earlier one decodes by chance as a later one too
    "shift_jis": "Japanese",
    "cp932": "Japanese",
    "euc_jp": "Japanese",
    "euc_kr": "Korean",
    "cp949": "Korean",
    "gb18030": "Chinese",
    "big5": "Chinese",
    "cp950": "Chinese",
}
_FREQUENT = {"gb18030": (0xB0, 0xD7), "big5": (0xA4, 0xC6), "cp950": (0xA4, 0xC6)}  # first bytes


def likely_encoding(unpacked: Callable[[], IO[bytes]]) -> tuple[str, str] | None:
    """Return an encoding that fits a whole file and what is written in it, or None.

    Args:
        unpacked: Opens the file.
    """
    found: dict[str, float] = {}
    for name, language in CANDIDATES.items():
        letters = _first_letters(unpacked, name)
        if letters is None:
            continue
        share = _fitting_share(letters, name, language)
        if language != "Chinese" and share:
            return name, language
        found[name] = share
    best = max(found, key=found.__getitem__, default=None)
    return None if best is None or not found[best] else (best, CANDIDATES[best])


def _first_letters(unpacked: Callable[[], IO[bytes]], encoding: str) -> str | None:
    """Return the letters beyond ASCII that a file begins with, or None where it does not decode to its end."""
    decoder = codecs.getincrementaldecoder(encoding)()
    letters = None
    with unpacked() as file:
        while True:
            block = file.read(BLOCK)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError:
                return None
            if letters is None:
                letters = "".join(letter for letter in text if letter > "\x7f" and letter.isalpha())
            if not block:
                return letters


def _fitting_share(letters: str, encoding: str, language: str) -> float:
    """Return the share of letters that a language is mostly written with; 0 where they are too few."""
    if language == "Japanese":
        least, fitting = KANA_SHARE, sum("ぁ" <= letter <= "ヺ" for letter in letters)
        fitting *= not 2 * sum("ｦ" <= letter <= "ﾟ" for letter in letters) > len(letters)  # half as wide: by chance
    elif language == "Korean":
        least, fitting = HANGUL_SHARE, sum("가" <= letter <= "힣" for letter in letters)
    else:
        first, last = _FREQUENT[encoding]
        least, fitting = COMMON_SHARE, sum(first <= letter.encode(encoding)[0] <= last for letter in letters)
    share = fitting / max(len(letters), 1)
    return share if share >= least else 0.0
