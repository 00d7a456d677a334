"""What predict and fit are handed in Python: sequences and files pass, what only looks like one is refused."""

import collections
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image

from tests.support.tiny_runs import reviews, table
from ulmfit_pipe import ImagePipeline, TextPipeline
from ulmfit_pipe.data.splits import split_train_validation
from ulmfit_pipe.data.tables.tables import check_table
from ulmfit_pipe.images import pipeline as images_pipeline
from ulmfit_pipe.images.classifier import build_image_learner
from ulmfit_pipe.images.predict import ImagePredictor
from ulmfit_pipe.stages.python_input import check_sequence, check_texts
from ulmfit_pipe.text import pipeline as pipeline_module
from ulmfit_pipe.text.classifier import build_classifier_learner, train_classifier
from ulmfit_pipe.text.language_model import build_language_model_learner, train_language_model
from ulmfit_pipe.text.predict.predictor import Predictor

FRAME = pd.DataFrame({"text": ["a cold soup", "a warm soup"], "id": [1, 2]})
COLUMNS = {"text": ["a cold soup", "a warm soup"], "id": ["1", "2"]}
Row = collections.namedtuple("Row", ["text", "label"])


# predict


@pytest.mark.parametrize(
    "texts",
    [
        ["a cold soup", "a warm soup"],
        ("a cold soup", "a warm soup"),
        FRAME["text"],
        FRAME["text"].astype("category"),
        FRAME.set_index("id")["text"],
        FRAME["text"].to_numpy(),
        np.array(COLUMNS["text"]),
        Dataset.from_dict(COLUMNS)["text"],
        pa.table(COLUMNS)["text"],
        {1: "a cold soup", 2: "a warm soup"}.values(),
        {"a cold soup": 1, "a warm soup": 2}.keys(),
        collections.deque(COLUMNS["text"]),
        (text for text in COLUMNS["text"]),
    ],
    ids=lambda texts: type(texts).__name__,
)
def test_what_is_plainly_a_sequence_of_texts_is_taken_in_its_order(texts):
    assert check_texts(texts) == ["a cold soup", "a warm soup"]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (FRAME, "got a DataFrame with the columns 'text', 'id'; write predict(df['text'])"),
        (FRAME[["text"]], "got a DataFrame with the column 'text'; write predict(df['text'])"),
        (pd.DataFrame({"review": ["a"]}), "write predict(df['review'])"),
        (pd.DataFrame([["a", "b"]]), "with the columns 0, 1; write predict(df[0])"),
        (pd.DataFrame(columns=[f"c{i}" for i in range(99)]), "'c6', 'c7', ...; write predict(df['c0'])"),
        (pd.DataFrame({"\x1b[31m" + "x" * 900: ["a"]}), r"write predict(df['\x1b[31mxx"),
        (FRAME.iloc[0], "got one row of a table; write predict([row['text']])"),
        (next(FRAME.itertuples(index=False)), "got a Pandas with the columns 'text', 'id'; write predict([row.text])"),
        (Row("a", "b"), "got a Row with the columns 'text', 'label'; write predict([row.text])"),
        (np.array([("a", "b")], dtype=[("text", "U1"), ("label", "U1")]), "write predict(data['text'])"),
        (Dataset.from_dict(COLUMNS), "got a Dataset with the columns 'text', 'id'; write predict(data['text'])"),
        (Dataset.from_dict(COLUMNS).to_iterable_dataset(), "got an IterableDataset with the columns 'text', 'id'"),
        (DatasetDict(test=Dataset.from_dict(COLUMNS)), """write predict(data['test']["text"])"""),
        (pa.table(COLUMNS), "got a Table with the columns 'text', 'id'; write predict(data['text'])"),
        (COLUMNS, "got a dict with the columns 'text', 'id'; write predict(data['text'])"),
        ({"text": "abc", "id": "1"}, "got a dict with the columns 'text', 'id'; write predict([data['text']])"),
        (collections.UserDict(a="abc"), "got a UserDict with the column 'a'; write predict([data['a']])"),
        ({}, "got a dict; write predict(data['text'])"),
        ("abc", "got one string; write predict([text])"),
        (b"abc", "got one bytes; write predict([text.decode()])"),
        (Path("a.csv"), "got one PosixPath; write predict([text])"),
        (None, "got None; write predict([text])"),
        (7, "got 7; write predict([text])"),
        ({"a", "b"}, "got a set, which has no order; write predict(list(texts))"),
        (frozenset("ab"), "got a frozenset, which has no order"),
        (np.array([["a", "b"], ["c", "d"]]), "got a ndarray of 2 axes; write predict([text]) for one"),
        (np.array("a"), "got a ndarray of 0 axes; write predict([text]) for one"),
        (torch.zeros(2, 3), "got a Tensor of 2 axes"),
        (io.StringIO("a\nb"), "got an open file; write predict(file.read().splitlines()) if each line is a text"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_what_only_looks_like_a_list_of_texts_is_refused_with_the_line_to_write(texts, words):
    with pytest.raises(TypeError, match="^predict takes a list of texts, ") as refused:
        check_texts(texts)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (None, "text 1 (counted from 0) is NoneType, not a string: None; leave out the rows without text"),
        (float("nan"), "is float, not a string: nan; leave out the rows without text, for example with df['text']"),
        (pd.NA, "is NAType, not a string: <NAType>; leave out the rows"),
        (3, "is int, not a string: 3; write str(item) if it is a text"),
        (b"abc", "is bytes, not a string: b'abc'; decode it first"),
        ({"text": "x" * 5000}, 'write predict([row["text"] for row in rows])'),
        (["a"], "is list, not a string: ['a']; give one list that holds a string for each text"),
        pytest.param(10**5000, "is int, not a string: a whole number of 16,610 bits; write", id="long"),
    ],
)
def test_an_item_that_is_no_text_is_named_with_its_way_out(item, words):
    with pytest.raises(TypeError, match=r"^text 1 \(counted from 0\) is ") as refused:
        check_texts(["fine", item])
    assert words in str(refused.value)
    assert len(str(refused.value)) < 250


