"""A built-in model's name works wherever a model is asked for, and a mistyped one is told the right one."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support.tiny_runs import CLASSIFIER, LM, heard, reviews, texts_of, write_csv
from ulmfit_pipe import TextPipeline
from ulmfit_pipe.data.text.tokenization import train_tokenizer, vocab_hash
from ulmfit_pipe.models import builtin_models as home
from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM
from ulmfit_pipe.settings.parsing import parse_settings
from ulmfit_pipe.settings.text import LanguageModelSettings
from ulmfit_pipe.settings.text_runs import PipelineSettings
from ulmfit_pipe.stages import pretrained_files
from ulmfit_pipe.stages.artifacts import (
    ArtifactError,
    load_config,
    load_model,
    load_tokenizer,
    model_identity,
    resolve_model,
)
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.text.language_model import build_language_model_learner
from ulmfit_pipe.text.pipeline import run_pipeline
from ulmfit_pipe.text.predict.predictor import Predictor

SHORT = LanguageModelSettings(epochs=1, frozen_epochs=1, batch_size=4, bptt=11)


@pytest.fixture
def half(builtin):
    """Return the folder of the built-in stand-in with its weights in float16 on disk."""
    file = builtin["awd-lstm-en"] / "model.safetensors"
    save_file({name: value.half() for name, value in load_file(file).items()}, file, metadata={"format": "pt"})
    return builtin["awd-lstm-en"]


def test_a_built_in_name_is_its_folder(builtin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_model("awd-lstm-en") == resolve_model("awd-lstm-en/") == str(builtin["awd-lstm-en"])
    assert load_config("awd-lstm-en").direction == "forward"
    assert load_config("awd-lstm-en-backward").direction == "backward"
    assert model_identity("awd-lstm-en") == model_identity(builtin["awd-lstm-en"])
    assert load_tokenizer("awd-lstm-en", config=load_config("awd-lstm-en")).kind == "unigram"


def test_a_local_folder_of_that_name_comes_first_if_a_model_is_in_it(
    builtin, tmp_path, monkeypatch, tiny_language_model_folder
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "awd-lstm-en").mkdir()
    assert resolve_model("awd-lstm-en") == str(builtin["awd-lstm-en"])
    shutil.copytree(tiny_language_model_folder, tmp_path / "awd-lstm-en", dirs_exist_ok=True)
    assert resolve_model("awd-lstm-en") == "awd-lstm-en"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("awd_lstm_en", "awd-lstm-en"),
        ("awd-lstm-eng", "awd-lstm-en"),
        ("AWD-LSTM-en", "awd-lstm-en"),
        ("awdlstm", "awd-lstm-en"),
        ("awd-lstm-en-backwards", "awd-lstm-en-backward"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(builtin, typed, meant):
    words = f"there is no model '{typed}'; did you mean '{meant}'? Else give the folder that a stage wrote, a built-in "
    with pytest.raises(ArtifactError, match=re.escape(words)):
        resolve_model(typed)
    with pytest.raises(ArtifactError, match=re.escape(f"did you mean '{meant}'?")):
        TextPipeline(typed)


def test_an_unknown_name_is_told_the_built_in_ones(builtin):
    with pytest.raises(ArtifactError, match="or a built-in model: awd-lstm-en, awd-lstm-en-backward"):
        load_config("somebody/general-lm")
    with pytest.raises(ArtifactError, match=r"a built-in model \(awd-lstm-en, awd-lstm-en-backward\) or a hub id"):
        resolve_model("./general-lm")
    assert resolve_model("gpt2") == "gpt2"


def test_a_built_in_model_that_is_not_installed_is_not_asked_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(home, "PRETRAINED", tmp_path / "nowhere")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="'awd-lstm-en-backward' is not in this installation; give the folder"):
        resolve_model("awd-lstm-en-backward")


def test_weights_in_float16_are_loaded_as_float32_by_us_and_by_transformers(half):
    ours = load_model("awd-lstm-en", AutoModelForCausalLM)
    theirs = AutoModelForCausalLM.from_pretrained(half)
    asked = AutoModelForCausalLM.from_pretrained(half, dtype="auto")
    stored = load_file(half / "model.safetensors")["model.embeddings.weight"]
    assert stored.dtype == torch.float16
    for model in (ours, theirs, asked):
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert torch.equal(model.model.embeddings.weight, stored.float())
    config = half / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float16"}))
    assert load_model(half, AutoModelForCausalLM).dtype == torch.float32  # whatever the configuration says


def test_a_model_of_the_real_size_loads_and_asks_no_network(tmp_path, monkeypatch):
    texts = [text for text, _ in reviews(300)]
    tokenizer = train_tokenizer(texts, vocab_size=150)
    sizes = {"vocab_size": 12_000, "embedding_size": 256, "hidden_size": 512, "num_hidden_layers": 3}
    AwdLstmForCausalLM(AwdLstmConfig(**sizes, vocab_hash=vocab_hash(tokenizer))).save_pretrained(
        tmp_path / "awd-lstm-en"
    )
    tokenizer.save_pretrained(tmp_path / "awd-lstm-en")
    monkeypatch.setattr(home, "PRETRAINED", tmp_path)
    monkeypatch.setattr(pretrained_files, "_ask_hub", lambda name: pytest.fail(f"the hub was asked for {name}"))
    model = load_model("awd-lstm-en", AutoModelForCausalLM)
    assert (model.config.vocab_size, model.config.num_hidden_layers) == (12_000, 3)
    assert load_tokenizer("awd-lstm-en", config=model.config).kind == tokenizer.kind


def test_a_classifier_is_trained_from_the_name_and_predicts(builtin, tmp_path):
    pipe = TextPipeline("awd-lstm-en")
    words = r"there is no classifier yet: call fit, .* \(awd-lstm-en is what fit starts from; it knows no labels\)"
    with pytest.raises(RuntimeError, match=words):
        pipe.predict(["It works."])
    train = write_csv(tmp_path / "train.csv", reviews(30))
    pipe.fit(train, output_dir=tmp_path / "run", language_model=SHORT, classifier=CLASSIFIER)
    assert pipe.predict(["A warm film."])[0]["label"] in ("bad", "good")
    record = json.loads((tmp_path / "run/language_model/stage.json").read_text())
    assert record["model"] == "awd-lstm-en"
    assert TextPipeline().model == "awd-lstm-en"


def test_a_language_model_given_as_a_classifier_says_what_to_do(builtin):
    with pytest.raises(ArtifactError, match="awd-lstm-en is a language model, which knows no labels: train a classif"):
        Predictor.load("awd-lstm-en")


def test_a_pipeline_starts_from_the_built_in_model_unless_told_null():
    words = ["--train_file", "t.csv", "--output_dir", "o"]
    assert parse_settings(PipelineSettings, words, description="").model == "awd-lstm-en"
    assert parse_settings(PipelineSettings, [*words, "--model", "null"], description="").model is None


def test_an_ensemble_of_the_built_in_model_takes_its_backward_twin(builtin, tmp_path):
    train = write_csv(tmp_path / "train.csv", reviews(30))
    settings = PipelineSettings(
        [str(train)], str(tmp_path / "run"), ensemble=True, language_model=SHORT, classifier=CLASSIFIER
    )
    run_pipeline(settings, context=RunContext(say=str))
    predictor = TextPipeline.load(tmp_path / "run/classifier").predictor
    assert [model.config.direction for model in predictor.models] == ["forward", "backward"]
    assert "model_backward: awd-lstm-en-backward" in (tmp_path / "run/settings.yaml").read_text()
    shutil.rmtree(builtin["awd-lstm-en-backward"])
    with pytest.raises(ValueError, match="needs a backward language model besides --model awd-lstm-en; give --model_b"):
        run_pipeline(dataclasses.replace(settings, output_dir=str(tmp_path / "other")))


def test_the_backward_twin_is_not_taken_beside_a_folder_of_ones_own(
    builtin, tmp_path, monkeypatch, tiny_language_model_folder
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_language_model_folder, tmp_path / "awd-lstm-en")
    train = write_csv(tmp_path / "train.csv", reviews(30))
    with pytest.raises(ValueError, match="needs a backward language model besides --model awd-lstm-en"):
        run_pipeline(PipelineSettings([str(train)], str(tmp_path / "run"), ensemble=True))


def test_a_new_model_takes_the_built_in_tokenizer(builtin):
    numbers = {**dataclasses.asdict(LM), "vocab_size": None, "tokenizer_of": "awd-lstm-en", "direction": "backward"}
    texts = texts_of(*[text for text, _ in reviews(40)])
    parts = build_language_model_learner(texts, texts, settings=LanguageModelSettings(**numbers), context=heard()[1])
    assert vocab_hash(parts.tokenizer) == load_config("awd-lstm-en").vocab_hash


def test_a_word_vocabulary_can_be_put_on_the_built_in_subwords(builtin):
    texts = texts_of(*[text for text, _ in reviews(40)])
    said, context = heard()
    settings = dataclasses.replace(SHORT, tokenizer="word", min_count=1)
    parts = build_language_model_learner(texts, texts, model="awd-lstm-en", settings=settings, context=context)
    assert parts.tokenizer.kind == "word"
    assert any(line.startswith("vocabulary: ") for line in said)


def test_sizes_that_a_pretrained_model_does_not_take_are_told(builtin):
    texts = texts_of(*[text for text, _ in reviews(40)])
    said, context = heard()
    settings = dataclasses.replace(SHORT, hidden_size=40, num_hidden_layers=2)
    build_language_model_learner(texts, texts, model="awd-lstm-en", settings=settings, context=context)
    assert said[0] == (
        "note: awd-lstm-en keeps its sizes (hidden_size 14); the settings' are for a model from scratch, model null"
    )
