"""Delimiter, quotes and header are found in the file; quotes that belong to the text swallow no rows."""

import csv
import io

import pytest

from ulmfit_pipe.data.tables.readers import TableError, open_rows
from ulmfit_pipe.data.tables.row_sources import TableReading
from ulmfit_pipe.data.tables.tables import load_table

LABELS = ("pos", "neg")
PLAIN = [(f"a film of {number} hours", LABELS[number % 2]) for number in range(1, 21)]


def with_stray_quotes(rows=PLAIN, *, opens=3, closes=8):
    """Two quotes that belong to the text: one text begins with one, another ends with one."""
    texts = [text for text, _ in rows]
    texts[opens], texts[closes] = '"' + texts[opens], texts[closes] + '"'
    return [(text, label) for text, (_, label) in zip(texts, rows, strict=True)]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def as_lines(rows, delimiter, *, header="text,label", end="\n"):
    lines = [header.replace(",", delimiter)] if header else []
    return end.join([*lines, *(delimiter.join(row) for row in rows)]) + end


def as_csv(rows, delimiter=",", header=("text", "label"), **options):
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter, **options).writerows([header, *rows])
    return file.getvalue()


def read(path, columns=("text", "label"), **options):
    rows = open_rows(path, reading=TableReading(**options))
    return list(rows.read(columns)), rows


# Quotes