def test_every_way_to_predict_texts_refuses_a_table(tiny_classifier_folder):
    for predict in (TextPipeline.load(tiny_classifier_folder).predict, Predictor.load(tiny_classifier_folder).predict):
        with pytest.raises(TypeError, match=re.escape("write predict(df['text'])")):
            predict(FRAME)
        assert [row["score"] for row in predict(FRAME["text"])] == [row["score"] for row in predict(COLUMNS["text"])]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (pd.DataFrame({"image": ["a.png"], "label": ["x"]}), "with the columns 'image', 'label'; write predict(df['im"),
        ({"image": "a.png"}, "got a dict with the column 'image'; write predict([data['image']])"),
        ("a.png", "got one string; write predict([image])"),
        (Image.new("L", (2, 2)), "got <Image>; write predict([image])"),
        (np.zeros((4, 4, 3)), "got a ndarray of 3 axes; write predict([image]) for one"),
        ({"a.png"}, "got a set, which has no order; write predict(list(images))"),
        (None, "got None; write predict([image])"),
    ],
)
def test_what_is_no_list_of_images_is_refused_with_the_line_to_write(images, words):
    for predict in (ImagePredictor.predict, ImagePipeline.predict):
        pipeline = ImagePipeline()
        pipeline._predictor = ImagePredictor.__new__(ImagePredictor)
        with pytest.raises(TypeError, match="^predict takes a list of images, ") as refused:
            predict(pipeline if predict is ImagePipeline.predict else pipeline.predictor, images)
        assert words in str(refused.value)


def test_a_column_of_images_is_taken_as_it_is():
    assert list(check_sequence(pd.Series(["a.png", "b.png"]), of="image")) == ["a.png", "b.png"]


# fit


