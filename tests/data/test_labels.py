"""Labels: which spellings are one, what lists as text mean, and how a column's cells become names and types."""

import json

import datasets
import numpy as np
import pytest

from ulmfit_pipe.data import labels
from ulmfit_pipe.data.labels import (
    LONGEST_NORMALIZED,
    Place,
    clean_label,
    find_lookalikes,
    is_given,
    label_name,
    label_type_of,
    list_apart,
    list_labels,
    mixes_scripts,
    parse_list,
    read_label_names,
    shown_label,
    typed_label,
)
from ulmfit_pipe.data.tables.tables import TableError, load_table

HERE = Place("t.csv", 3, "label")


def table_of(tmp_path, *given, typed=False, **settings):
    """Write labels beside texts, as JSONL or CSV, and load them."""
    rows = [{"text": f"text {number}", "label": label} for number, label in enumerate(given)]
    path = tmp_path / ("table.jsonl" if typed else "table.csv")
    if typed:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        cells = ['"' + str(label).replace('"', '""') + '"' for label in given]
        path.write_text("text,label\n" + "".join(f"text {n},{cell}\n" for n, cell in enumerate(cells)), "utf-8")
    return load_table(path, **settings)


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize(
    "other",
    ["DESC ", " DESC", "DESC\xa0", "DESC\u200b", "\ufeffDESC", "DESC\u2060", "\u3000DESC\t", "DESC\u200e", "DESC\r\n"]
    + ["\u061cDESC", "DESC\u034f", "DESC\u206c"],
)
def test_invisible_ends_make_no_class_of_their_own(tmp_path, other, typed):
    table = table_of(tmp_path, "DESC", other, "ENTY", typed=typed)
    assert table.features["label"].names == ["DESC", "ENTY"]
    assert table["label"][:] == [0, 0, 1]


def test_two_unicode_forms_of_a_name_are_one_class(tmp_path):
    table = table_of(tmp_path, "caf\u00e9", "cafe\u0301", "tea")
    assert table.features["label"].names == ["caf\u00e9", "tea"]


def test_the_names_that_training_knows_are_compared_clean(tmp_path):
    table = table_of(tmp_path, "good ", "bad\u200b", "cafe\u0301", label_names=["bad", "good", "caf\u00e9"])
    assert table["label"][:] == [1, 0, 2]
    old = table_of(tmp_path, "good", "good ", label_names=["good", "good "])  # an older model's two classes
    assert old["label"][:] == [0, 1]
    assert table_of(tmp_path, "good", label_names=["bad", "good "])["label"][:] == [1]


def test_marks_inside_a_name_stay():
    for name in ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u2764\ufe0f"):
        assert clean_label(f" {name}\u200b") == name


def test_a_long_run_of_accents_is_not_normalized(monkeypatch):
    name = "a" + "\u0301\u0323\u0300" * LONGEST_NORMALIZED
    monkeypatch.setattr(labels, "unicodedata", None)  # normalization of such a name takes quadratic time
    assert clean_label(name) == name
    assert find_lookalikes([name, name + "b"]) == []


@pytest.mark.parametrize(
    "names",
    [
        ["Pos", "pos", "POS"],
        ["FALSE", "False"],
        ["very good", "very  good", "very_good", "very-good", "very\xa0good"],
        ["DESC", '"DESC"', "\u201cDESC\u201d", "'DESC"],
        ["DESC", "\uff24\uff25\uff33\uff23", "DE\u200bSC"],
        ["\u8fbb", "\u8fbb\U000e0101"],
        ["1", "01", "\uff11", "+1"],
        ["stra\u00dfe", "STRASSE"],
        ["good", "g\u043eod", "G\u03bfOD"],
        ["\u0412\u0410D", "BAD"],
    ],
)
def test_labels_that_look_alike_are_found(names):
    assert find_lookalikes(["other", *names, "-1", "C++", "C"]) == [names]


@pytest.mark.parametrize("names", [["C", "C++", "C#"], ["-1", "1"], ["a", "\u00e1"], ["A-", "A", "A+"], ["5*", "5"]])
def test_labels_that_differ_are_no_lookalikes(names):
    assert find_lookalikes(names) == []


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("['x', 'y']", ["x", "y"]),
        ('["x", "y\\u00e9"]', ["x", "y\u00e9"]),
        ("[]", []),
        ("[ ]", []),
        ("['x' 'y']", ["x", "y"]),
        ("('x',)", ["x"]),
        ("{'a', 'b'}", ["a", "b"]),
        ("[1, 2]", [1, 2]),
        ("[0 3]", [0, 3]),
        ("[\"it's\", 'b']", ["it's", "b"]),
        ("[very good, bad]", ["very good", "bad"]),
        ("array(['x'], dtype=object)", ["x"]),
        ("array([1, 2])", [1, 2]),
        ("set()", []),
        ("frozenset({'a', 'b'})", ["a", "b"]),
        ("set(x)", None),
        ("[URGENT]", None),
        ("[very good]", None),
        ("(none)", None),
        ("[['x']]", None),
        ("x, y", None),
        ("['x", None),
    ],
)
def test_lists_written_as_text_are_read(text, items):
    assert parse_list(text) == items


