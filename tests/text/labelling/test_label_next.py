"""Which rows to label next: uncertain, spread out, none that has a label; and what their labels would buy."""

import csv
import shutil

import numpy as np
import pandas
import pytest

from tests.support.tiny_runs import reviews, write_csv
from ulmfit_pipe import TextPipeline
from ulmfit_pipe.data.tables.tables import TableError
from ulmfit_pipe.settings.prediction import LabelNextSettings
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.settings.text_runs import ClassifierJob, UpdateSettings
from ulmfit_pipe.stages.artifacts import ArtifactError
from ulmfit_pipe.text.jobs import run_classifier
from ulmfit_pipe.text.labelling.label_next import RowToLabel, label_next, rows_csv
from ulmfit_pipe.text.labelling.learning_curve import CurveError, measure_curve
from ulmfit_pipe.text.labelling.selection import choose_rows, uncertainty
from ulmfit_pipe.text.updating.update import run_update
from ulmfit_pipe.training.linear_probe import Features

PROBE = ClassifierSettings(plan="probe", batch_size=8)


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_language_model_folder):
    """Return a folder with labelled rows, a pool and, in `old`, a classifier."""
    folder = tmp_path_factory.mktemp("label_next")
    write_csv(folder / "old.csv", reviews(40))
    fresh = [(text,) for text, _ in reviews(30, seed=5)]
    write_csv(folder / "pool.csv", [("",), (reviews(40)[3][0].upper(),), *fresh, fresh[0]], columns=("text",))
    model = str(tiny_language_model_folder)
    run_classifier(ClassifierJob([str(folder / "old.csv")], str(folder / "old"), model, classifier=PROBE))
    return folder


def settings_for(place, **changes):
    given = {"model": str(place / "old"), "pool": [str(place / "pool.csv")], "n": 6, "output_file": None, **changes}
    return LabelNextSettings(**given)


def blobs(rows, *, labels=2, apart=1.0, seed=0):
    """Return features of classes that overlap."""
    chance = np.random.default_rng(seed)
    given = np.arange(rows) % labels
    return Features((chance.normal(size=(rows, 7)) + apart * np.eye(7)[given]).astype(np.float32), given, 0.0)


def test_rows_are_named_as_the_file_numbers_them_and_none_has_a_label_or_comes_twice(place):
    found = label_next(settings_for(place))
    pool = [row["text"] for row in csv.DictReader((place / "pool.csv").open())]
    assert [pool[each.row - 1] for each in found.rows] == [each.text for each in found.rows]
    assert len({each.text for each in found.rows}) == 6
    assert not {1, 2, 33} & {each.row for each in found.rows}  # without text, with a label, a repeat
    assert found.notes == ["pool: 32 texts; left out: 1 that the training table has, 1 repeats"]
    scores = [each.score for each in found.rows]
    assert scores == sorted(scores, reverse=True)


def test_suggestion_and_score_are_those_of_the_classifier(place):
    found = label_next(settings_for(place, n=30, curve=False))
    answers = TextPipeline.load(place / "old").predict([each.text for each in found.rows])
    assert [each.suggestion for each in found.rows] == [each["label"] for each in answers]
    for each, answer in zip(found.rows, answers, strict=True):
        low, high = sorted(answer["scores"].values())
        assert each.score == pytest.approx(1 - (high - low), abs=1e-5)


def test_the_curve_is_measured_with_the_model_that_has_seen_no_labels(place):
    curve = label_next(settings_for(place)).curve
    assert (curve.rows, curve.more, curve.sizes[-1]) == (40, 6, 32)
    assert curve.interval[0] <= curve.then <= curve.interval[1]


def test_the_written_csv_filled_in_is_what_an_update_takes(place, tmp_path):
    out = tmp_path / "next.csv"
    label_next(settings_for(place, output_file=str(out), curve=False))
    content = out.read_bytes().decode("utf-8-sig")
    table = pandas.read_csv(out)
    assert content.splitlines()[0] == "table,row,text,label,suggestion,score"
    assert table["label"].isna().all()
    with pytest.raises(ValueError, match="next.csv is there already and may hold labels that somebody has written"):
        label_next(settings_for(place, output_file=str(out)))
    table.assign(label=table["suggestion"]).to_csv(out, index=False)
    given = {"model": str(place / "old"), "train_file": [str(out)], "output_dir": str(tmp_path / "new")}
    assert run_update(UpdateSettings(**given, classifier=PROBE))["update"]["rows"] == {"old": 40, "new": 6}
    again = label_next(settings_for(place, model=str(tmp_path / "new"), n=2))
    assert not {each.text for each in again.rows} & set(table["text"])
    assert "is a classifier that has seen labels already" in again.notes[-1]


def test_a_formula_is_written_as_text():
    row = RowToLabel("pool.csv", 1, "=HYPERLINK(1)", 0.5, "+good")
    assert rows_csv([row]).splitlines()[1] == "pool.csv,1,'=HYPERLINK(1),,'+good,0.5000"


