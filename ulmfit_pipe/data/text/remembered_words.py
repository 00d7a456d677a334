"""A cache of results per word, up to a number of bytes."""

import sys
from collections.abc import Sequence
from typing import Generic, TypeVar

Found = TypeVar("Found", bound=Sequence[object])

ENTRY_BYTES = 100  # of an entry of a dict, filled as far as dicts are


class RememberedWords(Generic[Found]):
    """Words with the sequences found for them; when they take too much, all are forgotten.

    Counted are bytes, not words: a word of a thousand characters with an id for each takes five hundred times as much
    as a common one.

    Args:
        most_bytes: Bytes from which on all is forgotten.

    Attributes:
        known: Word -> what was found.
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.known: dict[str, Found] = {}
        self._bytes = 0

    def add(self, word: str, found: Found) -> None:
        """Remember one more word."""
        self.known[word] = found
        self._bytes += ENTRY_BYTES + sys.getsizeof(word) + sys.getsizeof(found) + sum(map(sys.getsizeof, found))

    def forget_if_full(self) -> None:
        """Forget all words if they take more than the bytes allowed."""
        if self._bytes > self.most_bytes:
            self.known, self._bytes = {}, 0
