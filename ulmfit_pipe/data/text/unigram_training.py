"""Train a unigram subword vocabulary, the same one on every run.

The trainer of the ``tokenizers`` library visits its words in an order that changes from process to process, and
ends in another vocabulary each time. This one does the same steps in a fixed order, on arrays: take every frequent
substring of the words, fit the pieces' probabilities by expectation-maximization, drop the pieces that the text
would miss least, and repeat until the wanted size is reached.

Source: Kudo 2018, "Subword Regularization", section 3.2; Kudo & Richardson 2018 (SentencePiece) for the constants.
"""

import math
from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_PIECE_LENGTH = 16  # characters, SentencePiece's default
MAX_WORD_LENGTH = 32  # characters; a longer word is left out, so that products of probabilities stay above 1e-308
MAX_WORDS = 300_000  # the most frequent ones; bounds memory at about 1 GB
SEED_FACTOR = 10  # substrings to start from, per piece wanted
SHRINKING_FACTOR = 0.75  # share of the pieces kept in one round, SentencePiece's default
EM_STEPS = 2  # per round, SentencePiece's default
MIN_PROBABILITY = 1e-9
SPARSE_PRIOR = 0.5  # exp(digamma(count)) is about count - 1/2: rare pieces lose


@dataclass(frozen=True)
class Segments:
    """Every place where a known piece stands in a list of strings.

    Attributes:
        string: int32 (segments,), which string.
        start: int32 (segments,), first character.
        end: int32 (segments,), one past the last character.
        piece: int32 (segments,), which piece stands there.
        lengths: int64 (strings,), characters of each string.
    """

    string: NDArray[np.int32]
    start: NDArray[np.int32]
    end: NDArray[np.int32]
    piece: NDArray[np.int32]
    lengths: NDArray[np.int64]

    def keep(self, mask: NDArray[np.bool_]) -> "Segments":
        """The segments where ``mask`` (segments,) is true."""
        return Segments(self.string[mask], self.start[mask], self.end[mask], self.piece[mask], self.lengths)

    def by_end(self) -> list[NDArray[np.int64]]:
        """Segment numbers for each end position 1, 2, ..., longest string."""
        order = np.argsort(self.end, kind="stable")
        bounds = np.searchsorted(self.end[order], np.arange(1, int(self.lengths.max(initial=0)) + 2))
        return [order[bounds[k] : bounds[k + 1]] for k in range(len(bounds) - 1)]


def train_unigram(
    word_counts: Mapping[str, int], *, num_pieces: int, alphabet: Collection[str]
) -> list[tuple[str, float]]:
    """Choose pieces and their log probabilities.

    Args:
        word_counts: How often each word occurs; pieces never cross a word's edge.
        num_pieces: Pieces wanted. A small text may hold fewer.
        alphabet: Single characters that must be pieces. Words with another character are left out.

    Returns:
        (piece, natural log probability), most probable first, equal ones in alphabetical order.

    Raises:
        ValueError: ``num_pieces`` has no room for the alphabet, or no word is left.
    """
    if num_pieces < len(alphabet):
        raise ValueError(f"num_pieces={num_pieces} has no room for the {len(alphabet)} single characters")
    known = set(alphabet)
    usable = [word for word in word_counts if len(word) <= MAX_WORD_LENGTH and known.issuperset(word)]
    words = sorted(usable, key=lambda word: (-word_counts[word], word))[:MAX_WORDS]
    if not words:
        raise ValueError("there is no word to train a vocabulary on: the texts are empty")
    counts = np.array([word_counts[word] for word in words], dtype=np.float64)  # (words,)
    pieces, weights = _seed_pieces(words, word_counts, size=SEED_FACTOR * num_pieces, alphabet=sorted(known))
    required = np.array([len(piece) == 1 for piece in pieces])  # (pieces,)
    probabilities = weights / weights.sum()
    in_words, in_pieces = _find_segments(words, pieces), _find_segments(pieces, pieces)
    in_pieces = in_pieces.keep(in_pieces.piece != in_pieces.string)  # a piece is not its own replacement
    while True:
        for _ in range(EM_STEPS):
            probabilities = _expectation_maximization(in_words, counts, probabilities, required)
        goal = max(num_pieces, int(SHRINKING_FACTOR * np.count_nonzero(probabilities)))
        if np.count_nonzero(probabilities) <= num_pieces:
            break
        losses = _losses_without(in_pieces, probabilities)
        losses[required] = np.inf
        losses[probabilities == 0] = -np.inf
        probabilities[np.argsort(-losses, kind="stable")[goal:]] = 0
        in_words = in_words.keep(probabilities[in_words.piece] > 0)
        in_pieces = in_pieces.keep(probabilities[in_pieces.piece] > 0)
    chosen = [(pieces[k], math.log(p)) for k, p in enumerate(probabilities.tolist()) if p > 0]
    return sorted(chosen, key=lambda item: (-item[1], item[0]))


