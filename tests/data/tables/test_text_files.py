"""Encodings and packings are found; what is no table of text is refused in a sentence."""

import bz2
import gzip
import json
import lzma
import os
import re
import socket
import zipfile

import pyarrow as pa
import pytest

from ulmfit_pipe.data.tables import text_files
from ulmfit_pipe.data.tables.readers import TableError, open_rows
from ulmfit_pipe.data.tables.row_sources import TableReading

ROWS = [("café – “naïve”", "é"), ("plain, text", "b"), ("two\nlines, yes", "é")]
CSV = 'text,label\ncafé – “naïve”,é\n"plain, text",b\n"two\nlines, yes",é\n'
JSON_LINES = "".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in ROWS)


def write(path, content):
    path.write_bytes(content)
    return path


def read(path, columns=("text", "label"), **options):
    source = open_rows(path, reading=TableReading(**options))
    return list(source.read(columns)), source


@pytest.mark.parametrize(("suffix", "text"), [("csv", CSV), ("tsv", CSV), ("jsonl", JSON_LINES), ("json", JSON_LINES)])
@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("utf-8", None),
        ("utf-8-sig", None),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16-le"),
        ("utf-16-be", "utf-16-be"),
        ("utf-32", "utf-32"),
        ("cp1252", "cp1252"),
    ],
)
def test_the_encoding_is_found_and_said_where_it_is_not_utf8(tmp_path, suffix, text, encoding, said):
    found, source = read(write(tmp_path / f"rows.{suffix}", text.encode(encoding)))
    assert found == ROWS
    told = [note for note in source.notes if "is not UTF-8" in note]
    others = ", such as cp1250 for Polish or Czech, mac_roman for old Macs" if said == "cp1252" else ""
    line = f"{source.name} is not UTF-8; it is read as {said} (--encoding names another one{others})"
    assert told == ([] if said is None else [line])


