"""Runs on tables in memory: what files give, a folder of their own where none is named, and a saved classifier."""

import gc
import os
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset
from safetensors.torch import load_file

from tests.support.tiny_runs import CLASSIFIER, LM, folder_bytes, reviews, write_csv
from ulmfit_pipe import TableError, TextPipeline
from ulmfit_pipe.settings.parsing import load_settings
from ulmfit_pipe.settings.text_runs import PipelineSettings
from ulmfit_pipe.stages.artifacts import ArtifactError
from ulmfit_pipe.text import pipeline as pipeline_module
from ulmfit_pipe.text.pipeline import run_pipeline

pytestmark = pytest.mark.usefixtures("quick_ends_of_phases", "blank_pictures")
SMALL = {"language_model": LM, "classifier": CLASSIFIER, "validation_fraction": 0.1}
HEAD = {"fine_tune_language_model": False, "classifier": {"plan": "head", "final_epochs": 1, "batch_size": 8}}
TRAIN = pd.DataFrame(reviews(30), columns=["text", "label"])
TEST = pd.DataFrame(reviews(8, seed=1), columns=["text", "label"])
MORE = [text for text, _ in reviews(12, seed=2)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Stand in an empty folder, and have another one for temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for name in ("tmp", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


@pytest.fixture(scope="module")
def of_files(tmp_path_factory):
    """Return the folder of a run on files, and its metrics."""
    folder = tmp_path_factory.mktemp("of_files")
    for name, rows in (("train", TRAIN), ("test", TEST)):
        write_csv(folder / f"{name}.csv", rows.to_numpy().tolist())
    write_csv(folder / "more.csv", [(text,) for text in MORE], columns=("text",))
    files = {"test": folder / "test.csv", "unlabelled": [folder / "more.csv"]}
    metrics = TextPipeline(None).fit(folder / "train.csv", **files, output_dir=folder / "run", **SMALL)
    return folder / "run", metrics


def given_as(form):
    """Return the tables of the run above as something in memory."""
    if form == "DataFrame":
        return TRAIN.set_axis(range(50, 80)), {"test": TEST, "unlabelled": pd.Series(MORE)}
    if form == "Arrow":
        arrow = pa.Table.from_pandas(TRAIN.assign(text=TRAIN["text"].astype("category")))
        return arrow, {"test": pa.Table.from_pandas(TEST).to_reader(), "unlabelled": pa.array(MORE)}
    if form == "Dataset":
        return Dataset.from_pandas(TRAIN), {"test": Dataset.from_pandas(TEST), "unlabelled": np.array(MORE)}
    labelled = (TRAIN["text"].to_numpy(), TRAIN["label"])
    return labelled, {"test": (list(TEST["text"]), list(TEST["label"])), "unlabelled": MORE}


@pytest.mark.parametrize("form", ["DataFrame", "Arrow", "Dataset", "(texts, labels)"])
def test_a_table_in_memory_is_known_as_the_file_that_holds_the_same(form, of_files, capsys):
    folder, metrics = of_files
    train, others = given_as(form)
    pipe = TextPipeline(None)
    again = pipe.fit(train, **others, output_dir=folder, **SMALL)
    said = capsys.readouterr().out
    assert said.count("already finished in") == 2 and "phase" not in said
    assert "files: train (30 training rows), test (8 test rows), unlabelled (12 unlabelled rows)" in said
    assert (again["test"], again["validation"]) == (metrics["test"], metrics["validation"])
    assert pipe.predict(TEST["text"]) == TextPipeline.load(folder / "classifier").predict(list(TEST["text"]))


@pytest.mark.parametrize("change", ["text", "label", "rows"])
def test_a_table_with_another_cell_is_not_taken_for_what_is_finished(change, of_files):
    folder, _ = of_files
    other = TRAIN.copy()
    if change == "rows":
        other = other.iloc[::-1]
    else:
        other.loc[3, change] = "bad" if change == "label" else "Another film."
    before = folder_bytes(folder)
    with pytest.raises(ArtifactError, match="holds a finished classifier stage of another run; it differs in data"):
        TextPipeline(None).fit(other, test=TEST, unlabelled=MORE, output_dir=folder, **SMALL)
    assert folder_bytes(folder) == before


@pytest.fixture(scope="module")
def base(tiny_language_model_folder):
    """Return the folder of a small language model."""
    return str(tiny_language_model_folder)


def test_settings_say_what_was_in_memory_and_are_refused_as_a_run_of_files(base, place):
    given = {**HEAD, "validation_fraction": 0.1, "output_dir": "run"}
    TEST.to_csv("t.csv")
    TextPipeline(base).fit(TRAIN, validation=(MORE[:2], ["good", "bad"]), test="t.csv", **given)
    settings = load_settings(PipelineSettings, "run/settings.yaml")
    assert settings.train_file == ["(in memory) DataFrame of 30 rows"]
    assert settings.validation_file == "(in memory) (texts, labels) of 2 rows"
    assert settings.test_file == os.path.abspath("t.csv")
    with pytest.raises(
        TableError, match=r"^\(in memory\) DataFrame of 30 rows was a table in memory, which settings cannot"
    ):
        run_pipeline(settings)


def test_several_files_are_one_test_and_one_validation_table_and_the_settings_hold_them(base, place):
    for name, rows in (("a", TEST[:3]), ("b", TEST[3:])):
        rows.to_csv(f"{name}.csv", index=False)
    files = ["a.csv", "b.csv"]
    metrics = TextPipeline(base).fit(TRAIN, test=files, validation=files, output_dir="run", **HEAD)
    assert (metrics["test"]["n"], metrics["validation"]["n"]) == (8, 8)
    again = load_settings(PipelineSettings, "run/settings.yaml")
    assert again.test_file == again.validation_file == [os.path.abspath(name) for name in files]


def test_without_a_folder_the_run_is_in_a_temporary_one_that_goes_with_the_pipeline(base, place, capsys):
    pipe = TextPipeline(base)
    metrics = pipe.fit(TRAIN, validation_fraction=0.1, **HEAD)
    (name,) = os.listdir(place / "tmp")
    folder = place / "tmp" / name
    assert metrics["classifier"] == str(folder / "classifier")
    line = f"output_dir: {folder}, which is temporary: it goes when this pipeline is fitted again or Python ends"
    assert capsys.readouterr().out.startswith(line)
    answers = pipe.predict(TEST["text"])
    assert pipe.save("kept") == type(place)("kept")
    assert folder_bytes(place / "here" / "kept") == folder_bytes(folder / "classifier")
    assert os.listdir(place / "here") == ["kept"]
    pipe.fit(TRAIN, validation_fraction=0.1, seed=1, **HEAD)
    (other,) = os.listdir(place / "tmp")
    assert other != name and pipe.predict(TEST["text"]) != answers
    del pipe
    gc.collect()
    assert os.listdir(place / "tmp") == []
    kept = TextPipeline.load("kept")
    assert kept.predict(TEST["text"]) == answers
    kept.save("again")
    assert TextPipeline.load("again").predict(TEST["text"]) == answers


def test_a_stopped_run_without_a_folder_goes_on_where_it_was(place, monkeypatch, capsys):
    def stopped(*_args, **_settings):
        raise KeyboardInterrupt

    pipe = TextPipeline(None)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline_module, "train_classifier", stopped)
        with pytest.raises(KeyboardInterrupt):
            pipe.fit(TRAIN, **SMALL)
    capsys.readouterr()
    pipe.fit(TRAIN, resume=True, **SMALL)
    assert "language_model: already finished in" in capsys.readouterr().out
    assert len(os.listdir(place / "tmp")) == 1
    assert pipe.predict(["fine"])[0]["label"] in ("bad", "good")


def test_several_processes_need_a_folder_that_all_of_them_know(place, monkeypatch):
    monkeypatch.setattr(pipeline_module, "started_processes", lambda: 2)
    with pytest.raises(
        ValueError, match="in several processes fit needs output_dir, the one folder that all of them know"
    ):
        TextPipeline(None).fit(TRAIN)
    assert os.listdir(place / "tmp") == []


def test_a_refused_call_leaves_no_folder(base, place):
    for wrong in ({"seed": -1}, {"zzz": 1}, {"test": 3}):
        with pytest.raises((ValueError, TypeError)):
            TextPipeline(base).fit(TRAIN, **wrong)
    assert os.listdir(place / "tmp") == os.listdir(place / "here") == []


def test_saving_refuses_what_is_there_and_what_is_not(place, tiny_classifier_folder):
    pipe = TextPipeline.load(tiny_classifier_folder)
    (place / "here" / "full").mkdir()
    (place / "here" / "full" / "notes.txt").write_text("mine")
    (place / "here" / "empty").mkdir()
    refused = {
        "full": "full is not empty; save to a new folder, such as classifier-2",
        "full/notes.txt": "notes.txt is a file; save to a new folder, such as full/classifier-2",
        str(tiny_classifier_folder): f"{tiny_classifier_folder} is not empty",
        f"{tiny_classifier_folder}/copy": "copy is inside of the classifier's own folder; save to a folder beside it",
    }
    for folder, words in refused.items():
        with pytest.raises(ArtifactError, match=re.escape(words)):
            pipe.save(folder)
    assert sorted(os.listdir(place / "here" / "full")) == ["notes.txt"]
    assert (pipe.save("empty") / "config.json").is_file()
    os.rename("empty", "moved")
    moved = TextPipeline.load("moved")
    os.rename("moved", "gone")
    with pytest.raises(
        ArtifactError, match="the classifier's folder .*moved is not there to be copied; fit again, or load"
    ):
        moved.save("b")
    with pytest.raises(RuntimeError, match="there is no classifier yet: call fit"):
        TextPipeline(None).save("b")
    with pytest.raises(TypeError, match="TextPipeline.save takes the name of a folder or model, got None"):
        pipe.save(None)


@pytest.mark.parametrize("kind", [int, bool])
def test_labels_come_back_in_the_type_that_they_were_given_in(kind, base, place):
    labels = (TRAIN["label"] == "good").to_numpy().astype(kind)
    pipe = TextPipeline(base)
    pipe.fit((TRAIN["text"], labels), validation_fraction=0.1, **HEAD)
    for found in (pipe, TextPipeline.load(pipe.save("kept"))):
        (row,) = found.predict(["fine"])
        assert [type(label) for label in (row["label"], *row["scores"])] == [kind] * 3


def test_a_finished_classifier_that_returns_the_labels_in_another_type_is_told_of(base, place, capsys):
    rows = TRAIN.assign(label=(TRAIN["label"] == "good").astype(int))
    line = (
        "note: the labels of the table are text, and the finished classifier returns them as integers; another output"
    )
    TextPipeline(base).fit(rows, output_dir="run", **HEAD)
    assert "note: the labels of the table are" not in capsys.readouterr().out
    pipe = TextPipeline(base)
    pipe.fit(rows.astype({"label": str}), output_dir="run", **HEAD)
    assert line in capsys.readouterr().out
    assert pipe.predict(["fine"])[0]["label"] in (0, 1)


def test_several_columns_of_labels_and_rare_rows_of_a_data_frame(base, place, capsys):
    frame = TRAIN.assign(toxic=[0, 1, 1] * 10, long=[True, False] * 15, text=[None, *TRAIN["text"][1:]])
    pipe = TextPipeline(base)
    pipe.fit(frame, label_column=["toxic", "long"], empty_text="skip", validation_fraction=0.1, **HEAD)
    assert pipe.predictor.label_names == ["toxic", "long"] and pipe.predictor.multi_label
    assert "note: 1 rows of train have no text and are left out" in capsys.readouterr().out
    rare = TRAIN.assign(label=["once", *TRAIN["label"][1:]])
    pipe.fit(rare, min_rows_per_class=2, validation_fraction=0.1, **HEAD)
    assert pipe.predictor.label_names == ["bad", "good"]


def test_the_folds_of_a_data_frame_are_run_and_leave_no_one_classifier(base, place):
    pipe = TextPipeline(base)
    metrics = pipe.fit(TRAIN, folds=2, output_dir="run", **HEAD)
    assert metrics["out_of_fold"]["n"] == 30
    with pytest.raises(RuntimeError, match="there is no classifier yet"):
        pipe.save("kept")


def test_the_same_rows_train_the_same_weights(base, place):
    found = []
    TRAIN.to_parquet("train.parquet")
    for source in (TRAIN, "train.parquet"):
        pipe = TextPipeline(base)
        pipe.fit(source, validation_fraction=0.1, **HEAD)
        found.append(load_file(f"{pipe.metrics['classifier']}/model.safetensors"))
    assert all((found[0][name] == found[1][name]).all() for name in found[0])
