"""Checked tables: what is accepted and how it comes out, and what each refusal says."""

import json
import logging
import tracemalloc

import pandas as pd
import pytest

from ulmfit_pipe.data.images.files import ImageError, load_images
from ulmfit_pipe.data.labels import sort_label_names
from ulmfit_pipe.data.splits import split_train_validation
from ulmfit_pipe.data.tables.tables import TableError, load_table
from ulmfit_pipe.stages.python_input import check_texts
from ulmfit_pipe.text.predict.columns import is_empty


@pytest.fixture
def csv_file(tmp_path):
    def write(text, name="table.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def json_file(tmp_path):
    def write(*rows):
        path = tmp_path / "table.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def test_texts_and_labels_come_out_with_names(csv_file):
    table = load_table(csv_file("text,label,more\ngood,pos,1\nbad,neg,2\nfine,pos,3\n"))
    assert table.column_names == ["text", "label"]
    assert table["text"][:] == ["good", "bad", "fine"]
    assert table.features["label"].names == ["neg", "pos"]
    assert table["label"][:] == [1, 0, 1]


def test_integer_labels_are_sorted_by_value(csv_file):
    table = load_table(csv_file("text,label\na,10\nb,2\nc,-1\n"))
    assert table.features["label"].names == ["-1", "2", "10"]
    assert table["label"][:] == [2, 1, 0]
    assert sort_label_names(["b", "10", "2"]) == ["10", "2", "b"]


def test_integers_and_bools_of_a_typed_file_become_names(json_file):
    assert load_table(json_file({"text": "a", "label": 3}, {"text": "b", "label": 11})).features["label"].names == [
        "3",
        "11",
    ]
    table = load_table(json_file({"text": "a", "label": True}, {"text": "b", "label": False}))
    assert table.features["label"].names == ["False", "True"]
    assert table["label"][:] == [1, 0]


def test_names_that_training_knows_keep_their_numbers(csv_file):
    table = load_table(csv_file("text,label\na,pos\n"), label_names=["pos", "neg", "other"])
    assert table.features["label"].names == ["pos", "neg", "other"]
    assert table["label"][:] == [0]


def test_several_text_columns_are_joined_behind_marks(csv_file):
    path = csv_file("title,body,label\nOne,two,x\n,four,y\n")
    table = load_table(path, text_columns=["title", "body"])
    assert table["text"][:] == ["xxfld 1 One xxfld 2 two", "xxfld 1  xxfld 2 four"]


def test_a_list_of_files_is_one_table(csv_file):
    first, second = csv_file("text,label\na,x\n"), csv_file("label,text\ny,b\n", "more.csv")
    table = load_table([first, second])
    assert table["text"][:] == ["a", "b"]
    assert table["label"][:] == [0, 1]


def test_unlabelled_text_needs_no_label_and_blank_rows_are_passed_over(csv_file, caplog):
    path = csv_file('text\na\n" "\nb\n')
    with caplog.at_level(logging.INFO, logger="ulmfit_pipe"):
        table = load_table(path, label_column=None)
    assert table.column_names == ["text"]
    assert table["text"][:] == ["a", "b"]
    assert "table.csv: skipped 1 rows without text" in caplog.text


def test_numbers_in_a_typed_column_of_text_count_as_their_text(json_file):
    facts = []
    rows = [{"text": 3, "label": "x"}, {"text": "b", "label": "y"}, {"text": 2.5, "label": "y"}]
    assert load_table(json_file(*rows), facts=facts)["text"][:] == ["3", "b", "2.5"]
    assert [(file.rows, file.blank, file.numbers) for file in facts] == [(3, 0, 2)]
    with pytest.raises(TableError, match="row 1 .*the text is empty or only spaces"):
        load_table(json_file({"text": float("nan"), "label": "x"}))


def test_blank_rows_are_passed_over_with_their_labels_if_asked_for(csv_file):
    table = load_table(csv_file("text,label\na,x\n,y\nb,z\n"), skip_blank=True)
    assert table.features["label"].names == ["x", "z"]
    assert table["label"][:] == [0, 1]


def test_lists_of_labels_are_multi_label(json_file):
    path = json_file(
        {"text": "a", "label": ["x", "z"]}, {"text": "b", "label": []}, {"text": "c", "label": ["y", "x", "y"]}
    )
    table = load_table(path, multi_label=True)
    assert table.features["label"].feature.names == ["x", "y", "z"]
    assert table["label"][:] == [[0, 2], [], [0, 1]]


def test_joined_labels_are_multi_label(csv_file):
    table = load_table(csv_file("text,label\na,z; x\nb,\nc,y\n"), multi_label=True, label_separator=";")
    assert table.features["label"].feature.names == ["x", "y", "z"]
    assert table["label"][:] == [[0, 2], [], [1]]


def test_a_document_of_10_mb_is_loaded_whole(csv_file):
    table = load_table(csv_file("text,label\n" + "long words " * 1_000_000 + ",x\nb,y\n"))
    assert len(table["text"][0]) == 11_000_000
    assert table["label"][:] == [0, 1]


def test_memory_does_not_grow_with_the_table(csv_file):
    path = csv_file("text,label\n" + ("word " * 200 + ",x\n") * 20_000)  # 20 MB
    tracemalloc.start()
    table = load_table(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(table) == 20_000
    assert peak < 10e6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("text,label\na,x\n,y\n", r"row 2 \(header not counted\), column 'text': the text is empty or only spaces"),
        ('text,label\n" \t",y\n', "row 1 .*the text is empty or only spaces; fill it in, delete the row, or set skip"),
        ("text,label\na,x\nb\0c,y\n", "row 2 .*, column 'text': the text holds a NUL byte at character 1"),
        ("text,label\na,x\nb,\n", "row 2 .*, column 'label': the label is empty or only spaces"),
        ("text,label\na,1.0\n", "row 1 .*the label is the decimal number 1.0; labels must be names or integers"),
        ("text,label\na,0\nb,1e3\n", r"row 2 .*1e3.*table.dropna\(subset=\['label'\]\).astype\({'label': 'Int64'}\)"),
        ("text,label\na,0\nb,0.5\n", r"row 2 .*0.5; a classifier knows classes and no numbers between; make names or"),
        ("text,sentiment\na,x\n", "there is no column 'label'; there are text, sentiment"),
        ("text,labels\na,x\n", "there is no column 'label'; there are text, labels; did you mean 'labels'?"),
        ("Text,label\na,x\n", "no column 'text'; there are Text, label; did you mean 'Text'?"),
        ("text,label,text\na,x,b\n", "the column name 'text' is there twice"),
        ("text,label\n", "table.csv: the table is empty, it has no rows"),
    ],
)
def test_a_row_or_column_that_cannot_be_used_is_named(csv_file, text, words):
    with pytest.raises(TableError, match=words):
        load_table(csv_file(text))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": None, "label": "x"}, r"table.jsonl, row 2 .*, column 'text': the text is None; fill it in"),
        ({"label": "x"}, "row 2 .*the text is None"),
        ({"text": [3], "label": "x"}, "row 2 .*the text must be a string, got list"),
        ({"text": "a\ud800", "label": "x"}, "row 2 .*character 1 of the text is half of a surrogate pair"),
        ({"text": "b", "label": None}, "row 2 .*, column 'label': there is no label"),
        ({"text": "b"}, "row 2 .*, column 'label': there is no label"),
        ({"text": "b", "label": float("nan")}, "row 2 .*there is no label"),
        ({"text": "b", "label": 1.0}, "row 2 .*the label is the decimal number 1.0"),
        ({"text": "b", "label": ["x"]}, r"row 2 .*the label is a list, \['x'\]; set multi_label=True"),
        ({"text": "b", "label": {"x": 1}}, "row 2 .*the label must be a name or an integer, got dict"),
    ],
)
def test_a_value_of_the_wrong_type_is_named(json_file, row, words):
    with pytest.raises(TableError, match=words):
        load_table(json_file({"text": "a", "label": "x"}, row))