def _seed_pieces(
    words: list[str], word_counts: Mapping[str, int], *, size: int, alphabet: list[str]
) -> tuple[list[str], NDArray[np.float64]]:
    """The alphabet and the substrings that cover most text; weights (pieces,) = occurrences."""
    frequencies: dict[str, int] = dict.fromkeys(alphabet, 1)
    for word in words:
        count = word_counts[word]
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + MAX_PIECE_LENGTH) + 1):
                piece = word[start:end]
                frequencies[piece] = frequencies.get(piece, 0) + count
    longer = [piece for piece, frequency in frequencies.items() if len(piece) > 1 and frequency > 1]
    longer.sort(key=lambda piece: (-frequencies[piece] * len(piece), piece))
    pieces = sorted([*alphabet, *longer[:size]])
    return pieces, np.array([frequencies[piece] for piece in pieces], dtype=np.float64)


def _find_segments(strings: list[str], pieces: list[str]) -> Segments:
    numbers = {piece: number for number, piece in enumerate(pieces)}
    found = array("i")
    for row, text in enumerate(strings):
        for start in range(len(text)):
            for end in range(start + 1, min(len(text), start + MAX_PIECE_LENGTH) + 1):
                number = numbers.get(text[start:end])
                if number is not None:
                    found.extend((row, start, end, number))
    string, start, end, piece = np.ascontiguousarray(np.frombuffer(found, dtype=np.int32).reshape(-1, 4).T)
    lengths = np.array([len(text) for text in strings], dtype=np.int64)
    return Segments(string, start, end, piece, lengths)


def _expectation_maximization(
    segments: Segments,
    counts: NDArray[np.float64],
    probabilities: NDArray[np.float64],
    required: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """One step: expected uses of each piece over all ways to cut each word, then probabilities from them.

    Args:
        segments: Where the pieces stand in the words.
        counts: float64 (words,), how often each word occurs.
        probabilities: float64 (pieces,); 0 for a piece that was dropped.
        required: bool (pieces,), never dropped.
    """
    num_words, width = len(counts), int(segments.lengths.max())
    groups = segments.by_end()
    weight = probabilities[segments.piece]  # (segments,)
    forward = np.zeros((width + 1, num_words))  # probability of all ways to cut the first k characters
    forward[0] = 1
    for end, group in enumerate(groups, start=1):
        value = forward[segments.start[group], segments.string[group]] * weight[group]
        forward[end] = np.bincount(segments.string[group], weights=value, minlength=num_words)
    backward = np.zeros((width + 1, num_words))
    everyone = np.arange(num_words)
    backward[segments.lengths, everyone] = counts / forward[segments.lengths, everyone]
    for end in range(width, 0, -1):
        group = groups[end - 1]
        value = backward[end, segments.string[group]] * weight[group]
        np.add.at(backward, (segments.start[group], segments.string[group]), value)
    uses = forward[segments.start, segments.string] * weight * backward[segments.end, segments.string]
    expected = np.bincount(segments.piece, weights=uses, minlength=len(probabilities)) - SPARSE_PRIOR
    expected[expected < 0] = 0
    fitted = expected / expected.sum()
    return np.where(required, np.maximum(fitted, MIN_PROBABILITY), fitted)


def _losses_without(segments: Segments, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much log likelihood the text loses if a piece is written with its best other pieces: (pieces,)."""
    with np.errstate(divide="ignore"):
        log_probabilities = np.log(probabilities)
    width = int(segments.lengths.max())
    best = np.full((width + 1, len(probabilities)), -np.inf)
    best[0] = 0
    for end, group in enumerate(segments.by_end(), start=1):
        value = best[segments.start[group], segments.string[group]] + log_probabilities[segments.piece[group]]
        np.maximum.at(best[end], segments.string[group], value)
    replacement = best[segments.lengths, np.arange(len(probabilities))]
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(probabilities * (log_probabilities - replacement), nan=0.0, posinf=np.inf)
