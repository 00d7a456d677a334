"""A file of text as lines, whatever its encoding and packing.

The encoding is found by the byte order mark, by NUL bytes (UTF-16), and by decoding the whole file.
"""

import bz2
import codecs
import gzip
import io
import itertools
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from ulmfit_pipe.errors import UlmfitError

LONGEST_LINE = 100_000_000  # characters of a line, or of a CSV field; a file without line ends does not fill memory
BLOCK = 1 << 20  # bytes read at once
HEAD = 1 << 16  # bytes in which NULs are looked for
FOREIGN_SHARE = 0.2  # of bytes that are not ASCII: Western text has a tenth, other scripts nearly all
BINARY_SHARE = 0.3  # of NULs in a file's head: above it the file is not text
RUNS_SHARE = 0.5  # of bytes that are not UTF-8 are adjacent: above it they are another script's
FEW_BYTES = 10  # that are not ASCII are too few to infer the script from
DAMAGED_SHARE = 2.0  # the same in text of another script, whose encodings hold valid UTF-8 by chance
MIXED_SHARE = 0.25  # of letters in valid UTF-8 to bytes that are not: above it the file is UTF-8 with damage
ONE_BYTE = ("cp1252", "latin-1")  # for Western text; many encodings have other letters at these bytes
ISO_2022_JP = b"\x1b$B"  # precedes its letters, which are bytes of ASCII
PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zip")
BYTE_ORDER_MARKS = (  # and the encodings that skip them; UTF-32 first, whose mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
UNPACK_ERRORS = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError)
_SEVERAL_BYTES = re.compile(r"[^\x00-\x7f\udc80-\udcff]")  # a letter that UTF-8 writes in several bytes
_NOT_UTF8 = re.compile(r"[\udc80-\udcff]")  # a byte that surrogateescape kept
_RUNS_NOT_UTF8 = re.compile(r"[\udc80-\udcff]{2,}")
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


class TableError(UlmfitError, ValueError):
    """A table that cannot be used as it is. The message names file, row and column.

    Rows are counted from 1; the header is not counted.
    """