def test_several_blank_text_columns_are_named_together(csv_file):
    with pytest.raises(TableError, match="row 1 .*, column 'a, b': the text is empty"):
        load_table(csv_file("a,b,label\n,,x\n"), text_columns=["a", "b"])


def test_a_label_that_training_does_not_know_is_named(csv_file):
    path = csv_file("text,label\na,pos\nb,Neg\n")
    words = r"'Neg' is not among those that training knows \(neg, pos\); rename it, or train with it; .* mean 'neg'\?"
    with pytest.raises(TableError, match=words):
        load_table(path, label_names=["neg", "pos"])


def test_multi_label_needs_lists_or_a_separator(csv_file, json_file):
    with pytest.raises(TableError, match="row 1 .*multi_label=True needs a list of labels, got 'x;y'.*label_separator"):
        load_table(csv_file("text,label\na,x;y\n"), multi_label=True)
    with pytest.raises(TableError, match="row 1 .*there is no label; write an empty list"):
        load_table(json_file({"text": "a", "label": None}), multi_label=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"text_columns": []}, "text_columns is empty"),
        ({"label_column": "text"}, "'text' is named both as text and as label"),
        ({"label_separator": ";"}, "label_separator=';' needs multi_label=True"),
    ],
)
def test_settings_that_contradict_are_refused(csv_file, settings, words):
    with pytest.raises(ValueError, match=words):
        load_table(csv_file("text,label\na,x\n"), **settings)


