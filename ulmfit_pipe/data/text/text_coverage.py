"""How much of some texts a tokenizer's vocabulary knows, and how much of them a model never sees.

A character is lost where its token is the unknown one, where it has none, where it is split into bytes, and where the
word that it is in is spelled letter by letter: of such a word the vocabulary holds nothing but the alphabet.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from ulmfit_pipe.data.text.pretrained_tokenizers import special_tokens_of
from ulmfit_pipe.data.text.text_facts import script_of
from ulmfit_pipe.data.text.text_rules import SPECIAL_TOKENS
from ulmfit_pipe.data.text.ulmfit_tokenizer import UlmfitTokenizer

SPELLED_LETTERS = 3  # letters of the shortest word that counts as spelled; shorter ones may be words of one letter
SYLLABIC = {"Han", "Hangul"}  # scripts in which one character can well be a token of its own
SPACE_MARKS = {"▁", "Ġ"}  # tokens that stand for a space, with the span of what follows it
ENGLISH = "the quick brown fox jumps over the lazy dog"  # only a vocabulary of single letters spells all of it


@dataclass
class TextCoverage:
    """What a tokenizer makes of some texts.

    Attributes:
        characters: Characters of the texts.
        tokens: Tokens that they are split into, without those that mark capitals and the like.
        unknown_tokens: Those of them that are the unknown one.
        visible: Characters that could be lost: all but white space, combining marks and control characters.
        lost: How often each character is lost.
    """

    characters: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    visible: int = 0
    lost: Counter[str] = field(default_factory=Counter)

    @property
    def lost_share(self) -> float:
        """Share of the visible characters that are lost."""
        return self.lost.total() / max(self.visible, 1)

    @property
    def unknown_share(self) -> float:
        """Share of the tokens that are the unknown one."""
        return self.unknown_tokens / max(self.tokens, 1)

    @property
    def tokens_per_character(self) -> float:
        """Tokens of a character, white space included."""
        return self.tokens / max(self.characters, 1)


@dataclass(frozen=True)
class _Cut:
    """A tokenized text: the unit of its spans, its tokens, their ids and their spans."""

    text: str
    tokens: list[str]
    ids: list[int]
    spans: list[tuple[int, int]]


def measure_coverage(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> TextCoverage:
    """Measure how much of some texts a tokenizer's vocabulary knows.

    Args:
        tokenizer: Ours, or a fast one of transformers.
        texts: Documents; each is tokenized whole.
    """
    found = TextCoverage()
    marks = frozenset(SPECIAL_TOKENS[1:] if isinstance(tokenizer, UlmfitTokenizer) else ())
    spells_english = len(tokenizer.tokenize(ENGLISH)) >= sum(map(str.isalpha, ENGLISH))
    for text, cut in zip(texts, _cut(tokenizer, texts), strict=True):
        visible, lost = _find_lost(cut, tokenizer.unk_token_id, marks, words=not spells_english)
        found.characters += len(text)
        found.tokens += sum(token not in marks for token in cut.tokens)
        found.unknown_tokens += cut.ids.count(tokenizer.unk_token_id)
        found.visible += int(visible.sum())
        found.lost.update(cut.text[place] for place in np.flatnonzero(visible & lost))
    return found


def _cut(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[_Cut]:
    """Tokenize texts, and leave out the special tokens before and after each."""
    added = special_tokens_of(tokenizer)
    encoded = tokenizer(list(texts), return_offsets_mapping=True, truncation=False, padding=False, verbose=False)
    for text, ids, spans in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        inner = slice(len(added.prefix), len(ids) - len(added.suffix))
        seen = tokenizer.prepared(text) if isinstance(tokenizer, UlmfitTokenizer) else text
        yield _Cut(seen, list(tokenizer.convert_ids_to_tokens(ids[inner])), ids[inner], spans[inner])


def _find_lost(
    cut: _Cut, unknown: int | None, marks: frozenset[str], *, words: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return for each character of a text whether it is visible, and whether it is lost: (characters,) each.

    Args:
        cut: The text.
        unknown: Id of the unknown token, if there is one.
        marks: Tokens that the text rules have added.
        words: Whether letters of words that are spelled count as lost.
    """
    text, size = cut.text, len(cut.text)
    visible = np.fromiter(map(_is_visible, text), dtype=bool, count=size)
    lost, alone, covered = np.zeros(size, dtype=bool), np.ones(size, dtype=bool), np.zeros(size, dtype=np.int64)
    for token, number, (begin, end) in zip(cut.tokens, cut.ids, cut.spans, strict=True):
        if token in SPACE_MARKS:
            continue
        begin += text[begin : begin + 1].isspace()  # noqa: PLW2901  # some spans begin with the space before a word
        covered[begin:end] += 1
        if end - begin > 1:
            alone[begin:end] = False
        if token in marks:
            visible[begin:end] = False
        elif number == unknown or _is_byte(token):
            lost[begin:end] = True
    lost |= covered != 1
    for begin, end in _words(text) if words else ():
        if np.count_nonzero(alone[begin:end]) >= SPELLED_LETTERS:
            letters = [place for place in range(begin, end) if _is_part_of_words(text[place])]
            if len(letters) >= SPELLED_LETTERS and alone[letters].all():
                lost[letters] = True
    return visible, lost


@cache
def _is_part_of_words(character: str) -> bool:
    """Whether a character is a letter that is not a word or syllable by itself."""
    return character.isalpha() and script_of(character) not in SYLLABIC


@cache
def _is_visible(character: str) -> bool:
    return not character.isspace() and unicodedata.category(character)[0] not in "CM"


def _is_byte(token: str) -> bool:
    """Whether a token is one byte of a character that the vocabulary lacks, as SentencePiece writes it: <0xE4>."""
    return len(token) == 6 and token.startswith("<0x")


def _words(text: str) -> Iterator[tuple[int, int]]:
    """Begin and end of each stretch between white space."""
    end = 0
    for word in text.split():
        begin = text.index(word, end)
        end = begin + len(word)
        yield begin, end