class TextLines:
    """The lines of a UTF-8 file with their own line ends.

    Args:
        path: The file.

    Attributes:
        path: The file.
        offset: The byte at which the next line begins.

    Raises:
        TableError: While it is read: the file is not UTF-8, or a line is too long.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.offset = path, 0

    def __iter__(self) -> Iterator[str]:
        """Yield the lines."""
        with self.path.open("rb") as raw:
            if self.offset == 0 and raw.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
                self.offset = len(codecs.BOM_UTF8)
            raw.seek(self.offset)
            with io.TextIOWrapper(raw, encoding="utf-8", newline="") as file:
                try:
                    for line in bounded_lines(file, str(self.path)):
                        self.offset += len(line.encode())  # exact: UTF-8 has one spelling for a character
                        yield line
                except UnicodeDecodeError as error:
                    raise not_utf8(self.path, partial(open_unpacked, self.path, None)) from error


def bounded_lines(file: IO[str], name: str) -> Iterator[str]:
    """Yield the lines of an open file.

    Raises:
        TableError: One is longer than `LONGEST_LINE`.
    """
    for number, line in enumerate(iter(partial(file.readline, LONGEST_LINE), ""), start=1):
        if len(line) == LONGEST_LINE:
            raise TableError(
                f"{name}, line {number} is longer than {LONGEST_LINE:,} characters; a table has one row per line"
            )
        yield line


@dataclass
class TextFile:
    """A file of text whose encoding is known.

    Attributes:
        path: The file.
        packing: gzip, bz2, xz, zstd or zip; None for a file as it is.
        encoding: Python's name of the encoding.
        holds_quotes: It has double quotes, or carriage returns within a line: detecting its format takes a full pass.
        newline: What ends its lines, as for `open`.
        notes: Log lines for the user.
    """

    path: Path
    packing: str | None
    encoding: str
    holds_quotes: bool = True
    newline: str = "\n"
    notes: list[str] = field(default_factory=list)

    @property
    def is_plain_utf8(self) -> bool:
        """Whether `TextLines` can read it."""
        return self.packing is None and self.encoding in ("utf-8", "utf-8-sig")

    def lines(self) -> Iterator[str]:
        """Yield its lines with their own ends.

        Raises:
            TableError: It cannot be unpacked or decoded to its end, or a line is too long.
        """
        with open_unpacked(self.path, self.packing) as raw:
            try:
                with io.TextIOWrapper(raw, encoding=self.encoding, newline=self.newline) as file:
                    lines = bounded_lines(file, str(self.path))
                    yield from (line.removeprefix("\ufeff") for line in itertools.islice(lines, 1))
                    yield from lines
            except UnicodeDecodeError as error:
                raise self._not_decoded(error) from error
            except UNPACK_ERRORS as error:
                raise not_unpacked(self.path, error) from error

    def _not_decoded(self, error: UnicodeDecodeError) -> TableError:
        if self.encoding in ("utf-8", "utf-8-sig"):
            return not_utf8(self.path, partial(open_unpacked, self.path, self.packing))
        return TableError(
            f"{self.path} cannot be read as {self.encoding} to its end ({error.reason}); --encoding names another one"
        )


def find_text_file(path: Path, encoding: str | None) -> TextFile:
    """Find out how a file of text is packed and encoded.

    Args:
        path: A regular file.
        encoding: The encoding that a user named, or None.

    Raises:
        TableError: It is not text, is empty, cannot be decompressed, or its encoding cannot be detected.
    """
    packing = packing_of(path)
    unpacked = partial(open_unpacked, path, packing)
    try:
        with unpacked() as raw:
            head = raw.read(HEAD)
        if not head.strip():
            raise TableError(f"{path} is empty: it has no header and no rows")
        if encoding is not None:
            name = codecs.lookup(encoding).name
            return TextFile(path, packing, "utf-8-sig" if name == "utf-8" else encoding)
        return _found_encoding(path, packing, head, unpacked)
    except UNPACK_ERRORS as error:
        raise not_unpacked(path, error) from error


def _found_encoding(path: Path, packing: str | None, head: bytes, unpacked: Callable[[], IO[bytes]]) -> TextFile:
    marked = next((name for mark, name in BYTE_ORDER_MARKS if head.startswith(mark)), None) or _utf16_without_mark(head)
    if marked not in (None, "utf-8-sig"):
        return TextFile(path, packing, str(marked), notes=[_encoding_note(path, str(marked))])
    if head.count(0) > BINARY_SHARE * len(head):
        raise TableError(f"{path} holds NUL bytes, so it is not a text table; give a file that a text editor can show")
    if ISO_2022_JP in head:
        raise TableError(f"{path} seems to be Japanese text in ISO-2022-JP: --encoding iso2022_jp reads it as that")
    facts = _decode_whole(unpacked)
    if facts.invalid == 0:
        return TextFile(path, packing, marked or "utf-8", facts.holds_quotes, facts.newline)
    in_runs = facts.in_runs > max(FEW_BYTES, RUNS_SHARE * facts.invalid)
    is_foreign = in_runs or facts.not_ascii > max(FEW_BYTES, FOREIGN_SHARE * facts.letters)
    if facts.several > (DAMAGED_SHARE if is_foreign else MIXED_SHARE) * facts.invalid:
        raise not_utf8(path, unpacked)
    if is_foreign and (likely := likely_encoding(unpacked)):
        raise TableError(
            f"{path} is not UTF-8 but seems to be {likely[1]} text in {likely[0]}: --encoding {likely[0]} reads it as "
            "that; look at some rows, for an encoding cannot be detected with certainty"
        )
    if is_foreign or b"\0" in head:
        raise TableError(
            f"{path} is not UTF-8 but in an encoding of another script, which cannot be detected; name it "
            "with --encoding, for example gb18030 (Chinese), shift_jis (Japanese), cp1251 (Cyrillic), or utf-16-le"
        )
    name = "latin-1" if facts.not_cp1252 else "cp1252"
    return TextFile(path, packing, name, facts.holds_quotes, facts.newline, [_encoding_note(path, name)])


def _encoding_note(path: Path, name: str) -> str:
    others = ", such as cp1250 for Polish or Czech, mac_roman for old Macs" if name in ONE_BYTE else ""
    return f"{path} is not UTF-8; it is read as {name} (--encoding names another one{others})"


def _utf16_without_mark(head: bytes) -> str | None:
    """Return UTF-16's name if every other byte is a NUL, as in mostly Western text, else None."""
    half = max(len(head) // 2, 1)
    even, odd = head[0::2].count(0) / half, head[1::2].count(0) / half
    if odd > 0.4 and even < 0.1:
        return "utf-16-le"
    return "utf-16-be" if even > 0.4 and odd < 0.1 else None


@dataclass
class _Facts:
    invalid: int = 0  # bytes that are not UTF-8
    in_runs: int = 0  # of these, adjacent ones
    several: int = 0  # letters that UTF-8 writes in several bytes
    not_ascii: int = 0  # bytes
    letters: int = 0  # bytes of letters, ASCII or not
    not_cp1252: bool = False
    quotes: bool = False
    feeds: int = 0  # line feeds
    returns: int = 0  # carriage returns
    pairs: int = 0  # of both

    @property
    def holds_quotes(self) -> bool:
        """Whether the file has double quotes, or carriage returns without a line feed."""
        return self.quotes or self.returns > self.pairs

    @property
    def newline(self) -> str:
        """Return the line end: a carriage return only in files without line feeds."""
        return "\n" if self.feeds or not self.returns else "\r"


def _decode_whole(unpacked: Callable[[], IO[bytes]]) -> _Facts:
    """Decode a file from end to end, and count what does not fit into UTF-8."""
    facts = _Facts()
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    unused = bytes([0x81, 0x8D, 0x8F, 0x90, 0x9D])  # by cp1252
    ascii_letters = bytes(range(65, 91)) + bytes(range(97, 123))
    high = bytes(range(128, 256))
    was_return = False
    with unpacked() as raw:
        while True:
            block = raw.read(BLOCK)
            text = decoder.decode(block, final=not block)
            facts.quotes = facts.quotes or b'"' in block
            facts.feeds += block.count(b"\n")
            facts.returns += block.count(b"\r")
            facts.pairs += block.count(b"\r\n") + (was_return and block[:1] == b"\n")
            was_return = block[-1:] == b"\r"
            if not text.isascii():
                facts.invalid += len(_NOT_UTF8.findall(text))
                facts.in_runs += sum(map(len, _RUNS_NOT_UTF8.findall(text)))
                facts.several += len(_SEVERAL_BYTES.findall(text))
                facts.not_ascii += len(block) - len(block.translate(None, high))
                facts.not_cp1252 = facts.not_cp1252 or len(block.translate(None, unused)) < len(block)
            facts.letters += len(block) - len(block.translate(None, ascii_letters + high))
            if not block:
                return facts


def not_utf8(path: Path, unpacked: Callable[[], IO[bytes]]) -> TableError:
    """Return an error that names the first byte of a file that is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, line = 0, 1
    with unpacked() as file:
        while True:
            block = file.read(BLOCK)
            pending = len(decoder.getstate()[0])  # bytes of a character that the last block began
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                bad = offset - pending + error.start
                line += block.count(b"\n", 0, max(0, error.start - pending))
                return TableError(
                    f"{path} is not UTF-8: byte {bad} (line {line}) cannot be read; fix it there, or name the "
                    "encoding of the whole file with --encoding, for example cp1252"
                )
            if not block:
                return TableError(f"{path} is not UTF-8")
            offset += len(block)
            line += block.count(b"\n")


# Packing


def packing_of(path: Path) -> str | None:
    """Return how a file is packed, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(6)
    begins = {
        b"\x1f\x8b": "gzip",
        b"BZh": "bz2",
        b"\xfd7zXZ\0": "xz",
        b"\x28\xb5\x2f\xfd": "zstd",
        b"PK\x03\x04": "zip",
    }
    return next((name for begin, name in begins.items() if head.startswith(begin)), None)


def unpacked_name(path: Path) -> str:
    """Return the name that a file has without its packing, for its suffix."""
    if packing_of(path) == "zip":
        return _only_member(path)
    return path.stem if path.suffix.lower() in PACKED_SUFFIXES else path.name


def _only_member(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    except UNPACK_ERRORS as error:
        raise not_unpacked(path, error) from error
    names = [name for name in names if not name.startswith("__MACOSX/") and not Path(name).name.startswith(".")]
    if len(names) != 1:
        raise TableError(
            f"{path} is a zip archive of {len(names)} files; unpack it and give one of them, or a list of files"
        )
    return names[0]


def open_unpacked(path: Path, packing: str | None) -> IO[bytes]:
    """Open a file's content for reading."""
    openers: dict[str, Callable[[], Any]] = {
        "gzip": lambda: gzip.open(path),
        "bz2": lambda: bz2.open(path),
        "xz": lambda: lzma.open(path),
        "zstd": lambda: io.BufferedReader(_Zstd(path), BLOCK),
        "zip": lambda: zipfile.ZipFile(path).open(_only_member(path)),
    }
    return path.open("rb") if packing is None else openers[packing]()


class _Zstd(io.RawIOBase):
    """A zstd file as a raw stream, read by pyarrow, since Python 3.11 has no decoder."""

    def __init__(self, path: Path) -> None:
        self._stream = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")

    def readable(self) -> bool:
        """Return True, as `io.BufferedReader` requires."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with decompressed bytes and return their number; 0 at the end."""
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def not_unpacked(path: Path, error: BaseException) -> TableError:
    """Return the error of a file that cannot be read or decompressed, in one sentence."""
    return TableError(
        f"{path} cannot be read to its end (cut short or damaged?): {str(error)[:200] or type(error).__name__}"
    )


def likely_encoding(unpacked: Callable[[], IO[bytes]]) -> tuple[str, str] | None:
    """Return an encoding that fits a whole file, and the language of its text, or None.

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
    """Return the share of letters that are usual in a language; 0 if below its minimum."""
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