def test_no_source_is_refused():
    with pytest.raises(ValueError, match="source is an empty list"):
        load_table([])


def test_what_is_no_table_is_refused_with_the_line_to_write():
    frame = pd.DataFrame({"text": ["a"], "label": ["b"]})
    with pytest.raises(TypeError, match=r"load_images takes .*, got DataFrame; write .* df.to_csv\("):
        load_images(frame)
    with pytest.raises(
        TypeError, match=r"split_train_validation must be .*, got DataFrame; load it first: load_table\(df"
    ):
        split_train_validation(frame)
    for columns in ({"text": ["a"]}, [{"text": ["a"]}]):
        with pytest.raises(
            TypeError, match=r"load_table takes a file, a DataFrame, .*, got dict; write pandas.DataFrame\("
        ):
            load_table(columns)


def test_a_pattern_is_refused_in_a_line(tmp_path):
    with pytest.raises(TableError, match="there is no file .*; a pattern is expanded by the shell: leave out its"):
        load_table(tmp_path / "x*.csv")


@pytest.mark.parametrize("text", ['[{"text": "a", "label": "b"}]\n', '[\n{"text": "a", "label": "b"}\n]\n'])
def test_a_json_list_named_jsonl_is_refused_with_its_right_name(text, tmp_path):
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(TableError, match=r"if the file holds one JSON list, give it a name that ends in \.json"):
        load_table(tmp_path / "t.jsonl")


def test_an_empty_name_is_no_folder_of_images():
    with pytest.raises(ImageError, match="the name of a folder of images is empty, got ''; give a folder or a table"):
        load_images("")


@pytest.mark.parametrize("text", ["\u200b", "\ufeff\u200b ", "\u2060"])
def test_a_text_of_invisible_marks_is_blank(text, tmp_path):
    (tmp_path / "t.jsonl").write_text(json.dumps({"text": text, "label": "a"}) + '\n{"text": "b", "label": "b"}\n')
    with pytest.raises(TableError, match="row 1 .*the text is empty or only spaces"):
        load_table(tmp_path / "t.jsonl")
    assert load_table(tmp_path / "t.jsonl", skip_blank=True)["text"][:] == ["b"]
    with pytest.raises(ValueError, match="text 0 .counted from 0. is empty"):
        check_texts([text])
    assert is_empty([text, None])


def test_one_column_without_a_header_is_hinted_at(tmp_path):
    (tmp_path / "t.txt").write_text("first text\nsecond text\n")
    with pytest.raises(
        TableError, match="no column 'text'; .*; if the first row is a text like the others, give --no_h"
    ):
        load_table(tmp_path / "t.txt", label_column=None)
