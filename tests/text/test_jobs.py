"""Single stages over files: what the recipes for one stage run."""

import dataclasses
import json

import pytest

from tests.support.tiny_runs import CLASSIFIER, LM, reviews, write_csv
from ulmfit_pipe.settings.parsing import load_settings
from ulmfit_pipe.settings.text_runs import ClassifierJob, LanguageModelJob, LearningRateJob
from ulmfit_pipe.stages.artifacts import ArtifactError
from ulmfit_pipe.text import jobs
from ulmfit_pipe.text.jobs import find_learning_rate, run_classifier, run_language_model

REPORTED = {"test", "validation", "seconds", "versions", "seed", "preset", "tables", "command"}


@pytest.fixture
def train_csv(tmp_path):
    return str(write_csv(tmp_path / "train.csv", reviews(30)))


def test_a_language_model_job_holds_text_out_and_writes_metrics(train_csv, tmp_path):
    job = LanguageModelJob([train_csv], str(tmp_path / "lm"), language_model=LM, validation_fraction=0.2)
    metrics = run_language_model(job)
    assert set(metrics) == REPORTED
    assert metrics == json.loads((tmp_path / "lm/metrics.json").read_text())
    assert (metrics["test"], metrics["seed"]) == (None, 0)
    assert {"perplexity", "loss", "token_accuracy", "bits_per_character"} <= set(metrics["validation"])
    assert set(metrics["seconds"]) == {"language_model"}
    assert load_settings(LanguageModelJob, tmp_path / "lm/settings.yaml") == job
    assert "ULMFiT run lm" in (tmp_path / "lm/report.html").read_text()


def test_a_validation_file_is_measured_and_its_texts_are_not_trained_on(train_csv, tmp_path, capsys):
    validation = write_csv(tmp_path / "validation.csv", reviews(30)[:5])
    job = LanguageModelJob([train_csv], str(tmp_path / "lm"), validation_file=str(validation), language_model=LM)
    run_language_model(job)
    assert "left out 5 of 30 training texts that are also in the validation file" in capsys.readouterr().out


def test_a_classifier_job_scores_the_test_file(train_csv, tmp_path, tiny_language_model_folder):
    test = write_csv(tmp_path / "test.csv", reviews(6, seed=3))
    job = ClassifierJob(
        [train_csv],
        str(tmp_path / "c"),
        str(tiny_language_model_folder),
        test_file=str(test),
        validation_fraction=0.1,
        classifier=CLASSIFIER,
    )
    metrics = run_classifier(job)
    assert set(metrics) == REPORTED | {"calibration"}
    assert set(metrics["test"]) == {"accuracy", "macro_f1", "loss", "n"}
    assert (metrics["test"]["n"], metrics["validation"]["n"]) == (6, 3)
    assert set(metrics["seconds"]) == {"classifier", "scoring"}
    assert (tmp_path / "c/stage.json").is_file()
    assert load_settings(ClassifierJob, tmp_path / "c/settings.yaml") == job
    page = (tmp_path / "c/report.html").read_text()
    assert "of 6 test texts are right" in page
    assert "lstm1, phase last 2, steps" in page
    assert len((tmp_path / "c/predictions.csv").read_text().splitlines()) == 7
    assert run_classifier(job)["test"] == metrics["test"]  # finished: scored again, not trained again


def test_a_classifier_job_trains_on_all_rows_where_nothing_is_held_out(train_csv, tmp_path, tiny_language_model_folder):
    model, output = str(tiny_language_model_folder), str(tmp_path / "c")
    best = dataclasses.replace(CLASSIFIER, keep="best")
    job = ClassifierJob([train_csv], output, model, validation_fraction=0.0, classifier=best)
    with pytest.raises(ValueError, match="validation_fraction 0 trains on all rows and leaves none"):
        run_classifier(job)
    for fraction in (0.0, None):  # None holds nothing out of so few rows
        whole = dataclasses.replace(job, validation_fraction=fraction, classifier=CLASSIFIER)
        assert run_classifier(whole)["validation"] is None


@pytest.mark.parametrize(("freeze_to", "trained"), [(-1, ["head"]), (-2, ["lstm1", "head"])])
def test_a_sweep_of_the_classifier_writes_curve_picture_and_metrics(
    train_csv, tmp_path, tiny_language_model_folder, freeze_to, trained
):
    job = LearningRateJob(
        [train_csv],
        str(tmp_path / "lr"),
        model=str(tiny_language_model_folder),
        freeze_to=freeze_to,
        num_steps=60,
        classifier=CLASSIFIER,
    )
    result = find_learning_rate(job)
    assert list(result.trained) == trained
    record = json.loads((tmp_path / "lr/learning_rate.json").read_text())
    assert record["suggestions"] == result.suggestions
    assert len(record["lrs"]) == len(record["losses"]) == len(result.lrs)
    assert (tmp_path / "lr/learning_rate.png").read_bytes().startswith(b"\x89PNG")
    metrics = json.loads((tmp_path / "lr/metrics.json").read_text())
    assert set(metrics) == REPORTED - {"tables", "command"} | {"suggestions"}
    assert (metrics["test"], metrics["validation"]) == (None, None)


def test_a_sweep_of_a_language_model_from_scratch(train_csv, tmp_path):
    job = LearningRateJob(
        [train_csv], str(tmp_path / "lr"), stage="language_model", freeze_to=0, num_steps=60, language_model=LM
    )
    assert list(find_learning_rate(job).trained) == ["lstm0", "lstm1", "embeddings"]


def test_a_sweep_computes_as_the_training_will(train_csv, tmp_path, tiny_language_model_folder, monkeypatch):
    class Seen(Exception):
        pass

    def learner(_job, _model, context):
        raise Seen(context.mixed_precision, context.tf32, context.gradient_checkpointing)

    monkeypatch.setattr(jobs.RunContext, "start", lambda context: None)
    monkeypatch.setattr(jobs, "_learner_to_sweep", learner)
    job = LearningRateJob([train_csv], str(tmp_path / "lr"), model=str(tiny_language_model_folder))
    for choice in (("no", None, False), ("bf16", True, True)):
        names = ("mixed_precision", "tf32", "gradient_checkpointing")
        with pytest.raises(Seen) as seen:
            find_learning_rate(dataclasses.replace(job, **dict(zip(names, choice, strict=True))))
        assert seen.value.args == choice


def test_a_sweep_of_the_classifier_needs_a_model(train_csv, tmp_path):
    with pytest.raises(ValueError, match="the classifier stage starts from a language model: give --model, a folder"):
        find_learning_rate(LearningRateJob([train_csv], str(tmp_path / "lr")))


def test_a_sweep_does_not_write_into_a_stages_folder(train_csv, tmp_path):
    (tmp_path / "stage.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is a stage's folder; choose another output folder for the sweep"):
        find_learning_rate(LearningRateJob([train_csv], str(tmp_path)))