@pytest.mark.parametrize(
    ("encoding", "text"), [("cp1250", "zażółć gęślą jaźń, bardzo dobry film"), ("mac_roman", "café très élégant")]
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_another_encoding_of_one_byte_is_read_with_the_option_that_the_line_names(tmp_path, suffix, encoding, text):
    content = (
        f"text,label\n{text!r},a\n".replace("'", '"') if suffix == "csv" else f'{{"text": "{text}", "label": "a"}}\n'
    )
    path = write(tmp_path / f"rows.{suffix}", content.encode(encoding))
    taken, source = read(path)
    assert taken != [(text, "a")]
    assert re.search(rf"--encoding names another one, such as .*{encoding} for", source.notes[0])
    assert read(path, encoding=encoding)[0] == [(text, "a")]
    folder = tmp_path / "folder"
    for label in "ab":
        (folder / label).mkdir(parents=True)
        write(folder / label / "0.txt", text.encode(encoding))
    assert read(folder, encoding=encoding)[0] == [(text, "a"), (text, "b")]


def test_a_byte_that_cp1252_lacks_makes_it_latin_1(tmp_path):
    found, source = read(write(tmp_path / "rows.csv", b"text,label\ncaf\xe9 \x81,a\n"))
    assert found == [("café \x81", "a")]
    assert "is read as latin-1" in source.notes[0]


@pytest.mark.parametrize("share", [1, 10])
@pytest.mark.parametrize(
    ("encoding", "language", "text"),
    [
        ("shift_jis", "Japanese", "これは良い映画でした。主人公の演技が素晴らしい"),
        ("cp932", "Japanese", "これは良い映画でした①。主人公の演技が素晴らしい"),
        ("euc_jp", "Japanese", "これは良い映画でした。主人公の演技が素晴らしい"),
        ("gb18030", "Chinese", "这是一部很好的电影，我非常喜欢它的故事"),
        ("big5", "Chinese", "這是一部很好的電影，我非常喜歡它的故事"),
        ("euc_kr", "Korean", "이 영화는 정말 재미있었습니다. 배우들도 좋았어요"),
    ],
)
def test_an_encoding_of_east_asia_is_named_and_never_taken_for_cp1252(tmp_path, encoding, language, text, share):
    rows = [(text if number % share == 0 else "a long film in English", "a") for number in range(30)]
    content = "text,label\n" + "".join(",".join(row) + "\n" for row in rows)
    path = write(tmp_path / "rows.csv", content.encode(encoding))
    words = f"seems to be {language} text in {encoding}: --encoding {encoding} reads it as that"
    with pytest.raises(TableError, match=words):
        open_rows(path)
    assert read(path, encoding=encoding)[0] == rows


def test_japanese_in_bytes_of_ascii_is_named(tmp_path):
    path = write(tmp_path / "rows.csv", "text,label\n良い映画,a\n".encode("iso2022_jp"))
    with pytest.raises(TableError, match="ISO-2022-JP: --encoding iso2022_jp reads it"):
        open_rows(path)
    assert read(path, encoding="iso2022_jp")[0] == [("良い映画", "a")]


def test_umlauts_are_no_east_asian_letters(tmp_path):
    rows = [("eine schöne Größe für die Straße, größer als früher", "gut")] * 20
    content = "text;label\n" + "".join(";".join(row) + "\n" for row in rows)
    found, source = read(write(tmp_path / "rows.csv", content.encode("cp1252")))
    assert found == rows
    assert any("is read as cp1252" in note for note in source.notes)


@pytest.mark.parametrize(("encoding", "text"), [("cp1251", "очень хороший фильм"), ("cp1253", "πολύ καλή ταινία")])
def test_an_encoding_of_another_script_has_to_be_named(tmp_path, encoding, text):
    path = write(tmp_path / "rows.csv", f"text,label\n{text},a\n{text},b\n".encode(encoding))
    with pytest.raises(
        TableError, match="in an encoding of another script, which cannot be detected.* --encoding, for exam"
    ):
        open_rows(path)
    assert read(path, encoding=encoding)[0] == [(text, "a"), (text, "b")]


def test_a_named_encoding_that_does_not_fit_is_refused(tmp_path):
    path = write(tmp_path / "rows.csv", CSV.encode())
    with pytest.raises(
        TableError, match="rows.csv cannot be read as ascii to its end .*; --encoding names another one"
    ):
        read(path, encoding="ascii")


def test_a_byte_order_mark_is_no_part_of_the_header_whatever_encoding_is_named(tmp_path):
    for encoding in ("utf-8", "utf-16-le"):
        path = write(tmp_path / "rows.csv", ("\ufeff" + CSV).encode(encoding))
        assert read(path, encoding=encoding)[0] == ROWS


def zstd(content):
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, "zstd") as packed:
        packed.write(content)
    return stream.getvalue().to_pybytes()


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize(("suffix", "text"), [("csv", CSV), ("jsonl", JSON_LINES)])
def test_packed_files_are_read(tmp_path, packing, suffix, text):
    path = write(tmp_path / f"rows.{suffix}.{packing}", PACKERS[packing](text.encode("utf-8-sig")))
    assert read(path)[0] == ROWS


@pytest.mark.parametrize("packing", PACKERS)
def test_a_packed_file_cut_short_is_refused(tmp_path, packing):
    content = PACKERS[packing](b"text,label\n" + os.urandom(200_000).hex().encode() + b",a\n")
    path = write(tmp_path / f"rows.csv.{packing}", content[: len(content) // 2])
    with pytest.raises(TableError, match=rf"rows.csv.{packing} cannot be read to its end \(cut short or damaged"):
        read(path)


def test_a_zip_archive_with_one_file_is_read_and_one_with_two_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("folder/train.csv", CSV)
        archive.writestr("__MACOSX/._train.csv", "x")
    assert read(tmp_path / "rows.zip")[0] == ROWS
    with zipfile.ZipFile(tmp_path / "rows.zip", "a") as archive:
        archive.writestr("test.csv", CSV)
    with pytest.raises(TableError, match="rows.zip is a zip archive of 2 files; unpack it and give one of them"):
        open_rows(tmp_path / "rows.zip")


# Hostile files


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "xlsx"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe.{suffix}")
    (tmp_path / f"zero.{suffix}").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / f"socket.{suffix}"))
    for name in ("pipe", "zero", "socket"):
        with pytest.raises(
            TableError, match=rf"{name}.{suffix} is not a regular file but a pipe, a device or a socket"
        ):
            open_rows(tmp_path / f"{name}.{suffix}")