@pytest.mark.parametrize(
    "cell", ["['x', 'y']", '["x"]', "[]", "('x',)", "{'x', 'y'}", "['x' 'y']", "[['x']]", "array(['x'])", "set()"]
)
@pytest.mark.parametrize("typed", [True, False])
def test_a_list_as_text_is_no_class(tmp_path, cell, typed):
    with pytest.raises(TableError, match="row 2 .*the label is the text of a list, .*; set multi_label=True if a text"):
        table_of(tmp_path, "x", cell, typed=typed)


@pytest.mark.parametrize("separator", [None, ",", "|"])
def test_lists_as_text_are_several_labels(tmp_path, separator):
    cells = ["['x', 'y']", '["x"]', "[]", "['y' 'z']"]
    table = table_of(tmp_path, *cells, multi_label=True, label_separator=separator)
    assert table.features["label"].feature.names == ["x", "y", "z"]
    assert table["label"][:] == [[0, 1], [0], [], [1, 2]]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a\ud83d", "character 1 of the label .* is half of a surrogate pair; remove it"),
        ("a\0b", "holds a NUL byte; remove it, for example with tr -d"),
        ("\u200b \xa0", "the label is empty or only spaces"),
        (np.float64("nan"), "there is no label"),
        (np.array(["x"]), "the label is a list"),
    ],
)
def test_what_is_no_label_is_refused(value, words):
    with pytest.raises(TableError, match=r"t.csv, row 3 \(header not counted\), column 'label': .*" + words):
        label_name(value, HERE, untyped=False)


@pytest.mark.parametrize(
    ("labels", "typed", "kind"),
    [
        ([0, 1], True, "int"),
        ([-1, 10], True, "int"),
        ([True, False], True, "bool"),
        (["0", "1"], True, None),
        ([0, "1"], True, None),
        (["0", "1"], False, "int"),
        (["0", "01"], False, None),
        (["0", "x"], False, None),
        (["True", "False"], False, None),
        ([[0], [1, 2]], True, "int"),
        (["[0]", "[1, 2]"], False, "int"),
    ],
)
def test_the_type_of_labels_is_kept(tmp_path, labels, typed, kind):
    several = str(labels[0]).startswith("[")
    feature = table_of(tmp_path, *labels, typed=typed, multi_label=several).features["label"]
    assert label_type_of(feature) == kind
    names = getattr(feature, "feature", feature).names
    plain = [label for one in labels for label in (one if isinstance(one, list) else [one])]
    if kind and typed:
        assert {typed_label(name, kind) for name in names} == set(plain)


def test_the_type_survives_selection_and_a_saved_folder(tmp_path):
    table = table_of(tmp_path, 3, 5, 3, typed=True)
    table.select([0, 1]).save_to_disk(tmp_path / "saved")
    assert label_type_of(datasets.load_from_disk(tmp_path / "saved").features["label"]) == "int"


