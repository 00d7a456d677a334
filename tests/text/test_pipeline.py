"""The whole method on tables of a few dozen rows."""

import dataclasses
import errno
import json
import math
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sklearn.metrics import accuracy_score

from tests.support.tiny_runs import CLASSIFIER, LM, folder_bytes, reviews, write_csv
from ulmfit_pipe import TextPipeline, metrics_table
from ulmfit_pipe.data.tables.tables import load_table
from ulmfit_pipe.settings.images import ImageSettings
from ulmfit_pipe.settings.parsing import load_settings, parse_settings
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.settings.text_runs import ClassifierJob, LanguageModelJob, LearningRateJob, PipelineSettings
from ulmfit_pipe.stages import presets
from ulmfit_pipe.stages.artifacts import ArtifactError
from ulmfit_pipe.stages.context import RunContext, exclusive_run
from ulmfit_pipe.text.families import awd_lstm
from ulmfit_pipe.text.pipeline import run_pipeline

SMALL = {"language_model": LM, "classifier": CLASSIFIER, "validation_fraction": 0.1}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Return a folder with train.csv, test.csv and more.csv."""
    folder = tmp_path_factory.mktemp("tables")
    write_csv(folder / "train.csv", reviews(30))
    write_csv(folder / "test.csv", reviews(8, seed=1))
    write_csv(folder / "more.csv", [(text,) for text, _ in reviews(12, seed=2)], columns=("text",))
    return folder


def settings_for(tables, output, **changes):
    own = {"train_file": [str(tables / "train.csv")], "output_dir": str(output), "model": None}
    given = {**own, **SMALL, **changes}
    return PipelineSettings(**given)


@pytest.fixture(scope="module")
def whole(tables, tmp_path_factory):
    """Return settings, metrics and what was said of one whole run."""
    settings = settings_for(
        tables,
        tmp_path_factory.mktemp("runs") / "reviews",
        test_file=str(tables / "test.csv"),
        unlabelled_file=[str(tables / "more.csv")],
    )
    said: list[str] = []
    return settings, run_pipeline(settings, context=RunContext(say=said.append)), said


def test_metrics_json_holds_what_every_run_reports(whole):
    settings, metrics, _ = whole
    stored = json.loads(open(f"{settings.output_dir}/metrics.json").read())
    assert stored == metrics
    judged = {"interval", "majority", "per_class", "baseline"}
    assert set(metrics["test"]) == set(metrics["validation"]) == {"accuracy", "macro_f1", "loss", "n"} | judged
    low, high = metrics["test"]["interval"]["accuracy"]
    assert low < metrics["test"]["accuracy"] < high or metrics["test"]["accuracy"] in (0, 1)
    assert metrics["test"]["baseline"]["rows"] == 27
    assert {name: row["support"] for name, row in metrics["test"]["per_class"].items()} == {"bad": 4, "good": 4}
    assert (metrics["test"]["n"], metrics["validation"]["n"]) == (8, 3)
    assert set(metrics["seconds"]) == {"language_model", "classifier", "scoring"}
    assert {"python", "torch", "transformers", "datasets", "ulmfit_pipe"} <= set(metrics["versions"])
    assert (metrics["seed"], metrics["preset"]) == (0, "fastai")
    assert metrics["language_model"]["language_model"]["perplexity"] > 1


def test_the_language_model_reads_training_and_unlabelled_text(whole):
    settings, _, said = whole
    assert said[0] == "rows: 27 training, 3 validation, 8 test, 12 unlabelled; labels: bad, good"


def test_integers_come_back_as_integers(tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [{"text": text, "label": ["bad", "good"].index(label)} for text, label in reviews(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pipeline = TextPipeline(None)
    pipeline.fit(path, output_dir=tmp_path / "run", **SMALL)
    found = TextPipeline.load(tmp_path / "run/classifier").predict([row["text"] for row in rows])
    assert {type(row["label"]) for row in [*found, *pipeline.predict(["fine"])]} == {int}
    assert accuracy_score([row["label"] for row in rows], [row["label"] for row in found]) > 0.4


def test_several_label_columns_train_a_classifier_of_several_labels(tmp_path):
    rows = [(text, str(int(label == "bad")), str(row % 2)) for row, (text, label) in enumerate(reviews(30))]
    path = write_csv(tmp_path / "train.csv", rows, columns=("text", "toxic", "long"))
    pipeline = TextPipeline(None)
    names = {"toxic": "is toxic"}
    metrics = pipeline.fit(
        path, output_dir=tmp_path / "run", label_column=["toxic", "long"], label_names=names, **SMALL
    )
    assert "micro_f1" in metrics["validation"]
    assert pipeline.predictor.label_names == ["is toxic", "long"]
    again = load_settings(PipelineSettings, str(tmp_path / "run/settings.yaml"))
    assert (again.label_column, json.loads(again.label_names)) == (["toxic", "long"], names)


def test_label_settings_are_read_from_the_command_line_and_older_files(tmp_path):
    needed = ["--train_file", "a.csv", "--output_dir", "b"]
    many = ["--label_column", "toxic", "--label_column", "obscene", "--label_threshold", "2"]
    words = [*needed, *many, "--empty_text", "skip", "--min_rows_per_class", "3"]
    settings = parse_settings(PipelineSettings, words, description="")
    assert (settings.label_column, settings.label_threshold) == (["toxic", "obscene"], 2.0)
    assert (settings.empty_text, settings.min_rows_per_class) == ("skip", 3)
    (tmp_path / "old.yaml").write_text("train_file: a.csv\noutput_dir: b\nlabel_column: stars\n")
    assert load_settings(PipelineSettings, str(tmp_path / "old.yaml")).label_column == ["stars"]


@pytest.mark.parametrize("seed", [-1, 2**32, 2**70])
def test_a_seed_that_no_generator_takes_is_refused_in_every_run(seed):
    words = r"seed must be 0\.\.2\*\*32-1, got"
    run = {"train_file": ["a.csv"], "output_dir": "b", "seed": seed}
    for make in (
        lambda: PipelineSettings(**run),
        lambda: LanguageModelJob(**run),
        lambda: ClassifierJob(**run, model="m"),
        lambda: LearningRateJob(**run),
        lambda: ImageSettings(output_dir="b", train_images="c", seed=seed),
        lambda: RunContext(seed=seed),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_a_fraction_of_0_trains_on_all_rows_and_says_so(tables, tmp_path):
    said: list[str] = []
    last = dataclasses.replace(CLASSIFIER, keep="last")
    settings = settings_for(tables, tmp_path / "all", validation_fraction=0.0, classifier=last)
    metrics = run_pipeline(settings, context=RunContext(say=said.append))
    assert "rows: 30 training; labels: bad, good" in said
    assert (metrics["validation"], metrics["test"]) == (None, None)
    assert metrics["language_model"]["language_model"]["perplexity"] > 1  # measured on texts that it did not read
    assert "validation" not in metrics_table(metrics)


def test_a_fraction_of_0_cannot_choose_the_best_epoch_and_says_what_to_do_before_any_training(tables, tmp_path):
    best = dataclasses.replace(CLASSIFIER, keep="best")
    settings = settings_for(tables, tmp_path / "all", validation_fraction=0.0, classifier=best)
    with pytest.raises(ValueError, match=r"leaves none to choose the best epoch by; set classifier.keep to 'last'"):
        run_pipeline(settings)
    assert not (tmp_path / "all").exists()


def test_the_settings_are_kept_and_give_the_same_run_back(whole):
    settings, _, _ = whole
    assert load_settings(PipelineSettings, f"{settings.output_dir}/settings.yaml") == settings
    assert yaml.safe_load(open(f"{settings.output_dir}/settings.yaml"))["classifier"]["batch_size"] == 8


def test_running_again_skips_every_stage_says_so_and_gives_the_same_numbers(whole):
    settings, metrics, _ = whole
    said: list[str] = []
    again = run_pipeline(settings, context=RunContext(say=said.append))
    assert [line for line in said if "skipped" in line] == [
        f"{name}: already finished in {settings.output_dir}/{name} with the same settings and data, skipped"
        for name in ("language_model", "classifier")
    ]
    assert (again["test"], again["validation"]) == (metrics["test"], metrics["validation"])
    assert {**again["seconds"], "scoring": 0} == {**metrics["seconds"], "scoring": 0}


def test_a_changed_setting_of_the_last_stage_stops_before_the_first_is_trained(whole, tables):
    settings, _, _ = whole
    before = folder_bytes(tables.parent)
    changed = dataclasses.replace(settings, classifier=dataclasses.replace(CLASSIFIER, lr=0.5))
    with pytest.raises(ArtifactError, match=re.escape("settings.lr (None there, 0.5 now)")):
        run_pipeline(changed, context=RunContext(say=str))
    assert folder_bytes(tables.parent) == before


def test_metrics_are_shown_as_a_small_table(whole):
    lines = metrics_table(whole[1]).splitlines()
    assert lines[0].startswith("validation  accuracy ")
    assert lines[2].startswith("test        accuracy ")
    assert lines[3].startswith("baseline    accuracy ")
    assert lines[7].startswith("seconds     language_model ")


def test_the_example_of_the_read_me_runs_word_for_word(tables, tmp_path, monkeypatch, tiny_language_model_folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/general_lm").symlink_to(tiny_language_model_folder)
    for name in ("train", "test", "more"):
        (tmp_path / f"{name}.csv").symlink_to(tables / f"{name}.csv")
    # word for word, but for the time that the preset's ten epochs would take
    monkeypatch.setattr(presets, "MOST_EPOCHS", 1)
    monkeypatch.setattr(awd_lstm, "scale_epochs", lambda *args, **sizes: 1)
    pipe = TextPipeline("runs/general_lm")
    pipe.fit("train.csv", test="test.csv", unlabelled="more.csv", output_dir="runs/reviews", preset="fastai")
    (row,) = pipe.predict(["It works."])
    assert set(row) == {"label", "score", "scores"}
    assert row["label"] in ("bad", "good")
    assert row["score"] == max(row["scores"].values())
    assert sum(row["scores"].values()) == pytest.approx(1)
    loaded = TextPipeline.load("runs/reviews/classifier")
    assert loaded.predict(["It works."]) == [row]


def test_predictions_keep_the_order_and_do_not_depend_on_their_neighbours(whole):
    pipe = TextPipeline.load(f"{whole[0].output_dir}/classifier")
    texts = [text * (1 + 7 * (index % 3)) for index, (text, _) in enumerate(reviews(9, seed=5))]
    together = [row["score"] for row in pipe.predict(texts)]
    assert together == pytest.approx([pipe.predict([text])[0]["score"] for text in texts], abs=1e-5)
    assert [row["score"] for row in pipe.predict(texts[::-1])] == pytest.approx(together[::-1], abs=1e-5)


def test_predicting_before_anything_is_fitted_says_what_to_do():
    with pytest.raises(RuntimeError, match="there is no classifier yet: call fit, or TextPipeline.load"):
        TextPipeline(None).predict(["x"])


def test_without_a_test_file_test_is_null(tables, tmp_path, tiny_language_model_folder):
    settings = settings_for(
        tables, tmp_path / "run", model=str(tiny_language_model_folder), fine_tune_language_model=False
    )
    metrics = run_pipeline(settings, context=RunContext(say=str))
    assert metrics["test"] is None
    assert json.loads((tmp_path / "run/metrics.json").read_text())["test"] is None
    assert set(metrics["seconds"]) == {"classifier", "scoring"}
    assert "test " not in metrics_table(metrics)


@pytest.fixture(scope="module")
def ensemble(tables, tmp_path_factory):
    settings = settings_for(tables, tmp_path_factory.mktemp("runs") / "both", ensemble=True)
    return settings, run_pipeline(settings, context=RunContext(say=str))


def test_an_ensemble_averages_a_forward_and_a_backward_classifier(ensemble):
    settings, metrics = ensemble
    assert set(metrics["seconds"]) == {
        "language_model",
        "classifier",
        "language_model_backward",
        "classifier_backward",
        "scoring",
    }
    predictor = TextPipeline.load(f"{settings.output_dir}/classifier").predictor
    assert [model.config.direction for model in predictor.models] == ["forward", "backward"]
    alone = TextPipeline.load(f"{settings.output_dir}/classifier_backward").predict(["a warm film"])[0]
    first = type(predictor)(predictor.models[:1], predictor.tokenizer).predict(["a warm film"])[0]
    both = predictor.predict(["a warm film"])[0]
    assert both["scores"]["good"] == pytest.approx((alone["scores"]["good"] + first["scores"]["good"]) / 2)


def test_an_ensemble_is_not_taken_for_a_single_model(ensemble):
    single = dataclasses.replace(ensemble[0], ensemble=False)
    with pytest.raises(
        ArtifactError, match="is an ensemble with a backward classifier, the settings have ensemble false"
    ):
        run_pipeline(single, context=RunContext(say=str))


def test_an_ensemble_is_run_again_from_its_folders(ensemble):
    again = run_pipeline(ensemble[0], context=RunContext(say=str))
    assert again["validation"] == ensemble[1]["validation"]


def test_an_ensemble_from_one_pretrained_model_says_what_is_missing(tables, tmp_path, tiny_language_model_folder):
    settings = settings_for(tables, tmp_path / "run", ensemble=True, model=str(tiny_language_model_folder))
    with pytest.raises(ValueError, match="needs a backward language model besides --model .*; give --model_backward"):
        run_pipeline(settings)


def test_an_ensemble_of_two_forward_models_is_refused_before_training(tables, tmp_path, tiny_language_model_folder):
    name = str(tiny_language_model_folder)
    settings = settings_for(tables, tmp_path / "run", ensemble=True, model=name, model_backward=name)
    with pytest.raises(ArtifactError, match="reads text forward, the ensemble needs it as its backward model"):
        run_pipeline(settings)


def test_an_ensemble_of_two_vocabularies_is_refused_before_training(
    tables, tmp_path, tiny_language_model_folder, ensemble
):
    settings = settings_for(
        tables,
        tmp_path / "run",
        ensemble=True,
        model=str(tiny_language_model_folder),
        model_backward=f"{ensemble[0].output_dir}/language_model_backward",
    )
    with pytest.raises(ArtifactError, match="have different vocabularies, so they cannot be averaged"):
        run_pipeline(settings)


def test_skipping_the_language_model_needs_a_pretrained_one(tables, tmp_path):
    with pytest.raises(ValueError, match="fine_tune_language_model false needs a pretrained model; give --model"):
        run_pipeline(settings_for(tables, tmp_path / "run", fine_tune_language_model=False))


def test_a_preset_that_does_not_exist_is_refused_at_once(tables, tmp_path):
    with pytest.raises(
        ValueError, match="preset must be one of auto, paper, scripts-2018, fastai, transformer, got 'fast'"
    ):
        settings_for(tables, tmp_path / "run", preset="fast")


def test_a_time_limit_ends_a_long_run_soon_with_a_usable_classifier(tables, tmp_path, tiny_language_model_folder):
    settings = settings_for(
        tables,
        tmp_path / "run",
        max_seconds=3.0,
        model=str(tiny_language_model_folder),
        fine_tune_language_model=False,
        classifier=ClassifierSettings(epochs_per_phase=300, final_epochs=300),
    )
    said: list[str] = []
    metrics = run_pipeline(settings, context=RunContext(say=said.append))
    assert math.isfinite(metrics["validation"]["loss"])
    assert TextPipeline.load(tmp_path / "run/classifier").predict(["a warm film"])[0]["label"] in ("bad", "good")
    record = json.loads((tmp_path / "run/classifier/stage.json").read_text())
    assert record["cut_short"] and len(record["epochs"]) < 1200
    phases = {epoch["phase"] for epoch in record["epochs"]}
    assert phases == {"last 1", "last 2", "last 3", "all"}  # every phase got its share
    run_pipeline(settings, context=RunContext(say=said.append))
    assert sum("cut short by a time limit" in line for line in said) == 1


def test_a_time_limit_over_before_the_first_step_says_so_and_keeps_what_is_finished(tables, tmp_path):
    settings = settings_for(tables, tmp_path / "run", max_seconds=1e-6)
    with pytest.raises(ValueError, match="max_seconds ran out before the classifier's first step"):
        run_pipeline(settings, context=RunContext(say=str))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["language_model"]
    more = dataclasses.replace(settings, max_seconds=None)
    said: list[str] = []
    metrics = run_pipeline(more, context=RunContext(say=said.append))
    assert metrics["validation"]["n"] == 3
    assert any("that training was cut short by a time limit" in line for line in said)


def test_several_text_columns_and_labels_joined_by_a_separator(tmp_path, capsys):
    rows = [("title", text, label if index % 3 else "bad;good") for index, (text, label) in enumerate(reviews(30))]
    path = write_csv(tmp_path / "several.csv", rows, columns=("title", "body", "tags"))
    metrics = TextPipeline(None).fit(
        path,
        output_dir=tmp_path / "run",
        text_column=["title", "body"],
        label_column="tags",
        label_separator=";",
        **SMALL,
    )
    assert {"micro_f1", "macro_f1", "mean_average_precision", "loss", "n"} <= set(metrics["validation"])
    config = json.loads((tmp_path / "run/classifier/config.json").read_text())
    assert (config["thresholds"], config["problem_type"]) == ([0.5, 0.5], "multi_label_classification")
    assert metrics["thresholds"] == {"bad": 0.5, "good": 0.5}
    assert "thresholds: bad 0.5 (too few rows), good 0.5 (too few rows)" in capsys.readouterr().out


def test_transformers_bars_and_reports_stay_off_the_terminal(whole, capfd):
    TextPipeline.load(f"{whole[0].output_dir}/classifier")
    run_pipeline(whole[0], context=RunContext(say=str))
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_runs_in_two_threads_give_what_they_give_one_after_the_other_and_leave_no_temporary_files(
    tables, tmp_path, monkeypatch, capsys
):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    train = str(tables / "train.csv")
    few = {**SMALL, "classifier": dataclasses.replace(CLASSIFIER, plan="head")}

    def fit(place, seed):
        folder = tmp_path / place / str(seed)
        TextPipeline(None).fit(train, output_dir=folder, seed=seed, checkpoint_seconds=None, **few)
        assert os.listdir(tmp_path / "tmp") == [] or place == "at once"
        return load_file(folder / "classifier" / "model.safetensors")

    in_turn = [fit("in turn", seed) for seed in range(2)]
    with ThreadPoolExecutor(2) as threads:
        at_once = list(threads.map(lambda seed: fit("at once", seed), range(2)))
    for one, other in zip(in_turn, at_once, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert "another run is under way in a thread of this process; waiting for it to end" in capsys.readouterr().out
    assert os.listdir(tmp_path / "tmp") == []


def test_what_a_killed_run_left_in_the_temporary_folder_goes_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in (".ulmfit_pipe.12345678.tmp", ".ulmfit_pipe.mine.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "table-1.arrow").write_text("")
    with exclusive_run():
        there = {path.name for path in tmp_path.iterdir()}
        assert len(there) == 2 and ".ulmfit_pipe.12345678.tmp" not in there
        with exclusive_run():  # a stage of the run
            assert {path.name for path in tmp_path.iterdir()} == there
    assert [path.name for path in tmp_path.iterdir()] == [".ulmfit_pipe.mine.tmp"]


def test_a_full_temporary_folder_is_named(tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, "Error writing bytes to file")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(pa, "OSFile", full)
    with exclusive_run(), pytest.raises(OSError, match=r"No space left on device: '.*table-\w+.arrow'") as caught:
        load_table(write_csv(tmp_path / "train.csv", reviews(4)))
    assert caught.value.filename.startswith(f"{tmp_path}/.ulmfit_pipe.")
