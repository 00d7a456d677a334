"""The warning where the baseline is not beaten, and the commands that truly change the run."""

import json

import pytest

from ulmfit_pipe.settings.tables import RowLimits
from ulmfit_pipe.settings.text_runs import PipelineSettings
from ulmfit_pipe.stages.artifacts import FORMAT
from ulmfit_pipe.stages.finished import StageResult
from ulmfit_pipe.text.scores.next_steps import next_steps, warnings_of


def scores(*, ahead, interval, accuracy=(0.8, 0.76, 0.84), majority=0.5):
    return {
        "accuracy": accuracy[0],
        "n": 400,
        "majority": majority,
        "interval": {"accuracy": list(accuracy[1:])},
        "baseline": {"name": "TF-IDF + logistic regression", "ahead": ahead, "ahead_interval": interval},
    }


def test_a_baseline_that_is_beaten_leaves_no_line():
    assert warnings_of(scores(ahead=0.05, interval=[0.01, 0.09]), table="test") == []


@pytest.mark.parametrize(
    ("ahead", "interval", "words"),
    [
        (
            0.01,
            [-0.02, 0.04],
            "not clearly ahead of TF-IDF + logistic regression on the 400 test rows: accuracy +0.0100",
        ),
        (-0.05, [-0.09, -0.01], "behind TF-IDF + logistic regression on the 400 test rows: accuracy -0.0500"),
    ],
)
def test_a_baseline_that_is_not_beaten_is_named_with_the_difference(ahead, interval, words):
    (line,) = warnings_of(scores(ahead=ahead, interval=interval), table="test")
    assert line == f"{words} (95 % {interval[0]:+.3f} to {interval[1]:+.3f})"


def test_a_classifier_that_only_knows_the_most_frequent_class_is_told_so_without_a_baseline_too():
    found = scores(ahead=0, interval=[0, 0], accuracy=(0.91, 0.88, 0.94), majority=0.9)
    (line,) = warnings_of({**found, "baseline": None}, table="validation")
    assert "not clearly ahead of always answering the most frequent class on the 400 validation rows" in line
    assert "accuracy 0.9100 (95 % from 0.880), the class alone 0.9000" in line


@pytest.fixture
def results(tmp_path):
    epochs = [{"phase": "last 1", "epoch": 0}, *({"phase": "all", "epoch": epoch} for epoch in range(4))]
    record = {"format": FORMAT, "stage": "classifier", "epochs": epochs, "cut_short": False}
    (tmp_path / "stage.json").write_text(json.dumps(record))
    return {"language_model": None, "classifier": StageResult(tmp_path, {}, 1.0, False)}


def words_of(commands):
    assert all(line.startswith("ulmfit run --config 'a run/settings.yaml' ") for line in commands)
    assert all(" --output_dir 'a run-next' " in line for line in commands)
    return [line.split("'a run-next' ")[1].split("  # ")[0] for line in commands]


def test_an_awd_lstm_may_be_replaced_get_more_text_epochs_and_labels(results):
    found = words_of(next_steps(PipelineSettings(["t.csv"], "a run", None), results, rows=900, model_type="awd_lstm"))
    assert found == [
        "--model distilbert-base-uncased",
        "--unlabelled_file FILE",
        "--classifier.final_epochs 8",
        "--max_rows.train 450",
    ]


def test_what_was_done_already_is_not_named(results):
    settings = PipelineSettings(["t.csv"], "a run", "bert", unlabelled_file=["u.csv"], max_rows=RowLimits(train=50))
    assert words_of(next_steps(settings, results, rows=50, model_type="bert")) == [
        "--classifier.final_epochs 8",
        "--max_rows.train null",
    ]
    del results["language_model"]
    assert "--fine_tune_language_model true" in words_of(next_steps(settings, results, rows=50, model_type="bert"))


def test_settings_that_only_an_awd_lstm_takes_go_with_it(results):
    settings = PipelineSettings(["t.csv"], "a run", None, preset="paper", ensemble=True)
    assert words_of(next_steps(settings, results, rows=10, model_type="awd_lstm"))[0] == (
        "--model distilbert-base-uncased --preset auto --ensemble false --model_backward null"
    )


def test_a_run_on_a_table_in_memory_gets_calls_in_place_of_commands(results):
    settings = PipelineSettings(["(in memory) DataFrame of 900 rows"], "a run", None, preset="paper", ensemble=True)
    found = next_steps(settings, results, rows=900, model_type="awd_lstm")
    assert [line.split("  # ")[0] for line in found] == [
        "TextPipeline('distilbert-base-uncased').fit(..., preset='auto', ensemble=False, model_backward=None)",
        "pipe.fit(..., unlabelled=texts)",
        "pipe.fit(..., classifier={'final_epochs': 8})",
        "pipe.fit(..., max_rows={'train': 450})",
    ]
    tested = PipelineSettings(["t.csv"], "a run", "bert", test_file="(in memory) Dataset of 9 rows")
    assert all(line.startswith("pipe.fit(") for line in next_steps(tested, results, rows=900, model_type="bert"))