def test_what_a_terminal_would_obey_is_escaped():
    assert shown_label("go\n\x1b[31mod\u200b") == "go\\n\\x1b[31mod\\u200b"
    assert shown_label("\u79ef\u6781") == "\u79ef\u6781"
    assert shown_label("x" * 70) == "x" * 60 + "..."
    assert list_labels([str(number) for number in range(25)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 17 more"


def test_of_two_long_lists_the_first_name_that_differs_is_shown():
    names = [f"class {number}" for number in range(5000)]
    assert list_apart(names, [*names[:3000], "other", *names[3001:]]) == tuple(
        "class 0, class 1, class 2, class 3, class 4, class 5, class 6, class 7 and 4,992 more (number 3,001 is "
        f"{name})"
        for name in ("class 3000", "other")
    )
    assert list_apart(["a", "b"], ["a", "c"]) == ("a, b", "a, c")
    assert list_apart(["a"], names)[0] == "a"
    assert list_apart(names, names[:9])[0].endswith("7 and 4,992 more (number 10 is class 9)")


# Several columns, one label each


def columns_of(tmp_path, *rows, **settings):
    path = tmp_path / "columns.csv"
    path.write_text("text,toxic,obscene\n" + "".join(f"text {n},{row}\n" for n, row in enumerate(rows)))
    return load_table(path, label_column=["toxic", "obscene"], **settings)


@pytest.mark.parametrize(
    "rows",
    [("0,1", "1,1", "0,0"), ("false,true", "TRUE,True", "False,f"), ("0.0,1.0", "1.0,1", "0, 0")],
)
def test_several_columns_are_one_label_each(tmp_path, rows):
    table = columns_of(tmp_path, *rows)
    assert table.features["label"].feature.names == ["toxic", "obscene"]
    assert table["label"][:] == [[1], [0, 1], []]


def test_votes_count_from_a_threshold_on(tmp_path):
    assert columns_of(tmp_path, "0,3", "2,1.5", label_threshold=2)["label"][:] == [[1], [0]]
    with pytest.raises(TableError, match="column 'obscene': .* must hold 0 and 1, got 3.0; for votes"):
        columns_of(tmp_path, "0,3")


@pytest.mark.parametrize(
    ("value", "words"),
    [("", "there is no label; write 0 or 1"), (None, "there is no label"), ("joy", "got 'joy'; for a column of names")],
)
def test_a_cell_that_says_neither_is_named(value, words):
    with pytest.raises(TableError, match=words):
        is_given(value, HERE, None)
    with pytest.raises(TableError, match="must hold 0 and 1, got list"):
        is_given([1], HERE, None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"label_separator": "|"}, "splits the cells of one column; several label columns hold 0 and 1"),
        ({"label_column": "toxic", "label_threshold": 2.0}, "label_threshold=2.0 is for several label columns"),
        ({"label_column": ["toxic", "toxic"]}, "label_column names 'toxic' twice"),
    ],
)
def test_settings_of_several_columns_that_contradict_are_refused(tmp_path, settings, words):
    path = tmp_path / "columns.csv"
    path.write_text("text,toxic,obscene\na,0,1\n")
    with pytest.raises(ValueError, match=words):
        load_table(path, **{"label_column": ["toxic", "obscene"], **settings})


# Names for values


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.json", '{"0": "neg", "1": "pos"}'),
        ("names.json", '["neg", "pos"]'),
        ("names.csv", "value,name\n0,neg\n1, pos\n"),
        ("names.tsv", "\ufeff0\tneg\n1\tpos\n"),
    ],
)
def test_a_file_names_the_values_of_a_column(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    names = read_label_names(tmp_path / name)
    table = table_of(tmp_path, 1, 0, 1, typed=True, label_mapping=names)
    assert table.features["label"].names == ["neg", "pos"]
    assert label_type_of(table.features["label"]) is None
    assert table["label"][:] == [1, 0, 1]
    assert table_of(tmp_path, "1 ", "0", label_mapping=names, label_names=["pos", "neg"])["label"][:] == [0, 1]


def test_a_value_without_a_name_is_named(tmp_path):
    with pytest.raises(TableError, match="row 2 .*the label '2' has no name in label_names, which names 0, 1"):
        table_of(tmp_path, 0, 2, typed=True, label_mapping=read_label_names({0: "neg", 1: "pos"}))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("n.json", "{", "is not JSON"),
        ("n.json", "3", "must hold an object such as"),
        ("n.json", "{}", "names no label"),
        ("n.csv", "0,neg,x\n", "line 1 has 3 fields; write a value and its name in each row"),
        ("n.csv", "0,neg\n0,pos\n", "the value '0' has two names, 'neg' and 'pos'"),
        ("n.csv", "0,\n", "the value '0' has the name ''; both must be filled in"),
        ("n.csv", None, "cannot be read .*; give a JSON or CSV file"),
    ],
)
def test_a_file_of_names_that_cannot_be_used_is_named(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(TableError, match=words):
        read_label_names(tmp_path / name)


def test_words_that_mix_scripts_are_known():
    mixed = ["g\u043eod", "\u0421at"]
    assert [name for name in (*mixed, "good", "\u043d\u0435\u0442 no", "IFN\u03b3") if mixes_scripts(name)] == mixed


def test_whole_numbers_and_bools_are_not_mixed(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": true}\n')
    with pytest.raises(TableError, match="row 2 .*the label is True, but labels mix whole numbers with true and"):
        load_table(tmp_path / "t.jsonl")


def test_a_file_of_label_names_may_lie_in_the_home_folder_and_needs_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "n.json").write_text('{"0": "neg", "1": "pos"}')
    assert read_label_names("~/n.json") == {"0": "neg", "1": "pos"}
    with pytest.raises(TableError, match="label_names is empty, got ' '; give a JSON or CSV file, or leave it out"):
        read_label_names(" ")