def test_a_pipeline_takes_texts_in_memory(place):
    pipeline = TextPipeline.load(place / "old")
    texts = [text for text, _ in reviews(30, seed=5)]
    named = label_next(settings_for(place, curve=False)).rows
    found = pipeline.label_next(texts, n=6, curve=False).rows
    assert [each.text for each in found] == [each.text for each in named]
    with pytest.raises(ValueError, match="label_next has no setting 'stratgy'; did you mean 'strategy'"):
        pipeline.label_next(texts, stratgy="margin")


def test_a_folder_without_its_training_table_says_what_is_not_known(place, tmp_path):
    shutil.copytree(place / "old", tmp_path / "old")
    (tmp_path / "old" / "settings.yaml").unlink()
    found = label_next(settings_for(place, model=str(tmp_path / "old")))
    assert found.notes[0].startswith("note: texts of the training table are not left out: ")
    assert found.notes[0].endswith("does not tell where its training rows are; name it with --train_file")
    assert found.notes[-1] == "what 6 more labels would buy is not known: the training rows are not known"
    assert found.curve is None


def test_an_empty_pool_is_an_error(place, tmp_path):
    empty = write_csv(tmp_path / "empty.csv", [("",), ("  ",)], columns=("text",))
    with pytest.raises(TableError, match="^the pool .*empty.csv is empty, it has no row with text; give a table of"):
        label_next(settings_for(place, pool=[str(empty)]))


def test_a_pool_of_labelled_texts_is_an_error(place):
    with pytest.raises(TableError, match="^all 40 texts of the pool are in the training table, so they have labels;"):
        label_next(settings_for(place, pool=[str(place / "old.csv")]))


def test_more_rows_than_the_pool_has_are_an_error(place):
    with pytest.raises(
        TableError, match=r"^n 31 is more than the 30 rows of the pool that can be labelled \(32; left out: 1 that"
    ):
        label_next(settings_for(place, n=31))
    with pytest.raises(ValueError, match="^n must be 1 or more rows to label, got 0; 50 is usual"):
        settings_for(place, n=0)


def test_a_model_without_labels_is_an_error(place, tiny_language_model_folder):
    with pytest.raises(ArtifactError, match="is a language model, which knows no labels"):
        label_next(settings_for(place, model=str(tiny_language_model_folder)))


def test_uncertainty_is_one_between_two_labels_and_none_where_all_is_sure():
    assert uncertainty(np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.6, 0.3, 0.1]])) == pytest.approx([1, 0, 0.7])
    assert uncertainty(np.array([[0.5, 0.9], [1.0, 0.0]]), several=True) == pytest.approx([1, 0])


@pytest.mark.parametrize("strategy", ["margin-kmeans", "margin", "entropy", "badge", "kmeans", "random"])
def test_every_strategy_chooses_different_rows_and_the_same_ones_again(strategy):
    part = blobs(40, labels=3)
    raised = np.exp(part.values[:, :3])
    given = {"n": 9, "strategy": strategy, "seed": 4}
    chosen = choose_rows(part.values, raised / raised.sum(1, keepdims=True), **given)
    assert len(set(chosen)) == 9
    assert choose_rows(part.values, raised / raised.sum(1, keepdims=True), **given) == chosen


def test_of_rows_alike_only_one_is_chosen_where_uncertain_rows_lie_in_groups():
    features = np.repeat(np.eye(4), 10, axis=0) + np.random.default_rng(0).normal(scale=0.01, size=(40, 4))
    probabilities = np.full((40, 2), 0.5)
    chosen = choose_rows(features, probabilities, n=4, strategy="margin-kmeans")
    assert sorted(row // 10 for row in chosen) == [0, 1, 2, 3]


def test_the_curve_rises_where_rows_help_and_its_interval_holds_what_they_give():
    curve = measure_curve(blobs(200, apart=1.5), more=100, seed=0)
    assert curve.accuracies[0] < curve.accuracies[-1] <= curve.then
    assert curve.interval[0] < curve.then < curve.interval[1]
    assert "100 more labels: " in str(curve)


def test_where_labels_have_no_meaning_the_curve_says_that_it_cannot_tell():
    noise = blobs(200, apart=0.0)
    curve = measure_curve(noise, more=1000, seed=0)
    assert not curve.rises
    assert str(curve).endswith("whether they help at all cannot be told from these rows")
    assert 0.3 < curve.interval[0] and curve.interval[1] - curve.interval[0] > 0.05


def test_a_curve_of_too_few_rows_or_of_several_labels_is_not_drawn():
    with pytest.raises(CurveError, match="^19 labelled rows are too few to tell: it takes 20, and 5 of each of two cl"):
        measure_curve(blobs(19), more=5, seed=0)
    several = Features(blobs(30).values, np.ones((30, 2)), 0.0)
    with pytest.raises(CurveError, match="^the curve is drawn for one label a text, and these have several"):
        measure_curve(several, more=5, seed=0)
