"""Random right CSVs keep their fields over several lines, random tables of text with stray quotes all their rows."""

import csv
import io
import random

import pytest

from ulmfit_pipe.data.tables.readers import TableError, open_rows
from ulmfit_pipe.data.tables.row_sources import TableReading

WORDS = "the film was good bad very long short he she said went home dog cat tree price of and or not is".split()
NAMES = ["Anna", "Bob", "Carl", "Dora"]
SEEDS = 300
MOST_REFUSED = 0.03 * SEEDS  # tables of a single column aside, in which lines have nothing to compare


def words(rng, most=8):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


def address(rng):
    streets = [f"{rng.randint(1, 200)},{rng.choice(['', ' ', ' '])}Main St" for _ in range(rng.randint(1, 3))]
    return "\n".join([words(rng, 2), *streets, f"Berlin, {rng.randint(10000, 99999)}"])


def code(rng):
    lines = ["def f(a, b):", "for (i=0; i<3; i++) {", "\treturn a, b", "x = [1,2];", "", "a|b", 's = "q"']
    return "\n".join(rng.choice(lines) for _ in range(rng.randint(1, 6)))


def dialog(rng):
    lines = [f'"{words(rng)}", {rng.choice(NAMES)} said', f"- {words(rng)}, {words(rng)}.", f"Bob, {words(rng)}", ""]
    return "\n".join(rng.choice(lines) for _ in range(rng.randint(1, 5)))


def numbers(rng):
    lines = [f"{rng.randint(1, 9)},{rng.randint(100, 999)}", f"{rng.randint(0, 99)}", f"{rng.random():.2f}; 3"]
    return "\n".join(rng.choice(lines) for _ in range(rng.randint(1, 4)))


def cells(rng):
    """A function from a row's number to the value of a column that is not the text."""
    names = rng.choice([["pos", "neg"], ["0", "1"], list("12345"), NAMES])
    start, most = rng.randint(0, 5000), 10 ** rng.randint(1, 6)
    return rng.choice(
        [
            lambda _: rng.choice(names),
            lambda number: str(number + 1),
            lambda number: str(start + 3 * number),
            lambda _: str(rng.randint(0, most)),
            lambda _: f"{rng.random():.3f}",
            lambda _: words(rng),
        ]
    )


def random_rows(rng, texts):
    width = rng.randint(1, 6)
    columns = [cells(rng) for _ in range(width)]
    columns[rng.randrange(width)] = lambda _: rng.choice(texts)(rng)
    rows = [[cell(number) for cell in columns] for number in range(rng.choice([1, 2, 5, 20, 60]))]
    return [f"c{at}" for at in range(width)], [row for row in rows if any(row)]


def right_table(rng):
    """A table as Python's writer puts it into a file, with its lines and texts ending alike or not."""
    header, rows = random_rows(
        rng, rng.choice([[address], [code], [dialog], [numbers], [words, address, dialog, code]])
    )
    if rng.random() < 0.2:
        rows = [[value.replace("\n", "\r\n") for value in row] for row in rows]
    file = io.StringIO()
    delimiter, end = rng.choice(",,,\t;|"), rng.choice(["\n", "\r\n"])
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
    csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows([header, *rows])
    return file.getvalue(), delimiter, header, rows


def stray_table(rng):
    """A table that is written without marks, whose texts hold quotes."""
    header, rows = random_rows(rng, [words])
    for _ in range(rng.choice([1, 1, 2, 3])):
        at, one, other = rng.randrange(len(header)), *sorted(rng.choices(range(len(rows)), k=2))
        style = rng.randrange(3)
        if style == 0:
            rows[one][at], rows[other][at] = '"' + rows[one][at], rows[other][at] + '"'
        elif style == 1:
            rows[one][at] = f'{words(rng)} "{rows[one][at]}" {words(rng)}'
        else:
            rows[one][at] = rng.choice(['"', ""]) + rows[one][at] + rng.choice(['"', ""])
    delimiter, end = rng.choice(",,\t\t;|"), rng.choice(["\n", "\r\n"])
    return "".join(delimiter.join(row) + end for row in [header, *rows]), delimiter, header, rows


def read(path, text, delimiter):
    path.write_bytes(text.encode())
    rows = open_rows(path, reading=TableReading(delimiter=delimiter))
    return list(rows.read(rows.columns))


@pytest.mark.parametrize("make", [right_table, stray_table])
def test_no_random_table_has_another_number_of_rows_without_a_word(tmp_path, make):
    refused = 0
    for seed in range(SEEDS):
        text, delimiter, header, rows = make(random.Random(seed))
        try:
            found = read(tmp_path / "rows.csv", text, delimiter)
        except TableError as error:
            assert "--quote none" in str(error), (seed, error)
            refused += len(header) > 1
            continue
        assert len(found) == len(rows), seed
        if make is right_table:
            assert found == [tuple(row) for row in rows], seed
    assert refused <= MOST_REFUSED


