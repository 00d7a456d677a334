"""A folder of texts per class is a table: hidden files are left out, splits are chosen, what is no text is told."""

from pathlib import Path

import pytest

from ulmfit_pipe.data.tables.readers import TableError, open_rows
from ulmfit_pipe.data.tables.row_sources import TableReading
from ulmfit_pipe.data.tables.tables import load_table

TEXTS = {"pos/1.txt": "good", "pos/0.txt": "fine, fine\n", "neg/0.txt": "bad"}


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_classes_are_folders_and_rows_are_files_in_order(tmp_path):
    rows = open_rows(write(tmp_path / "train", TEXTS))
    assert rows.columns == ["text", "label", "file"]
    assert list(rows.read(["file", "label", "text"])) == [
        ("neg/0.txt", "neg", "bad"),
        ("pos/0.txt", "pos", "fine, fine\n"),
        ("pos/1.txt", "pos", "good"),
    ]


def test_it_is_loaded_like_any_table(tmp_path):
    table = load_table(write(tmp_path / "train", TEXTS))
    assert table.features["label"].names == ["neg", "pos"]
    assert (table["text"][:], table["label"][:]) == (["bad", "fine, fine\n", "good"], [0, 1, 1])


def test_an_empty_text_is_named_by_its_file(tmp_path):
    folder = write(tmp_path / "train", {**TEXTS, "pos/0.txt": " \n"})
    with pytest.raises(TableError, match=r"train, file pos/0.txt, row 2 .*the text is empty or only spaces"):
        load_table(folder)


def test_hidden_files_and_folders_are_left_out_and_other_files_are_counted(tmp_path):
    hidden = {
        "pos/.ipynb_checkpoints/1-checkpoint.txt": "x",
        "pos/.hidden.txt": "x",
        ".git/a.txt": "x",
        "pos/@eaDir/1.txt": "x",
    }
    rows = open_rows(write(tmp_path / "train", {**TEXTS, **hidden, "neg/note.md": "x", "labels.feat": "x"}))
    assert len(list(rows.read(["text", "label"]))) == 3
    assert rows.notes == [f"{tmp_path / 'train'}: 1 files in the class folders are not .txt files and were left out"]


def test_texts_without_a_suffix_are_read_where_there_are_no_others(tmp_path):
    rows = open_rows(write(tmp_path / "news", {"alt.atheism/49960": "a", "sci.med/1": b"caf\xe9"}))
    assert list(rows.read(["text", "label"])) == [("a", "alt.atheism"), ("café", "sci.med")]
    assert (
        "1 of 2 texts are not UTF-8 and were read as cp1252 (--encoding names another), the first is 1" in rows.notes[0]
    )


def test_train_and_test_below_are_splits(tmp_path):
    both = {f"{split}/{name}": f"{text} {split}" for split in ("train", "test") for name, text in TEXTS.items()}
    folder = write(tmp_path / "aclImdb", {**both, "README": "x", "imdb.vocab": "x"})
    assert list(open_rows(f"{folder}:test").read(["text"]))[0] == ("bad test",)
    assert list(open_rows(folder, usual_splits=("train",)).read(["text"]))[0] == ("bad train",)
    with pytest.raises(
        TableError, match=r"aclImdb has the splits test, train; name one after a colon, such as .*aclImdb:test"
    ):
        open_rows(folder)
    with pytest.raises(TableError, match="has the splits test, train; .*, got 'dev'"):
        open_rows(folder, split="dev")


def test_texts_without_labels_beside_the_classes_are_left_out_and_read_by_themselves(tmp_path):
    folder = write(tmp_path / "train", {**TEXTS, "unsup/0.txt": "who knows"})
    rows = open_rows(folder)
    assert {label for (label,) in rows.read(["label"])} == {"pos", "neg"}
    assert rows.notes == [
        f"{folder / 'unsup'} holds texts without labels and was left out; give it as --unlabelled_file"
    ]
    assert list(open_rows(folder / "unsup").read(["text"])) == [("who knows",)]
    with pytest.raises(TableError, match="there is no column 'label'; there are text, file"):
        load_table(folder / "unsup")