def test_an_address_is_refused():
    with pytest.raises(TableError, match=r"https://x.org/a.csv is an address and not a file; download the file first"):
        open_rows("https://x.org/a.csv")


@pytest.mark.parametrize("name", ["C:\\x.csv", "C:/data/x.csv", "x" * 300 + ".csv"])
def test_a_name_that_no_file_has_is_refused(name):
    with pytest.raises(TableError, match="there is no file|cannot be the name of a file: File name too long"):
        open_rows(name)


def test_a_file_of_nul_bytes_is_refused(tmp_path):
    with pytest.raises(TableError, match="holds NUL bytes, so it is not a text table"):
        open_rows(write(tmp_path / "rows.csv", bytes(10_000)))


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_line_without_an_end_does_not_fill_memory(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(text_files, "LONGEST_LINE", 1000)
    with pytest.raises(TableError, match="line 1 is longer than 1,000 characters; a table has one row per line"):
        read(write(tmp_path / f"rows.{suffix}", b"a" * 2000))


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("9" * 5000, "row 2.* it holds a number that is too long"),
        ("[" * 200_000, "row 2.*its brackets are nested too deep"),
    ],
)
def test_json_that_python_refuses_is_named_by_row(tmp_path, suffix, value, words):
    rows = ['{"text": "a", "label": "b"}', f'{{"text": "a", "label": "b", "more": {value}}}']
    text = "\n".join(rows) if suffix == "jsonl" else f"[{', '.join(rows)}]"
    with pytest.raises(TableError, match=words):
        read(write(tmp_path / f"rows.{suffix}", text.encode()))


def test_a_json_list_cut_short_is_named_by_row(tmp_path):
    with pytest.raises(TableError, match="after row 2 there is neither ',' nor the end of the list; was it cut short"):
        open_rows(write(tmp_path / "rows.json", b'[{"text": "a"}, {"text": "b"}'))


def test_a_torn_last_json_line_is_named_with_its_byte_and_left_out_on_request(tmp_path):
    path = write(tmp_path / "rows.jsonl", '{"text": "ä"}\n{"text": "b'.encode())
    with pytest.raises(
        TableError, match=r"row 2 .*\(line 2, byte 15\); if the file was cut short, --skip_torn_end true"
    ):
        read(path, ["text"])
    found, source = read(path, ["text"], skip_torn_end=True)
    assert found == [("ä",)]
    assert source.notes == [f"{path}, row 2 is cut short at the end of the file (line 2) and was left out"]


@pytest.mark.parametrize("length", [158_000, 2_000_000])
def test_long_fields_are_read(tmp_path, length):
    text = "a word, " * (length // 8)
    assert read(write(tmp_path / "rows.csv", f'text,label\n"{text}",b\n'.encode()))[0] == [(text, "b")]


def test_a_table_of_a_hundred_thousand_columns_is_read_by_name(tmp_path):
    names = ["text", *(f"c{number}" for number in range(100_000)), "label"]
    path = write(tmp_path / "rows.csv", "\n".join([",".join(names), ",".join(["1"] * len(names))]).encode() + b"\n")
    source = open_rows(path)
    assert list(source.read(["text", "label"])) == [("1", "1")]
    assert len(next(iter(source.read(source.columns)))) == 100_002
