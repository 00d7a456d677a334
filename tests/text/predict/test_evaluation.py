"""Scores of a saved classifier on a labelled table, and the score from which its labels are right often enough."""

import json
import sys

import pandas as pd
import pytest

from tests.support.part_tables import read_table
from tests.support.tiny_runs import heard, multi_label_table, reviews, table, write_csv
from ulmfit_pipe import TextPipeline
from ulmfit_pipe.cli import run_command
from ulmfit_pipe.settings.prediction import EvaluateSettings, PredictFileSettings
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.settings.text_runs import PipelineSettings
from ulmfit_pipe.text.pipeline import run_pipeline
from ulmfit_pipe.text.predict.evaluation import evaluate_table
from ulmfit_pipe.text.predict.files import predict_file
from ulmfit_pipe.text.predict.predictor import Predictor


@pytest.fixture(scope="module")
def run(tiny_language_model_folder, tmp_path_factory):
    """Return a run's metrics, its classifier's folder and its test file."""
    home = tmp_path_factory.mktemp("evaluated")
    test_file = write_csv(home / "test.csv", reviews(40, seed=1))
    settings = PipelineSettings(
        train_file=[str(write_csv(home / "train.csv", reviews(60)))],
        validation_file=str(write_csv(home / "validation.csv", reviews(120, seed=2))),
        test_file=str(test_file),
        model=str(tiny_language_model_folder),
        fine_tune_language_model=False,
        unknown_text="allow",
        classifier=ClassifierSettings(plan="probe", batch_size=8),
        output_dir=str(home / "run"),
    )
    return run_pipeline(settings, context=heard()[1]), home / "run/classifier", test_file


def test_the_scores_are_those_of_the_runs_own_test_table(run):
    metrics, folder, test_file = run
    found = TextPipeline.load(folder).evaluate(test_file)
    names = ("accuracy", "macro_f1", "loss", "n", "interval", "per_class")
    assert {name: found[name] for name in names} == {name: metrics["test"][name] for name in names}
    page = (folder.parent / "report.html").read_text()
    assert f"The expected calibration error is {found['calibration_error']:.3f}: answers have" in page
    assert metrics["calibration"]["rows"] == 120


def test_evaluate_and_interpret_take_the_same_tables_and_names_of_columns(run, tmp_path):
    _, folder, test_file = run
    pipe = TextPipeline.load(folder)
    frame = pd.read_csv(test_file).rename(columns={"text": "Review", "label": "Mood"})
    frame.to_csv(tmp_path / "renamed.csv", index=False)
    wanted = pipe.evaluate(test_file)["accuracy"]
    for name in ("text_column", "text_columns"):
        for source in (frame, tmp_path / "renamed.csv"):
            columns = {name: ["Review"], "label_column": ["Mood"]}
            assert pipe.evaluate(source, **columns)["accuracy"] == wanted
            assert pipe.interpret(source, **columns).scores["accuracy"] == wanted
    for call in (pipe.evaluate, pipe.interpret):
        with pytest.raises(ValueError, match="text_columns is another name of text_column; give text_column alone"):
            call(frame, text_column="Review", text_columns=["Review"])


def test_the_command_prints_the_scores_and_writes_them(run, tmp_path, capsys, monkeypatch):
    _, folder, test_file = run
    target = tmp_path / "scores.json"
    words = f"evaluate --model {folder} --test_file {test_file} --precision 0.7 --output_file {target}"
    monkeypatch.setattr(sys, "argv", ["ulmfit", *words.split()[1:]])
    run_command("evaluate")
    shown, stored = capsys.readouterr().out, json.loads(target.read_text())
    assert f"accuracy {stored['accuracy']:.4f} (95 % " in shown
    assert f"precision   {stored['at_precision']['line']}" in shown
    cut = stored["at_precision"]
    labels = TextPipeline.load(folder).predict(
        [row["text"] for row in read_table(test_file)], abstain_below=cut["score"]
    )
    truth = [row["label"] for row in read_table(test_file)]
    right = [row["label"] == own for row, own in zip(labels, truth, strict=True) if row["label"] is not None]
    assert cut["coverage"] == pytest.approx(len(right) / 40)
    assert cut["precision"] == pytest.approx(sum(right) / len(right)) and cut["precision"] >= 0.7


def predict(folder, test_file, tmp_path, **settings):
    said, context = heard()
    numbers = PredictFileSettings(
        model=str(folder), input_file=[str(test_file)], output_file=str(tmp_path / "out.csv"), **settings
    )
    return said, predict_file(numbers, context=context)


def test_prediction_finds_the_score_for_a_precision_on_the_rows_held_out_in_training(run, tmp_path):
    _, folder, test_file = run
    said, summary = predict(folder, test_file, tmp_path, precision=0.75)
    (line,) = [line for line in said if line.startswith("precision 0.75 is met from score ")]
    cut = float(line.split("--abstain_below ")[1].rstrip(")"))
    assert 0 < summary.abstained == sum(float(row["score"]) < cut for row in read_table(tmp_path / "out.csv")) < 40


def test_a_precision_that_cannot_be_met_or_found_is_refused(run, tmp_path, tiny_classifier_folder):
    _, folder, test_file = run
    with pytest.raises(ValueError, match="precision 0.9 and abstain_below 0.8 both set the lowest score of a label"):
        predict(folder, test_file, tmp_path, precision=0.9, abstain_below=0.8)
    with pytest.raises(ValueError, match=r"keeps no scores of held-out rows to find precision 0.9 by .* as abstain_"):
        predict(tiny_classifier_folder, test_file, tmp_path, precision=0.9)
    predictor, texts = Predictor.load(folder), [text for text, _ in reviews(10, seed=1)]
    wrong = ["good" if row["label"] == "bad" else "bad" for row in predictor.predict(texts)]
    found = evaluate_table(predictor, table(list(zip(texts, wrong, strict=True))), precision=0.9)["at_precision"]
    assert found["score"] is None
    assert found["line"].startswith("precision 0.9 is met by no score on the 10 rows: the highest is 0.000")


def test_several_labels_are_scored_without_a_precision(tiny_multi_label_folder, tmp_path):
    predictor = Predictor.load(tiny_multi_label_folder)
    with pytest.raises(ValueError, match=r"precision 0.9 is for one label a text, .* see per_class"):
        evaluate_table(predictor, multi_label_table(6), precision=0.9)
    rows = [("a warm film", "funny|warm"), ("a dull film", ""), ("a long film", "long")]
    path = write_csv(tmp_path / "several.csv", rows)
    found = evaluate_table(predictor, path, label_separator="|")
    assert (found["n"], list(found["per_class"])) == (3, ["funny", "long", "sad", "warm"])
    assert set(found["interval"]) == {"accuracy", "micro_f1"}


def test_what_belongs_to_training_alone_is_refused():
    with pytest.raises(ValueError, match="min_rows_per_class 2 is for training; leave it out"):
        EvaluateSettings(model="m", test_file="t.csv", min_rows_per_class=2)