def test_an_empty_class_folder_is_refused(tmp_path):
    folder = write(tmp_path / "train", TEXTS)
    (folder / "neutral").mkdir()
    with pytest.raises(
        TableError, match=r"the class folder .*neutral holds no .txt files; put texts in it, or remove it"
    ):
        open_rows(folder)


def test_a_folder_of_tables_is_refused_with_their_names(tmp_path):
    write(tmp_path / "data", {"train.csv": "text\na\n", "test.csv": "text\na\n"})
    with pytest.raises(
        TableError, match="holds no folder of .txt files per class; give a file .* it holds test.csv, train"
    ):
        open_rows(tmp_path / "data")


def test_a_text_in_another_encoding_than_the_named_one_is_refused(tmp_path):
    from ulmfit_pipe.data.tables.row_sources import TableReading

    folder = write(tmp_path / "train", {"a/0.txt": "café"})
    with pytest.raises(TableError, match=r"a/0.txt cannot be read as ascii \(ordinal not in range"):
        list(open_rows(folder, reading=TableReading(encoding="ascii")).read(["text"]))


def test_a_folder_of_texts_alone_says_where_labels_come_from_and_is_read_without(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    with pytest.raises(TableError, match=r"no column 'label'; .*the texts of each class are in a folder of their own"):
        load_table(str(tmp_path))
    assert load_table(str(tmp_path), label_column=None)["text"][:] == ["text 0", "text 1", "text 2"]


@pytest.mark.parametrize("source", ["", " ", "\t"])
def test_an_empty_name_is_no_table(source, monkeypatch, tmp_path):
    monkeypatch.chdir(write(tmp_path, {"a.txt": "private", "b.txt": "private"}))
    for given in (source, [tmp_path / "a.txt", source]):
        with pytest.raises(TableError, match=r"the name of a table is empty, got '.*'; give a file, a folder"):
            load_table(given, label_column=None, reading=TableReading(no_header=True), text_columns=["1"])


@pytest.mark.parametrize("source", [".", "./", "..", "x/..", Path()])
def test_texts_without_classes_need_a_folder_with_a_name(source, monkeypatch, tmp_path):
    (tmp_path / "below" / "x").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "below"):
        write(folder, {"a.txt": "private"})
    monkeypatch.chdir(tmp_path / "below")
    if str(source) == "..":
        (tmp_path / "below" / "a.txt").unlink()  # else it is a class
    with pytest.raises(TableError, match=r"holds no folder of \.txt files per class, and texts .* given by its name"):
        load_table(source, label_column=None)


def test_a_folder_of_classes_may_be_the_one_at_hand(monkeypatch, tmp_path):
    monkeypatch.chdir(write(tmp_path, TEXTS))
    assert load_table(".").features["label"].names == ["neg", "pos"]


def test_texts_of_classes_that_are_read_without_labels_are_told_by_their_folders(tmp_path):
    folder, said = write(tmp_path / "train", TEXTS), []
    assert load_table(folder, label_column=None, say=said.append)["text"][:] == ["bad", "fine, fine\n", "good"]
    assert said == [
        f"{folder}: read 3 texts in the folders pos (2), neg (1), whose names are not used as labels",
    ]
    said.clear()
    load_table(folder, say=said.append)
    assert said == []


@pytest.mark.parametrize("source", [".", "..", "x/.."])
def test_texts_in_folders_below_one_without_a_name_are_not_read_without_labels(source, monkeypatch, tmp_path):
    (tmp_path / "x").mkdir()
    write(tmp_path, {"licences/mit.txt": "private"})
    monkeypatch.chdir(tmp_path / "x" if source == ".." else tmp_path)
    (tmp_path / "x/keep.txt").write_text("private")
    with pytest.raises(TableError, match=r"is not given by its name, and without labels all .* read: licences \(1\)"):
        load_table(source, label_column=None)


def test_the_whole_disk_is_no_table():
    with pytest.raises(TableError, match="^/ is the whole disk and not a table; give a file, or a folder of texts$"):
        load_table("/", label_column=None)