ADDRESSES = [f"Shop {number}\n{10 + 7 * number % 30}, Main St" for number in range(14)]


def addresses(ids, texts=ADDRESSES):
    rows = [f'{one},"{text}"' if "\n" in text else f"{one},{text}" for one, text in zip(ids, texts, strict=True)]
    return "id,text\n" + "\n".join(rows) + "\n"


def test_lines_of_a_field_that_begin_with_numbers_are_no_rows(tmp_path):
    texts = [*ADDRESSES, *(f"shop {number}" for number in range(46))]
    found = read(tmp_path / "rows.csv", addresses(range(1, 61), texts), None)
    assert found == [(str(number), text) for number, text in enumerate(texts, start=1)]


def test_numbers_alone_decide_nothing_and_both_row_counts_and_options_are_named(tmp_path):
    text = 'id,text\n40,dull\n7,"Shop\n12,Main St\n9,Hill Rd"\n31,good\n'
    words = (
        r"row 2 \(header not counted\) spans lines 3 to 5 if its quotes delimit a field, but .*; --quote "
        r"none reads quotes as text and a line as a row \(5 rows\), --quote double .* as one field \(3 rows\)$"
    )
    with pytest.raises(TableError, match=words):
        read(tmp_path / "rows.csv", text, None)
    for quote, count in (("none", 5), ("double", 3)):
        rows = open_rows(tmp_path / "rows.csv", reading=TableReading(quote=quote))
        assert len(list(rows.read(rows.columns))) == count


def test_a_table_cut_within_a_field_of_several_lines_is_not_read_line_by_line(tmp_path):
    text = addresses(range(1, 15))
    with pytest.raises(TableError, match="row 14 .*an unmatched quote, --quote none .* or --skip_torn_end true"):
        read(tmp_path / "rows.csv", text[: text.rindex("Main")], None)


def test_backslashes_before_quotes_in_fields_over_lines_are_understood(tmp_path):
    texts = [f'Shop {number}, the \\"best\\"\n12, Main St' for number in range(6)]
    found = read(tmp_path / "rows.csv", addresses(range(1, 7), texts), None)
    assert found == [(str(number), text.replace("\\", "")) for number, text in enumerate(texts, start=1)]


def broken_table(rng, how):
    """A table all of whose texts are quoted, with one row that is torn, or broken by a quote that is not doubled."""
    label_first, end = rng.random() < 0.5, rng.choice(["\n", "\r\n"])
    count, names = rng.choice([3, 4, 20, 60]), rng.choice([["pos", "neg"], ["0", "1"]])
    header = '"label","text"' if rng.random() < 0.5 else "label,text"
    lines = []
    for number in range(count):
        label, text = f'"{rng.choice(names)}"', f'"{words(rng)} {number}"'
        lines.append((label, text))
    at = rng.randrange(count)
    if how == "broken":
        label, text = lines[at]
        first, rest = text[1:-1].split(" ", 1)
        lines[at] = label, rng.choice([f'"{first} "{rest}""', f'"{first} {rest}', f'"{first}" {rest}"'])
    if not label_first:
        header, lines = ",".join(reversed(header.split(","))), [line[::-1] for line in lines]
    text = "".join(",".join(line) + end for line in lines)
    if how == "torn":
        text = text[: len(text) - len(end) - rng.randint(1, len(",".join(lines[-1])) - 1)]
        at = count - 1
    return header + end + text, at + 1, count


@pytest.mark.parametrize("how", ["torn", "broken"])
def test_one_bad_row_of_a_quoted_table_is_named_and_no_quote_becomes_text(tmp_path, how):
    for seed in range(SEEDS):
        text, row, count = broken_table(random.Random(seed), how)
        try:
            found = read(tmp_path / "rows.csv", text, None)
        except TableError as error:
            assert f", row {row} (header not counted)" in str(error), (seed, error)
            if how == "torn":
                rows = open_rows(tmp_path / "rows.csv", reading=TableReading(skip_torn_end=True))
                assert len(list(rows.read(["text", "label"]))) == count - 1, seed
            continue
        assert how == "torn" and len(found) == count, seed  # cut behind a delimiter, which is noted
        assert not any('"' in value for values in found for value in values), seed


def test_a_torn_label_is_refused_by_row_and_line(tmp_path):
    text = "text,label\n" + "".join(f'"t{number}","pos"\n' for number in range(1, 61))
    with pytest.raises(TableError, match=r"row 60 .*, line 61, byte \d+, is not valid CSV.*--skip_torn_end true"):
        read(tmp_path / "rows.csv", text[:-3], None)
