"""SHA-256 digests: of a file's bytes, and of columns of texts or labels."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def digest_of_file(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(*columns: Iterable[Any]) -> str:
    """Return a SHA-256 over columns of texts or labels, as a fingerprint of the data."""
    digest = hashlib.sha256()
    for column in columns:
        for value in column:
            content = str(value).encode("utf-8", "surrogatepass")
            digest.update(len(content).to_bytes(8, "little"))
            digest.update(content)
        digest.update(b"\xff" * 8)
    return digest.hexdigest()