@pytest.mark.parametrize("name", ["rows.tsv", "rows.csv", "rows.txt"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_two_stray_quotes_swallow_no_rows(tmp_path, name, delimiter, end):
    rows = with_stray_quotes()
    found, source = read(write(tmp_path / name, as_lines(rows, delimiter, end=end)))
    assert found == rows
    assert any("its quotes belong to the text (--quote double reads them as quotes" in note for note in source.notes)


@pytest.mark.parametrize(("opens", "closes"), [(0, 1), (0, 19), (18, 19)])
def test_stray_quotes_may_stand_in_the_first_and_the_last_row(tmp_path, opens, closes):
    rows = with_stray_quotes(opens=opens, closes=closes)
    assert read(write(tmp_path / "rows.csv", as_lines(rows, ",")))[0] == rows


def test_stray_quotes_in_the_last_column_swallow_no_rows(tmp_path):
    rows = [(label, text) for text, label in with_stray_quotes()]
    path = write(tmp_path / "rows.tsv", as_lines(rows, "\t", header="label,text"))
    assert read(path, ("label", "text"))[0] == rows


def test_stray_quotes_beside_numbers_that_no_other_row_has_swallow_no_rows(tmp_path):
    rows = [(text, f"{number}.5") for number, (text, _) in enumerate(with_stray_quotes())]
    assert read(write(tmp_path / "rows.csv", as_lines(rows, ",", header="text,id")), ("text", "id"))[0] == rows


def test_one_quote_that_is_never_closed_is_text(tmp_path):
    rows = [*PLAIN[:5], ('"never closed', "pos"), *PLAIN[5:]]
    assert read(write(tmp_path / "rows.tsv", as_lines(rows, "\t")))[0] == rows


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t"), (".csv", ";")])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_quoted_fields_are_read_with_their_line_breaks(tmp_path, suffix, delimiter, quoting, order):
    rows = [*PLAIN, ("bad, long\nfilm", "neg"), ('a "so so"\r\n\r\nfilm; no,\tno', "pos"), ("one, two\nthree", "neg")]
    shuffled = [tuple(row[at] for at in order) for row in rows]
    header = tuple(("text", "label")[at] for at in order)
    path = write(tmp_path / f"rows{suffix}", as_csv(shuffled, delimiter, header, quoting=quoting))
    found, source = read(path)
    assert found == rows
    words = "3 rows go over several lines in a quoted field, the first is row 21 (lines 22 to 23)"
    assert any(words in note for note in source.notes)


def test_lines_with_as_many_commas_as_the_header_may_be_one_field(tmp_path):
    rows = [("Dear all, hello\nbye", "pos"), ("b", "neg")]
    assert read(write(tmp_path / "rows.csv", as_csv(rows)))[0] == rows


def test_a_quoted_field_that_holds_rows_is_refused_with_its_lines(tmp_path):
    text = 'text,label\n"well, yes",pos\n"I said no,neg\nfine,pos\nhe said so",neg\n'
    path = write(tmp_path / "rows.csv", text)
    words = r"row 2 \(header not counted\) spans lines 3 to 5 if .*like rows by themselves; --quote none .*--quote dou"
    with pytest.raises(TableError, match=words):
        open_rows(path)
    assert read(path, quote="double")[0][1] == ("I said no,neg\nfine,pos\nhe said so", "neg")


def test_a_field_over_lines_in_a_table_of_one_column_is_refused_where_nothing_tells(tmp_path):
    path = write(tmp_path / "rows.csv", 'text\nc\n"two\nlines"\nd\n')
    with pytest.raises(TableError, match="row 2 .*lines 3 to 4 .*--quote none"):
        open_rows(path)
    assert read(path, ["text"], quote="none")[0] == [("c",), ('"two',), ('lines"',), ("d",)]
    assert read(path, ["text"], quote='"')[0] == [("c",), ("two\nlines",), ("d",)]
    assert read(write(path, 'text\n"a, b"\n"two\nlines"\nd\n'), ["text"])[0] == [("a, b",), ("two\nlines",), ("d",)]


def test_a_backslash_before_a_quote_is_understood(tmp_path):
    text = 'text,label\n"she said \\"no\\", twice",neg\n"a, b",pos\n'
    found, source = read(write(tmp_path / "rows.csv", text))
    assert found == [('she said "no", twice', "neg"), ("a, b", "pos")]
    assert any("a backslash escapes a quote that is text" in note for note in source.notes)


def test_rows_after_a_quote_that_is_never_closed_are_no_torn_end(tmp_path):
    rows = as_lines([('"well, no"', "neg"), ('"never closed', "neg"), *PLAIN], ",")
    with pytest.raises(TableError, match=r"row 2 .* spans lines 3 to 23 if .* look like rows by themselves"):
        read(write(tmp_path / "rows.csv", rows), skip_torn_end=True)


def test_a_carriage_return_within_a_line_stays_in_its_field(tmp_path):
    assert read(write(tmp_path / "rows.csv", "text,label\na\rb,pos\nc,neg\n"))[0] == [("a\rb", "pos"), ("c", "neg")]


def test_single_quotes_are_found(tmp_path):
    rows = [("Sport", 'Der Ball; sagt "er", rollt'), ("Etat", "Geld, ''viel''"), ("Sport", "Tor\nTor")]
    text = "".join(f"{label};'{content}'\n" for label, content in rows)
    found, source = read(write(tmp_path / "rows.csv", text), ("1", "2"), no_header=True)
    assert found == [(label, content.replace("''", "'")) for label, content in rows]
    assert any("its fields are in single quotes" in note for note in source.notes)


def test_an_apostrophe_is_no_mark(tmp_path):
    rows = [("'tis a film", "pos"), ("dull", "neg"), ("the dogs' film", "pos")]
    assert read(write(tmp_path / "rows.csv", as_lines(rows, ",")))[0] == rows


# Delimiter and header


@pytest.mark.parametrize(("delimiter", "words"), [(";", "semicolons"), ("\t", "tabs"), ("|", "pipes")])
def test_the_delimiter_is_found_whatever_the_suffix_says(tmp_path, delimiter, words):
    rows = [("one, two", "a"), ("x; y | z\tw", "b"), ("three, four", "a")]
    found, source = read(write(tmp_path / "rows.csv", as_csv(rows, delimiter)))
    assert found == rows
    assert f"{tmp_path / 'rows.csv'}: {words} separate its fields" in source.notes


def test_a_table_with_commas_keeps_them_whatever_its_texts_hold(tmp_path):
    rows = [("a; b; c", "x;y"), ("d | e", "z;w")] * 10
    found, source = read(write(tmp_path / "rows.csv", as_lines(rows, ",")))
    assert (found, source.notes, source.plain) == (rows, [], True)


def test_punctuation_that_stands_in_every_row_separates_nothing(tmp_path):
    rows = [(LABELS[number % 2], f"a film, number {number} – long; dull") for number in range(20)]
    text = "".join(f"{label};'{text}'\n" for label, text in rows)
    assert read(write(tmp_path / "rows.csv", text), ("1", "2"), no_header=True)[0] == rows
    text = "".join(f"{label}\t{text}\n" for label, text in rows)
    assert read(write(tmp_path / "rows.csv", text), ("1", "2"), no_header=True)[0] == rows


def test_two_delimiters_in_every_row_without_a_header_are_refused(tmp_path):
    path = write(tmp_path / "rows.csv", "good;1,5\nbad;2,5\ngood;3,5\n")
    with pytest.raises(
        TableError, match="commas and semicolons are equally frequent in every row; .*--delimiter comma or --del"
    ):
        read(path, no_header=True)
    assert read(path, ("1", "2"), no_header=True, delimiter=";")[0][0] == ("good", "1,5")


@pytest.mark.parametrize("line", ["sep=,\r\n", "sep=;\n", '"sep=\t"\r\n'])
def test_excels_first_line_names_the_delimiter(tmp_path, line):
    delimiter = line.strip('"\r\n')[-1] if "\t" not in line else "\t"
    assert read(write(tmp_path / "rows.csv", line + as_lines(PLAIN, delimiter)))[0] == PLAIN


@pytest.mark.parametrize("given", ["\t", "tab"])
def test_a_delimiter_that_is_named_is_taken(tmp_path, given):
    path = write(tmp_path / "rows.csv", "text,x\tlabel,y\na,b\tc,d\n")
    assert read(path, ("text,x", "label,y"), delimiter=given)[0] == [("a,b", "c,d")]


def test_columns_without_a_header_are_named_by_number(tmp_path):
    path = write(tmp_path / "rows", as_lines([(label, text) for text, label in PLAIN], "\t", header=None))
    assert read(path, ("2", "1"), no_header=True)[0] == PLAIN


def test_columns_without_a_name_are_named_by_number_and_disturb_nobody(tmp_path):
    path = write(tmp_path / "rows.csv", "label,text,,,\nham,hello,,x,\nspam,yo,,y,\n")
    found, source = read(path, ("text", "4"))
    assert found == [("hello", "x"), ("yo", "y")]
    assert source.columns == ["label", "text", "3", "4", "5"]


def test_a_web_page_is_refused(tmp_path):
    with pytest.raises(TableError, match="is a web page .HTML. and not a table; download the file itself"):
        open_rows(write(tmp_path / "rows.csv", "\n <!DOCTYPE html>\n<html>\n"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delimiter": ",,"}, "delimiter must be one character, or tab, comma, semicolon, pipe or space, got ',,'"),
        ({"delimiter": "\n"}, "delimiter must be one character"),
        ({"quote": "no"}, "quote must be double, single, none or one character, got 'no'"),
        ({"quote": ";", "delimiter": ";"}, "quote must be double, single, none or one character, got ';'"),
        ({"encoding": "klingon"}, "encoding 'klingon' is not known; usual ones are utf-8, cp1252"),
        ({"encoding": "base64"}, "encoding 'base64' is not known"),
        ({"encoding": "punycode"}, "encoding 'punycode' is not for files"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(tmp_path, options, words):
    with pytest.raises(TableError, match=words):
        read(write(tmp_path / "rows.csv", "text,label\na,b\n"), **options)


# A torn end


@pytest.mark.parametrize("tail", ['"torn, te', "torn te", '"torn\nte'])
def test_a_torn_last_record_is_named_with_line_and_byte_and_left_out_on_request(tmp_path, tail):
    path = write(tmp_path / "rows.csv", 'text,label\n"ä, b",x\nc,y\n' + tail)
    with pytest.raises(
        TableError, match=r"row 3 \(header not counted\), line 4, byte 25, .*--skip_torn_end true leaves"
    ):
        read(path)
    found, source = read(path, skip_torn_end=True)
    assert found == [("ä, b", "x"), ("c", "y")]
    assert any(
        "row 3 (header not counted) is cut short at the end of the file (line 4) and was" in n for n in source.notes
    )


@pytest.mark.parametrize("end", ["c,", "c,y\nd,"])
def test_a_last_row_that_ends_with_its_delimiter_is_told_and_left_out_on_request(tmp_path, end):
    rows = end.count("\n") + 3
    path = write(tmp_path / "rows.csv", "text,label\na,x\nb,y\n" + end)
    found, source = read(path)
    assert (len(found), found[-1][1]) == (rows, "")
    assert source.notes == [
        f"{path}, row {rows} (header not counted), the last, ends with an empty field and without a line end, as where "
        "a file is cut short; --skip_torn_end true leaves it out"
    ]
    assert read(path, skip_torn_end=True)[0] == found[:-1]
    with pytest.raises(TableError, match=rf"row {rows} .*the label is empty.*\(.*as where a file is cut short; --skip"):
        load_table(str(path))
    assert len(load_table(str(path), reading=TableReading(skip_torn_end=True))) == rows - 1


def test_empty_last_fields_that_are_usual_are_not_told(tmp_path):
    for text in ("text,x\na,\nb,", "text,x\na,1\nb,\n"):
        assert read(write(tmp_path / "rows.csv", text), ("text", "x"))[1].notes == []


def test_a_table_that_r_wrote_with_spaces_is_read_on_request(tmp_path):
    path = write(tmp_path / "rows.txt", '"text" "label"\n"a, b" "x"\n"c \\"d\\"" "y"\n')
    assert read(path, delimiter="space")[0] == [("a, b", "x"), ('c "d"', "y")]
    path = write(tmp_path / "rows.txt", '"text" "label"\n"1" "a, b" "x"\n"2" "c" "y"\n')
    with pytest.raises(TableError, match="one field more than the header, .*as R writes it, without row.names=FALSE"):
        read(path, delimiter="space")


def test_a_short_row_that_is_not_the_last_is_not_left_out(tmp_path):
    path = write(tmp_path / "rows.csv", "text,label\na\nb,x\n")
    with pytest.raises(TableError, match="row 1 .* has 1 fields, the header has 2; put a field"):
        read(path, skip_torn_end=True)


def test_blank_lines_between_texts_of_a_single_column_are_told(tmp_path):
    found, source = read(write(tmp_path / "rows.csv", "text\na\n\n\nb\n\n"), ["text"])
    assert found == [("a",), ("b",)]
    assert source.notes == [
        f'{tmp_path}/rows.csv: 2 blank lines between the rows were passed over; write "" for an empty text'
    ]
