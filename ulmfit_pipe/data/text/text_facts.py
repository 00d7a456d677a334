"""What texts are like, found in one pass: lengths, scripts, repeats, and words that stand for a missing value."""

import unicodedata
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import datasets
import numpy as np

BATCH_ROWS = 1000
SAMPLED_TEXTS = 5000  # texts whose letters are counted, spread over the table
SAMPLED_CHARACTERS = 1000  # of each
LEAST_SHARE = 0.01  # a script with fewer of the letters is not named
MOST_SCRIPTS = 4
MISSING = {"nan", "none", "null", "n/a", "na", "<na>", "nat", "#n/a", "undefined"}  # what programs write for no value
UNSPACED = {"Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"}  # no space between words
_STYLES = {"FULLWIDTH", "HALFWIDTH", "MATHEMATICAL", "MODIFIER"}  # words before a script's name in a letter's name


@dataclass
class TextFacts:
    """Facts about the texts of one table, in its order; texts are remembered by their hash values.

    Attributes:
        lengths: Characters of each text.
        exact: Hash value of each text.
        alike: The same of its words in small letters, so that capitals and spaces do not count.
        missing: Texts that are nothing but a word for a missing value, with their counts.
        letters: How often each character is in a sample of the texts.
    """

    lengths: array = field(default_factory=lambda: array("q"))
    exact: array = field(default_factory=lambda: array("q"))
    alike: array = field(default_factory=lambda: array("q"))
    missing: Counter[str] = field(default_factory=Counter)
    letters: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.lengths)

    def __add__(self, other: "TextFacts") -> "TextFacts":
        """Return the facts of both tables' texts."""
        return TextFacts(
            self.lengths + other.lengths,
            self.exact + other.exact,
            self.alike + other.alike,
            self.missing + other.missing,
            self.letters + other.letters,
        )

    def describe(self) -> str:
        """Return lengths and scripts in one line."""
        middle, most = np.quantile(self.lengths, [0.5, 0.95])
        shares = script_shares(self.letters)
        letters = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares[:MOST_SCRIPTS]) or "none"
        return (
            f"characters per text: median {middle:,.0f}, 95 % have up to {most:,.0f}, longest {max(self.lengths):,}; "
            f"letters: {letters}"
        )


def look_at_texts(table: datasets.Dataset) -> TextFacts:
    """Return the facts about a table's texts; time and memory grow with the table, not with its square."""
    facts, step = TextFacts(), max(1, len(table) // SAMPLED_TEXTS)
    for batch in table.select_columns(["text"]).with_format(None).iter(BATCH_ROWS):
        for text in batch["text"]:
            words = text.casefold().split()
            if len(facts.lengths) % step == 0:
                facts.letters.update(text[:SAMPLED_CHARACTERS])
            facts.lengths.append(len(text))
            facts.exact.append(hash(text))
            facts.alike.append(hash(" ".join(words)))
            if len(words) == 1 and words[0] in MISSING:
                facts.missing[text.strip()] += 1
    return facts


def script_shares(letters: Counter[str]) -> list[tuple[str, float]]:
    """Return the scripts of counted letters with their shares, the most frequent first."""
    counts: Counter[str] = Counter()
    for letter, count in letters.items():
        if letter.isalpha():
            counts[script_of(letter)] += count
    total = counts.total()
    return [(name, count / total) for name, count in counts.most_common() if count >= LEAST_SHARE * total]


def unspaced_share(letters: Counter[str]) -> float:
    """Return the share of counted letters that are of a script without spaces between words."""
    return sum(share for name, share in script_shares(letters) if name in UNSPACED)


def script_of(letter: str) -> str:
    """Return the script that a letter's Unicode name begins with."""
    words = unicodedata.name(letter, "OTHER").split()
    word = words[1] if words[0] in _STYLES and len(words) > 1 else words[0]
    return "Han" if word == "CJK" else word.title()


def count_repeats(facts: TextFacts) -> tuple[int, int]:
    """Return how many texts are in a table before, and how many more do but for capitals and spaces."""
    exact = len(facts) - len(set(facts.exact))
    return exact, len(facts) - len(set(facts.alike)) - exact


def count_shared(facts: TextFacts, known: TextFacts) -> tuple[int, int]:
    """Return how many texts are also in another table, and how many more do but for capitals and spaces."""
    exact, alike = set(known.exact), set(known.alike)
    same = sum(value in exact for value in facts.exact)
    return same, sum(value in alike for value in facts.alike) - same


def find_conflicts(facts: TextFacts, labels: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Return two rows of each text that has different labels, capitals and spaces aside."""
    first: dict[int, int] = {}
    found: dict[int, tuple[int, int]] = {}
    for row, text in enumerate(facts.alike):
        before = first.setdefault(text, row)
        if labels[before] != labels[row]:
            found.setdefault(text, (before, row))
    return list(found.values())