@pytest.fixture
def nothing_is_read(monkeypatch, tmp_path):
    """Make every way to read a table or to train fail, and stand in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline_module, "run_pipeline", lambda *a, **k: pytest.fail("it ran"))
    monkeypatch.setattr(images_pipeline, "run_image_pipeline", lambda *a, **k: pytest.fail("it ran"))


class LazyFrame:
    """A query of polars, which has the columns of a table and no rows yet."""

    columns = ("text", "label")

    def collect(self):
        """Not called."""


LONG = "What a lovely film this is, said nobody at all"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            FRAME["text"].rename("x"),
            "takes a file (CSV, TSV, JSONL or Parquet), a list of files, a DataFrame, a Dataset or (texts, labels),",
        ),
        (pa.array(["a"]), "got a StringArray; write fit((texts, labels))"),
        (DatasetDict(valid=Dataset.from_dict(COLUMNS)), "got a DatasetDict; write fit(data['valid'])"),
        (Dataset.from_dict(COLUMNS).to_iterable_dataset(), "write fit(datasets.Dataset.from_list(list(data)))"),
        (COLUMNS, "got a dict; write fit(datasets.Dataset.from_dict(data))"),
        (LazyFrame(), "got a LazyFrame; write fit(data.collect())"),
        ([COLUMNS], "got a list that holds a dict; write fit(datasets.Dataset.from_list(rows))"),
        ([FRAME, FRAME], "got a list that holds a DataFrame; write fit(pandas.concat(tables))"),
        ([(LONG, "good"), (LONG, "bad")], "got a list that holds a tuple; write fit(tuple(zip(*rows)))"),
        ([[LONG], ["good"]], "got a list that holds a list; write fit((texts, labels))"),
        ([LONG, "short"], "there is no file or folder 'What a lovely film this is, said nobody at all'. If it is a t"),
        (LONG, "If it is a text, write fit((texts, labels))"),
        (Row("a.csv", "b.csv"), "got a Row"),
        ([], "got an empty list"),
        ("", "got ''"),
        ([" "], "got ' '"),
        ({"a.csv"}, "got a set"),
        ((name for name in ["a.csv"]), "got a generator"),
        (b"a.csv", "got a bytes"),
        (3, "got a int"),
        (None, "got None"),
        (np.array(["a.csv"]), "got a ndarray; write fit((texts, labels))"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_table_is_refused_before_any_work(given, words, nothing_is_read):
    for argument in ("train", "test", "validation"):
        if given is None and argument != "train":
            continue
        expected = words if argument == "train" else re.sub(r"write fit\((.*)\)", rf"write {argument}=\1", words)
        with pytest.raises((TypeError, ValueError), match=f"^{argument} takes a file") as refused:
            TextPipeline(None).fit(**{"train": "train.csv", argument: given})
        assert expected in str(refused.value)
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            ([LONG], ["good"]),
            "takes a file (CSV, TSV, JSONL or Parquet), a list of files, a DataFrame, a Dataset or a li",
        ),
        (COLUMNS, "got a dict; write unlabelled=datasets.Dataset.from_dict(data)"),
        (LONG, "If it is a text, write unlabelled=list(texts)"),
        ([], "got an empty list"),
        ({"a.csv"}, "got a set; write unlabelled=list(texts)"),
        ((name for name in ["a.csv"]), "got a generator; write unlabelled=list(texts)"),
        (3, "got a int"),
        (np.array([["a b"]]), "got a ndarray"),
        (np.array(["a.csv"]), "holds names of files, such as 'a.csv'; give files alone in a list, and texts alone"),
        (pd.Series(["a.csv", "b.CSV", None]), "holds names of files, such as 'a.csv'"),
        ([LONG, __file__], f"holds names of files, such as '{__file__[:20]}"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else type(value).__name__,
)
def test_what_is_neither_a_table_nor_texts_is_refused_as_unlabelled(given, words, nothing_is_read):
    with pytest.raises((TypeError, ValueError), match="^unlabelled ") as refused:
        TextPipeline(None).fit("train.csv", unlabelled=given)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (([LONG], ["good", "bad"]), "train has 1 texts and 2 labels; give one label for each text"),
        (
            (FRAME, FRAME["id"]),
            "texts of train must be a list, a Series or an array of one axis, got a DataFrame; write df",
        ),
        (
            (FRAME["text"], FRAME),
            "labels of train must be a list, a Series or an array of one axis, got a DataFrame; write",
        ),
        (
            (COLUMNS, [1]),
            "texts of train must be a list, a Series or an array of one axis, got a dict; write data['text']",
        ),
        (
            ([LONG], np.eye(2)),
            "labels of train must be a list, a Series or an array of one axis, got a ndarray of 2 axes; give",
        ),
        ((np.array([[LONG]]), ["good"]), "got a ndarray of 2 axes; write texts[:, 0]"),
        (([LONG], {"good"}), "labels of train must be a list, a Series or an array of one axis, got a set"),
        (([LONG], None), "labels of train must be a list, a Series or an array of one axis, got None"),
        (([LONG], 3), "labels of train must be a list, a Series or an array of one axis, got a int"),
    ],
)
def test_texts_and_labels_that_are_no_columns_of_one_length_are_refused(given, words, nothing_is_read):
    with pytest.raises((TypeError, ValueError)) as refused:
        TextPipeline(None).fit(given)
    assert words in str(refused.value)


def test_a_pair_and_a_column_of_texts_are_refused_where_several_columns_are_named(nothing_is_read):
    for given, words in (
        (
            {"text_column": ["title", "text"]},
            r"train is \(texts, labels\) and text_column names 2 columns; give a DataFrame",
        ),
        (
            {"label_column": ["a", "b"]},
            r"train is \(texts, labels\) and label_column names 2 columns; give a DataFrame",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            TextPipeline(None).fit(([LONG], ["good"]), **given)
    with pytest.raises(ValueError, match="unlabelled is a column of texts and text_column names 2 columns"):
        TextPipeline(None).fit("train.csv", unlabelled=[LONG], text_column=["title", "text"])


def test_tables_in_memory_reach_the_run_and_the_settings_say_what_they_were(monkeypatch):
    runs = []
    monkeypatch.setattr(
        pipeline_module,
        "run_pipeline",
        lambda settings, **given: runs.append((settings, given)) or {"classifier": None},
    )
    labelled = (FRAME["text"], [1, 0])
    TextPipeline(None).fit(labelled, test=FRAME, validation=["a.csv", Path("b.csv")], unlabelled=[LONG, "short"])
    TextPipeline(None).fit(
        ("a.csv", "b.csv"), test=["c.csv"], unlabelled=FRAME["text"], text_column="review", output_dir="o"
    )
    (first, given), (second, others) = runs
    assert first.train_file == ["(in memory) (texts, labels) of 2 rows"]
    assert (first.test_file, first.validation_file) == ("(in memory) DataFrame of 2 rows", ["a.csv", "b.csv"])
    assert first.unlabelled_file == ["(in memory) list of 2 rows"]
    assert set(given["in_memory"]) == {"train_file", "test_file", "unlabelled_file"}
    assert [*given["in_memory"]["train_file"].read(["label", "text"])] == [(1, "a cold soup"), (0, "a warm soup")]
    assert (second.train_file, second.test_file, second.output_dir) == (["a.csv", "b.csv"], "c.csv", "o")
    assert others["in_memory"]["unlabelled_file"].columns == ["review"]
    assert [*others["in_memory"]["unlabelled_file"].read(["review"])] == [("a cold soup",), ("a warm soup",)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"test_file": "t.csv"}, "fit has no setting 'test_file'; write test="),
        ({"train_file": "t.csv"}, "fit has no setting 'train_file'; write fit(train, ...), the first argument"),
        ({"unlabelled_file": "t.csv"}, "fit has no setting 'unlabelled_file'; write unlabelled="),
        ({"model": "m"}, "fit has no setting 'model'; write TextPipeline(model)"),
        (
            {"final_epochs": 3},
            """did you mean classifier={"final_epochs": ...}? There are output_dir, validation_file""",
        ),
        ({"zzz": 3}, "fit has no setting 'zzz'. There are output_dir, validation_file"),
        ({"seed": "1"}, "seed must be a whole number, got '1'"),
        ({"seed": -1}, "seed must be 0..2**32-1, got -1; 0 is the default"),
        ({"ensemble": 1}, "ensemble must be true or false, got 1"),
        ({"max_seconds": True}, "max_seconds must be a number or null, got True"),
        ({"text_column": 3}, "text_column must be a list, each item text, got 3"),
        ({"label_column": 3}, "label_column must be a list, each item text, got 3"),
        ({"classifier": {"final_epoch": 1}}, "classifier has no setting 'final_epoch'; did you mean 'final_epochs'?"),
        ({"classifier": {"lr": "fast"}}, "classifier: lr must be a number or null, got 'fast'"),
        ({"language_model": {"epochs": 0}}, "language_model: epochs must be a whole number of 1 or more, got 0"),
        ({"max_rows": 5}, "max_rows must be RowLimits(...) or a dict of its settings, got 5"),
        ({"preset": "fast"}, "preset must be one of auto, paper,"),
        ({"labels": ["good"]}, "fit has no setting 'labels'; write fit((texts, labels), ...)"),
        ({"train_dataset": FRAME}, "fit has no setting 'train_dataset'; write fit(train, ...), the first argument"),
        (
            {"validation": FRAME, "validation_file": "v.csv"},
            "validation and validation_file are the same; give validation alone",
        ),
        ({"output_dir": FRAME}, "output_dir takes the name of a folder or model, got a DataFrame"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_settings_in_python_are_checked_as_those_of_the_command_line(settings, words, nothing_is_read):
    with pytest.raises((ValueError, TypeError)) as refused:
        TextPipeline(None).fit("train.csv", **{"output_dir": "run", **settings})
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_given_to_fit_by_place_or_without_a_folder_is_told_how_to_write_it(nothing_is_read):
    calls = {
        "fit takes a labelled table first and all else by name, got 1 more positional; write fit((texts, labels))": (
            lambda: TextPipeline(None).fit(["good film"], ["good"])
        ),
        "got 2 more positional; write fit((texts": lambda: TextPipeline(None).fit(FRAME, FRAME, 3, output_dir="run"),
        "fit has no setting 'ouput_dir'; did you mean 'output_dir'": (
            lambda: TextPipeline(None).fit("train.csv", ouput_dir="run")
        ),
        "fit takes labelled images first and all else by name, got 1 more positional; lay images out": (
            lambda: ImagePipeline().fit(["1.png"], ["dark"], output_dir="run")
        ),
        "fit needs output_dir, the folder for everything that the run writes; write fit": (
            lambda: ImagePipeline().fit("images")
        ),
    }
    for words, call in calls.items():
        with pytest.raises((TypeError, ValueError)) as refused:
            call()
        assert words in str(refused.value) and "\n" not in str(refused.value)


def test_groups_may_be_dicts_and_numbers_numpys(monkeypatch):
    given = []
    monkeypatch.setattr(
        pipeline_module, "run_pipeline", lambda settings, **_: given.append(settings) or {"classifier": "x"}
    )
    monkeypatch.setattr(pipeline_module.Predictor, "load", lambda folder, **options: None)
    files = {"test": Path("t.csv"), "unlabelled": ("u.csv", Path("v.csv")), "text_column": "body"}
    numbers = {"seed": np.int64(3), "classifier": {"lr": np.float32(0.5)}, "max_rows": {"train": 9}}
    TextPipeline(None).fit(Path("a.csv"), output_dir=Path("o"), **files, **numbers)
    (settings,) = given
    assert (settings.train_file, settings.test_file, settings.output_dir) == (["a.csv"], "t.csv", "o")
    assert (settings.unlabelled_file, settings.text_column) == (["u.csv", "v.csv"], ["body"])
    assert (settings.seed, settings.classifier.lr, settings.max_rows.train) == (3, 0.5, 9)
    assert type(settings.seed) is int and type(settings.classifier.lr) is float


def test_files_that_may_be_there_pass(tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        pipeline_module, "run_pipeline", lambda settings, **_: given.append(settings) or {"classifier": "x"}
    )
    monkeypatch.setattr(pipeline_module.Predictor, "load", lambda folder, **options: None)
    (tmp_path / "my own rows").mkdir()
    for path in (tmp_path / "my own rows", "my rows.csv", "owner/name", "owner/name:train", "rows", "data/*.csv"):
        TextPipeline(None).fit(path, output_dir="o")
        assert given.pop().train_file == [str(path)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"train": FRAME},
            "train takes a folder of images (a folder per class) or a table, got a DataFrame; write df.to",
        ),
        ({"train": ["a", "b"]}, "train takes a folder of images (a folder per class) or a table, got a list"),
        ({"train": "t", "test": COLUMNS}, "test takes a folder of images (a folder per class) or a table, got a dict"),
        ({"train": "t", "validation_images": FRAME}, "validation_images takes a folder of images"),
        ({"train": "t", "test_images": "x"}, "fit has no setting 'test_images'; write test="),
        ({"train": "t", "train_images": "x"}, "fit has no setting 'train_images'; write fit(train, ...), the first"),
        ({"train": "t", "seed": "1"}, "seed must be a whole number, got '1'"),
        ({"train": "t", "seed": 2**32}, "seed must be 0..2**32-1, got 4294967296"),
        (
            {"train": "t", "classifier": {"final_epoch": 1}},
            "classifier has no setting 'final_epoch'; did you mean 'fin",
        ),
        ({"train": "t", "zzz": 1}, "fit has no setting 'zzz'. There are"),
        ({"train": "t", "output_dir": None}, "fit needs output_dir, the folder for everything that the run writes; w"),
    ],
)
def test_images_and_their_settings_are_checked_before_any_work(given, words, nothing_is_read):
    with pytest.raises((ValueError, TypeError)) as refused:
        ImagePipeline().fit(**{"output_dir": "run", **given})
    assert words in str(refused.value)


@pytest.mark.parametrize("pipeline", [TextPipeline, ImagePipeline])
def test_a_model_is_given_by_name(pipeline):
    for make in (pipeline, pipeline.load):
        with pytest.raises(
            TypeError, match="takes the name of a folder or model, got a Linear; a model at hand is saved"
        ):
            make(torch.nn.Linear(1, 1))


# Tables for the functions beneath fit

TABLE = table(reviews(6))
NO_TABLES = [
    (FRAME, "got DataFrame; load it first: load_table(df)"),
    (["a cold soup"], 'got list; load one with load_table("train.csv")'),
    (None, "got NoneType; load one with load_"),
    ("train.csv", "got str; load it first: load_table('train.csv')"),
    (Path("train.csv"), "got PosixPath; load it first: load_table('train.csv')"),
    (DatasetDict(valid=TABLE), "got DatasetDict; give one of its parts: data['valid']"),
    (
        Dataset.from_dict({"review": ["a"]}),
        "got the columns 'review'; rename one: table.rename_column(name, 'text'), or",
    ),
]
UNNAMED = Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})


@pytest.mark.parametrize(("given", "words"), NO_TABLES, ids=lambda each: type(each).__name__)
def test_what_is_no_table_is_refused_by_every_function_that_takes_one(given, words, tiny_classifier_folder, tmp_path):
    predictor, out = Predictor.load(tiny_classifier_folder), {"output_dir": tmp_path / "out"}
    lm = {"model": str(tiny_classifier_folder)}
    calls = {
        "train of build_classifier_learner": lambda: build_classifier_learner(given, TABLE, **lm),
        "validation of build_classifier_learner": lambda: build_classifier_learner(
            TABLE, 0 if given is None else given, **lm
        ),
        "train of train_classifier": lambda: train_classifier(given, None, **lm, **out),
        "train of build_language_model_learner": lambda: build_language_model_learner(given, TABLE),
        "validation of build_language_model_learner": lambda: build_language_model_learner(TABLE, given),
        "train of train_language_model": lambda: train_language_model(given, TABLE, **out),
        "validation of train_language_model": lambda: train_language_model(TABLE, given, **out),
        "the table to score": lambda: predictor.score(given),
        "the table of Predictor.tokenize": lambda: predictor.tokenize(given),
    }
    if not isinstance(given, Dataset):
        calls["the table of split_train_validation"] = lambda: split_train_validation(given)
    for what, call in calls.items():
        told = words.replace("NoneType", "int") if what == "validation of build_classifier_learner" else words
        with pytest.raises(TypeError, match=rf"^{what} must be a datasets.Dataset.*{re.escape(told)}"):
            call()
    assert not (tmp_path / "out").exists()


def test_labels_without_names_are_refused_with_the_line_to_write(tiny_language_model_folder):
    words = r"got labels without names \(Value\('string'\)\); write table.class_encode_column\(\"label\"\), or load it"
    with pytest.raises(TypeError, match=words):
        build_classifier_learner(UNNAMED, None, model=str(tiny_language_model_folder))
    with pytest.raises(
        TypeError, match=r"must be a datasets.Dataset with 'text' and 'label', .* rename one: .*'label'"
    ):
        build_classifier_learner(UNNAMED.remove_columns("label"), None, model=str(tiny_language_model_folder))
    named = UNNAMED.class_encode_column("label")
    check_table(named, what="train", columns=("text", "label"))


NO_IMAGES = [
    (FRAME, 'got DataFrame; write it to a file and load that: df.to_csv("train.csv", index=False), then load_'),
    NO_TABLES[1],
    NO_TABLES[3],
]


@pytest.mark.parametrize(("given", "words"), NO_IMAGES, ids=lambda each: type(each).__name__)
def test_what_is_no_table_of_images_is_refused(given, words):
    told = words.replace("load_table('", "load_images('").replace(
        'load_table("train.csv")', 'load_images("images/train")'
    )
    with pytest.raises(TypeError, match=rf"^a table of images must be .*, as load_images gives it, {re.escape(told)}"):
        build_image_learner(given, None, model=None)
