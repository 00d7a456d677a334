"""Folds and seeds: what each run gets, and how their scores are put together."""

import dataclasses
import json
from pathlib import Path

import pytest

from tests.support.tiny_runs import CLASSIFIER, LM, heard, multi_label_table, reviews, table, texts_of, write_csv
from ulmfit_pipe import metrics_table
from ulmfit_pipe.settings.text_runs import PipelineSettings
from ulmfit_pipe.stages.artifacts import ArtifactError
from ulmfit_pipe.storage.json_files import write_json
from ulmfit_pipe.text.pipeline import run_pipeline
from ulmfit_pipe.text.scores.repeated_runs import fold_of, run_repeated, summary_of
from ulmfit_pipe.text.tables import RunTables


def settings_for(folder, **changes):
    return PipelineSettings(**{"train_file": ["t.csv"], "output_dir": str(folder), "model": None, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"folds": 1}, "folds must be 2 or more, got 1; 5 is usual"),
        ({"fold": 1}, "fold must be 1 to folds, got 1 of folds None"),
        ({"folds": 3, "fold": 4}, "fold must be 1 to folds, got 4 of folds 3"),
        ({"seeds": 0}, "seeds must be 1 or more runs, got 0"),
        ({"folds": 3, "seeds": 2}, "folds and seeds are two ways to repeat a run; give one of them"),
        ({"folds": 3, "test_file": "t.csv"}, "folds are tested on parts of train_file in turn; leave test_file"),
        ({"folds": 3, "validation_file": "v.csv"}, "folds hold out parts of train_file in turn; leave validation_file"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        settings_for("x", **changes)


def test_each_row_is_held_out_once_with_its_share_of_each_class_and_out_of_the_unlabelled_texts():
    rows = table(reviews(20))
    tables = RunTables(rows, None, None, texts_of(*rows["text"], "one more"))
    said: list[str] = []
    folds = [
        fold_of(tables, settings_for("run", folds=4, fold=fold, validation_fraction=0.2), say=said.append)
        for fold in (1, 2, 3, 4)
    ]
    held_out = [text for fold in folds for text in fold.test["text"]]
    assert sorted(held_out) == sorted(rows["text"])
    for fold in folds:
        assert sorted(fold.test["label"]) in ([0, 0, 1, 1, 1], [0, 0, 0, 1, 1])
        for apart in (fold.test, fold.validation):  # what chooses an epoch is of the other parts
            assert not set(apart["text"]) & {*fold.train["text"], *fold.unlabelled["text"]}
        assert not set(fold.test["text"]) & set(fold.validation["text"])
        assert (len(fold.train), len(fold.validation), len(fold.unlabelled)) == (12, 3, 13)
    assert said[0].startswith("left out 8 of 21 unlabelled texts that are also in the fold that is held out")


def test_rows_with_several_labels_have_folds_too_and_too_many_folds_are_refused():
    tables = RunTables(multi_label_table(7), None, None, None)
    sizes = [len(fold_of(tables, settings_for("run", folds=3, fold=fold), say=str).test) for fold in (1, 2, 3)]
    assert sizes == [3, 2, 2]
    few = RunTables(table(reviews(6)), None, None, None)
    with pytest.raises(ValueError, match="folds 4 are more than the 3 rows of the largest class; take fewer"):
        fold_of(few, settings_for("run", folds=4, fold=1), say=str)


def test_the_accuracies_of_folds_are_pooled_by_their_rows():
    runs = {
        "fold1": {"classifier": "a", "validation": None, "test": {"accuracy": 0.75, "loss": 1.0, "n": 4}},
        "fold2": {"classifier": "b", "validation": None, "test": {"accuracy": 1.0, "loss": 0.5, "n": 6}},
    }
    found = summary_of(runs, pooled=True, seed=0)
    low, high = found["out_of_fold"]["interval"]["accuracy"]
    assert (found["out_of_fold"]["accuracy"], found["out_of_fold"]["n"]) == (0.9, 10)
    assert low < 0.75 and high == 1.0
    assert found["spread"] == {
        "test": {
            "accuracy": {"mean": 0.875, "lowest": 0.75, "highest": 1.0},
            "loss": {"mean": 0.75, "lowest": 0.5, "highest": 1.0},
        }
    }
    assert (
        metrics_table({**found, "seconds": {"all runs": 3}})
        .splitlines()[0]
        .startswith("out of fold accuracy 0.9000 (95 % 0.")
    )
    assert (
        "test        accuracy 0.8750 (0.7500 to 1.0000)  loss 0.7500 (0.5000 to 1.0000)   "
        "mean (lowest to highest) of 2 runs"
    ) in metrics_table({**found, "seconds": {}})


def test_seeds_are_counted_up_from_the_seed_and_the_first_ones_classifier_is_named(tmp_path):
    seen = []

    def run(settings, *, context):
        seen.append((settings.seed, context.seed, settings.output_dir, settings.seeds))
        found = {"classifier": f"{settings.output_dir}/classifier", "test": {"accuracy": settings.seed / 10, "n": 5}}
        write_json(Path(settings.output_dir) / "metrics.json", found)
        return found

    settings = settings_for(tmp_path / "run", seed=4, seeds=2)
    metrics = run_repeated(settings, heard()[1], run=run)
    assert seen == [(seed, seed, f"{tmp_path}/run/seed{seed}", None) for seed in (4, 5)]
    assert metrics["spread"]["test"]["accuracy"] == {"mean": 0.45, "lowest": 0.4, "highest": 0.5}
    assert metrics["classifier"] == f"{tmp_path}/run/seed4/classifier"
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == metrics
    page = (tmp_path / "run/report.html").read_text()
    assert "Test rows, mean and range over the runs: accuracy 0.450 (0.400 to 0.500)." in page
    with pytest.raises(
        ArtifactError, match="holds metrics.json, report.html, settings.yaml and none of fold1 to fold3"
    ):
        run_repeated(dataclasses.replace(settings, seeds=None, folds=3), heard()[1], run=run)


def test_folds_train_and_a_second_call_skips_what_is_finished(tmp_path):
    train = write_csv(tmp_path / "train.csv", reviews(20))
    settings = settings_for(
        tmp_path / "run", train_file=[str(train)], folds=2, baseline="none", language_model=LM, classifier=CLASSIFIER
    )
    metrics = run_pipeline(settings, context=heard()[1])
    assert (metrics["classifier"], metrics["out_of_fold"]["n"]) == (None, 20)
    assert "of 20 rows are right, each predicted by the run that did not" in (tmp_path / "run/report.html").read_text()
    said, context = heard()
    again = run_pipeline(settings, context=context)
    assert sum("skipped" in line for line in said) == 4
    assert (again["out_of_fold"], again["spread"]) == (metrics["out_of_fold"], metrics["spread"])
