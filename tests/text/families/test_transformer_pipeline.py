"""The whole method on transformers of a few thousand weights: language model, classifier, metrics, report."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.support.tiny_runs import heard, reviews, write_csv
from tests.support.tiny_transformers import save_bert, save_gpt2
from ulmfit_pipe import TextPipeline
from ulmfit_pipe.data.tables.tables import TableError
from ulmfit_pipe.settings.studies import AblationSettings, LowShotSettings
from ulmfit_pipe.settings.text import ClassifierSettings, LanguageModelSettings
from ulmfit_pipe.settings.text_runs import ClassifierJob, LearningRateJob, PipelineSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, find_model, read_stage
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.studies.ablation import run_ablation
from ulmfit_pipe.studies.low_shot import run_low_shot
from ulmfit_pipe.text.jobs import find_learning_rate, run_classifier
from ulmfit_pipe.text.pipeline import fine_tunes_language_model, run_pipeline

CLASSIFIER = ClassifierSettings(epochs_per_phase=1, final_epochs=1, batch_size=8)
SMALL = {
    "language_model": LanguageModelSettings(epochs=1, batch_size=4),
    "classifier": CLASSIFIER,
    "fine_tune_language_model": True,
    "validation_fraction": 0.1,
}


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    write_csv(folder / "train.csv", reviews(30))
    write_csv(folder / "test.csv", reviews(8, seed=1))
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("pretrained") / "bert")


def settings_for(tables, output, model, **changes):
    own = {"train_file": [str(tables / "train.csv")], "output_dir": str(output), "model": str(model)}
    return PipelineSettings(**{**own, **SMALL, **changes})


@pytest.mark.parametrize(("save", "head"), [(save_bert, "own"), (save_gpt2, "own"), (save_bert, "concat-pooling")])
def test_a_run_fine_tunes_the_language_model_and_hands_its_encoder_on(tables, tmp_path, save, head):
    model = save(tmp_path / "model")
    plan_of_head = ClassifierSettings(plan="head", final_epochs=1, batch_size=8, head=head)  # the encoder stays
    settings = settings_for(
        tables, tmp_path / "run", model, test_file=str(tables / "test.csv"), classifier=plan_of_head
    )
    said: list[str] = []
    metrics = run_pipeline(settings, context=RunContext(say=said.append))
    assert metrics["preset"] == "transformer"
    assert (metrics["test"]["n"], metrics["validation"]["n"]) == (8, 3)
    for stage in ("language_model", "classifier"):
        assert read_stage(tmp_path / "run" / stage)["identity"]["preset"] == "transformer"
    before, between, after = (
        load_file(folder / "model.safetensors")
        for folder in (model, tmp_path / "run/language_model", tmp_path / "run/classifier")
    )
    blocks = [name for name in between if ".layer.1." in name or ".h.1." in name]
    assert len(blocks) >= 12
    for name in blocks:
        handed_on = after[name if head == "own" else f"backbone.{name.partition('.')[2]}"]
        assert torch.equal(handed_on, between[name])
        old = before.get(name, before.get(name.partition(".")[2]))
        assert not torch.equal(old, between[name])
    assert run_pipeline(settings, context=RunContext(say=said.append))["test"] == metrics["test"]
    assert sum("skipped" in line for line in said) == 2


def test_text_pipeline_takes_a_folder_of_transformers_and_keeps_their_bars_off_the_terminal(
    tables, tmp_path, bert, capfd
):
    pipe = TextPipeline(bert)
    settings = {**SMALL, "progress": False}
    metrics = pipe.fit(tables / "train.csv", output_dir=tmp_path / "run", **settings)
    assert capfd.readouterr().err == ""
    (row,) = pipe.predict(["a warm and funny film"])
    assert TextPipeline.load(tmp_path / "run/classifier").predict(["a warm and funny film"]) == [row]
    assert json.loads((tmp_path / "run/metrics.json").read_text())["preset"] == metrics["preset"] == "transformer"
    assert (tmp_path / "run/report.html").is_file()


def test_the_language_model_is_fine_tuned_by_default_where_it_can_guess_tokens_and_there_is_text(
    tables, tmp_path, bert
):
    def asked(model, **changes):
        null = {"fine_tune_language_model": None, "language_model": LanguageModelSettings()}
        settings = settings_for(tables, tmp_path, model, **{**null, **changes})
        return fine_tunes_language_model(settings, find_model(settings.model))

    decoder = save_gpt2(tmp_path / "gpt2")
    more = {"unlabelled_file": [str(tables / "train.csv")]}
    assert asked(decoder, **more) == (True, "")
    wanted, line = asked(decoder)
    assert not wanted
    assert line.endswith(
        "is not fine-tuned on the labelled texts alone; give further texts with --unlabelled_file, or "
        "--fine_tune_language_model true"
    )
    wanted, line = asked(bert, **more)  # saved without a head
    assert not wanted
    assert "has no head that was trained to guess tokens (--fine_tune_language_model true gives it a new one)" in line
    assert asked(decoder, language_model=LanguageModelSettings(epochs=1)) == (True, "")
    assert asked(bert, fine_tune_language_model=True) == asked("awd-lstm-en") == (True, "")
    assert asked(decoder, fine_tune_language_model=False, **more) == (False, "")


def test_with_nothing_but_a_table_and_an_encoder_no_row_is_held_out_and_the_folds_are_reported(tables, tmp_path, bert):
    said: list[str] = []
    classifier = ClassifierSettings(final_epochs=1)
    settings = PipelineSettings(
        [str(tables / "train.csv")], str(tmp_path / "run"), str(bert), str(tables / "test.csv"), classifier=classifier
    )
    metrics = run_pipeline(settings, context=RunContext(say=said.append))
    assert (metrics["validation"], metrics["test"]["n"], metrics["cross_validation"]["rows"]) == (None, 8, 30)
    assert (
        sum("none of the 30 rows is held out, too few to choose by (fewer than 500, or" in line for line in said) == 1
    )
    assert list(metrics["seconds"]) == ["classifier", "scoring"]
    assert "language_model" not in [path.name for path in (tmp_path / "run").iterdir()]


def test_an_ensemble_of_transformers_is_refused_before_anything_is_read(tables, tmp_path, bert):
    settings = settings_for(tables, tmp_path / "run", bert, ensemble=True)
    words = "bert is a 'bert' model, and an ensemble is of a forward and a backward AWD-LSTM: set ensemble to false"
    with pytest.raises(ArtifactError, match=words):
        run_pipeline(settings, context=RunContext(say=str))
    assert not (tmp_path / "run").exists()


def test_a_preset_of_transformers_with_an_awd_lstm_is_refused_before_anything_is_trained(tables, tmp_path):
    settings = settings_for(tables, tmp_path / "run", "awd", preset="transformer")
    settings = PipelineSettings(**{**vars(settings), "model": None})
    with pytest.raises(ValueError, match="preset 'transformer' has no dropouts and windows for an AWD-LSTM"):
        run_pipeline(settings, context=None)
    assert not (tmp_path / "run").exists()


def test_labels_in_test_that_training_lacks_are_refused_before_anything_is_trained(tables, tmp_path, bert):
    test = write_csv(tmp_path / "test.csv", [*reviews(3), ("a fine film", "godo")])
    settings = settings_for(tables, tmp_path / "run", bert, test_file=str(test))
    with pytest.raises(TableError, match=r"test.csv, row 4 .*: the label 'godo' is not among those that training"):
        run_pipeline(settings, context=RunContext(say=str))
    assert not (tmp_path / "run").exists()


def test_ways_to_thaw_a_transformer_are_compared_at_equal_budgets(tables, tmp_path, bert):
    shared = ClassifierSettings(
        plan="gradual", lr=1e-3, epochs_per_phase=1, final_epochs=1, batch_size=8, block_groups=1
    )
    settings = AblationSettings(
        train_file=[str(tables / "train.csv")],
        test_file=str(tables / "test.csv"),
        output_dir=str(tmp_path / "ablation"),
        model=str(bert),
        variants=["head", "gradual-discriminative-slanted"],
        size=16,
        seeds=1,
        development_rows=0,
        classifier=shared,
    )
    results = run_ablation(settings, context=heard()[1])
    assert [cell["epochs"] for cell in results["cells"]] == [3, 3]
    assert "last 1 (1), last 2 (1), all (1)" in results["table"]


def test_few_labels_on_a_transformer_with_and_without_its_language_model_and_from_scratch(tables, tmp_path, bert):
    settings = LowShotSettings(
        train_file=[str(tables / "train.csv")],
        test_file=str(tables / "test.csv"),
        output_dir=str(tmp_path / "grid"),
        model=str(bert),
        methods=["scratch", "pretrained", "ulmfit"],
        sizes=[16],
        seeds=[1],
        development_rows=0,
        test_rows=8,
        language_model_text="training",
        scratch_factors=[1.0],
        language_model=LanguageModelSettings(epochs=1, batch_size=4),
        classifier=ClassifierSettings(plan="gradual", epochs_per_phase=1, final_epochs=1, block_groups=1),
    )
    results = run_low_shot(settings, context=heard()[1])
    assert {cell["cell"]["method"]: cell["epochs"] for cell in results["cells"]} == {
        "scratch": 3,
        "pretrained": 3,
        "ulmfit": 3,
    }
    assert read_stage(tmp_path / "grid/language_model")["identity"]["preset"] == "transformer"


def test_the_jobs_of_one_stage_take_transformers_too(tables, tmp_path, bert):
    train = [str(tables / "train.csv")]
    job = ClassifierJob(train, str(tmp_path / "job"), str(bert), classifier=CLASSIFIER, progress=False)
    assert run_classifier(job)["preset"] == "transformer"
    sweep = LearningRateJob(train, str(tmp_path / "rate"), model=str(bert), num_steps=40, classifier=CLASSIFIER)
    assert find_learning_rate(sweep).suggestions
    assert json.loads((tmp_path / "rate/metrics.json").read_text())["preset"] == "transformer"
