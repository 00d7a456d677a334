"""The classifier stage on transformers of a few thousand weights: BERT, DistilBERT and GPT-2 from their configs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ByT5Tokenizer,
    CLIPConfig,
    T5Config,
    ViTConfig,
)

from tests.support.tiny_runs import CLASSIFIER, FILLERS, heard, multi_label_table, reviews, table
from tests.support.tiny_transformers import (
    SAVED,
    decoder_tokenizer,
    encoder_tokenizer,
    save_bert,
    save_fnet,
    save_gpt2,
    save_granite,
    save_xlnet_classifier,
)
from ulmfit_pipe.settings.prediction import PredictFileSettings
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.artifacts import (
    ArtifactError,
    load_config,
    load_text_tokenizer,
    model_identity,
    read_stage,
)
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.stages.saved_learner import load_learner
from ulmfit_pipe.text import classifier
from ulmfit_pipe.text.classifier import build_classifier_learner, train_classifier
from ulmfit_pipe.text.predict.files import predict_file
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.text.truncation import Reading

TRAIN, VALIDATION = table(reviews(24)), table(reviews(10, seed=7))
QUICK = ClassifierSettings(epochs_per_phase=1, final_epochs=1, batch_size=8, lr=0.1)
GROUPS = ["embeddings", "block0", "block1", "block2", "head"]
TEXTS = [text for text, _ in reviews(5, seed=3)]
LONG = " ".join(FILLERS * 9)
KINDS = list(SAVED)


def build(model, train=TRAIN, validation=VALIDATION, context=None, **settings):
    return build_classifier_learner(
        train, validation, model=str(model), settings=ClassifierSettings(**settings), context=context or heard()[1]
    )


def fit(model, folder, train=TRAIN, validation=VALIDATION, settings=QUICK, context=None):
    return train_classifier(
        train, validation, model=str(model), output_dir=folder, settings=settings, context=context or heard()[1]
    )


def generic(rows):
    """Return a table with the label names that transformers gives to labels without any."""
    features = rows.features.copy()
    features["label"] = ClassLabel(names=["LABEL_0", "LABEL_1"])
    return Dataset.from_dict(rows.to_dict(), features=features)


def scores_of(rows):
    return torch.tensor([list(row["scores"].values()) for row in rows])


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> dict[str, Path]:
    """Return the folders of a BERT, a DistilBERT and a GPT-2."""
    home = tmp_path_factory.mktemp("pretrained")
    return {kind: save(home / kind) for kind, save in SAVED.items()}


@pytest.fixture(scope="module")
def trained(pretrained, tmp_path_factory) -> dict[str, Path]:
    """Return the folders of classifiers trained on them, each with its own head."""
    home = tmp_path_factory.mktemp("trained")
    return {kind: fit(folder, home / kind).path for kind, folder in pretrained.items()}


@pytest.fixture
def bert_copy(pretrained, tmp_path) -> Path:
    return shutil.copytree(pretrained["bert"], tmp_path / "bert")


# What is trained


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["own", "concat-pooling", "mean-pooling"])
def test_the_encoder_starts_from_the_pretrained_weights_and_only_the_head_trains_at_first(pretrained, kind, head):
    parts = build(pretrained[kind], head=head)
    state = parts.network.base_model.state_dict()
    stored = load_file(pretrained[kind] / "model.safetensors")
    found = {name: stored.get(name, stored.get(f"transformer.{name}")) for name in state}
    compared = [name for name, value in found.items() if value is not None]
    assert len(compared) > 30
    assert set(found) - set(compared) <= {"pooler.dense.weight", "pooler.dense.bias"}
    assert all(torch.equal(state[name], found[name]) for name in compared)
    assert parts.learner.names == GROUPS
    assert [group.name for group in parts.learner.layer_groups if not group.frozen] == ["head"]


def test_a_pooler_that_the_weights_lack_starts_at_random_which_is_said(bert_copy):
    said, context = heard()
    build(bert_copy, context=context)
    assert not [line for line in said if "pooler" in line]
    weights = bert_copy / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if not name.startswith("pooler.")}
    save_file(kept, weights, metadata={"format": "pt"})
    build(bert_copy, context=context)
    line = f"the weights of {bert_copy} lack the pooler (bert.pooler.dense.bias): it starts at random, as the head does"
    assert said.count(line) == 1


REFORMER = {
    "attention_head_size": 8,
    "feed_forward_size": 20,
    "axial_pos_shape": [8, 8],
    "axial_pos_embds_dim": [8, 8],
    "attn_layers": ["local", "local"],
    "local_attn_chunk_length": 8,
}


@pytest.mark.parametrize(
    ("kind", "sizes"), [("reformer", REFORMER), ("perceiver", {"d_model": 16, "d_latents": 16, "num_latents": 4})]
)
def test_outputs_that_concat_pooling_cannot_take_are_refused(kind, sizes, tmp_path):
    tokenizer = encoder_tokenizer()
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=16, num_attention_heads=2, max_position_embeddings=64, **sizes
    )
    AutoModel.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for head in ("concat-pooling", "mean-pooling"):
        with pytest.raises(ArtifactError, match=rf"a '{kind}' model, whose outputs {head} cannot take .*leave head"):
            build(tmp_path, head=head)


def test_an_architecture_that_transformers_has_no_classifier_of_takes_concat_pooling(tmp_path):
    folder = save_granite(tmp_path / "granite")
    words = "granite is a 'granite' model, for which transformers has no classifier with a head of its own; set head"
    with pytest.raises(ArtifactError, match=words):
        build(folder, head="own")
    settings = ClassifierSettings(epochs_per_phase=1, final_epochs=1, batch_size=8)  # head: auto
    fit(folder, tmp_path / "classifier", settings=settings)
    assert load_config(tmp_path / "classifier").pooling == "concat"
    assert [group["group"] for group in read_stage(tmp_path / "classifier")["groups"]] == [
        "embeddings",
        "block0",
        "block1",
        "head",
    ]
    predictor = Predictor.load(tmp_path / "classifier")
    together, alone = predictor.predict([*TEXTS, "dull"]), predictor.predict(["dull"])
    torch.testing.assert_close(scores_of(together[-1:]), scores_of(alone), atol=1e-5, rtol=0)


def test_the_phases_are_the_presets_head_upper_half_all_with_a_rate_a_block(pretrained):
    head, upper, rest = build(pretrained["bert"], plan="preset").phases
    assert [phase.trainable for phase in (head, upper, rest)] == [(4,), (2, 3, 4), (0, 1, 2, 3, 4)]
    assert head.lrs[-1] == 1e-3
    assert rest.lrs == pytest.approx([5e-5 * 0.9**power for power in (4, 3, 2, 1, 0)])


def test_blocks_may_be_bundled_into_fewer_groups(pretrained):
    parts = build(pretrained["bert"], block_groups=2)
    assert parts.learner.names == ["embeddings", "blocks0-1", "block2", "head"]


def test_a_plan_of_the_head_alone_leaves_the_encoder_bit_identical(pretrained, tmp_path):
    fit(pretrained["distilbert"], tmp_path / "head", settings=ClassifierSettings(plan="head", final_epochs=1))
    stored = load_file(pretrained["distilbert"] / "model.safetensors")
    after = load_file(tmp_path / "head/model.safetensors")
    assert all(torch.equal(after[f"distilbert.{name}"], value) for name, value in stored.items())


def test_the_whole_is_trained_in_the_end_and_the_record_names_the_preset_that_auto_stood_for(pretrained, trained):
    stored, after = (load_file(folder["bert"] / "model.safetensors") for folder in (pretrained, trained))
    moved = [name for name, value in stored.items() if not torch.equal(after[f"bert.{name}"], value)]
    assert {name.split(".")[0] for name in moved} == {"embeddings", "encoder", "pooler"}
    record = read_stage(trained["bert"])
    assert record["identity"]["preset"] == "transformer"
    assert "head" not in record["identity"]["settings"]  # at its default it is as if there were no such setting
    assert [group["group"] for group in record["groups"]] == GROUPS


def test_a_finished_stage_is_skipped_whether_its_preset_is_named_or_left_to_the_model(pretrained, trained):
    assert fit(pretrained["bert"], trained["bert"]).skipped
    assert fit(pretrained["bert"], trained["bert"], context=RunContext(preset="transformer", say=str)).skipped
    with pytest.raises(ArtifactError, match=r"it differs in preset \('transformer' there, 'fastai' now\)"):
        fit(pretrained["bert"], trained["bert"], context=RunContext(preset="fastai", say=str))


def test_seeds_reproduce_bit_identical_classifiers(pretrained, trained, tmp_path):
    fit(pretrained["bert"], tmp_path / "again")
    first, again = (load_file(folder / "model.safetensors") for folder in (trained["bert"], tmp_path / "again"))
    assert all(torch.equal(value, again[name]) for name, value in first.items())


@pytest.mark.parametrize("head", ["own", "concat-pooling", "mean-pooling"])
def test_the_twin_from_scratch_has_other_weights_and_trains_whole(pretrained, head):
    own, twin = (build(pretrained["bert"], head=head, from_scratch=yes) for yes in (False, True))
    first, second = own.network.base_model.state_dict(), twin.network.base_model.state_dict()
    assert {name: value.shape for name, value in first.items()} == {name: value.shape for name, value in second.items()}
    name = "embeddings.word_embeddings.weight"
    assert not torch.equal(first[name], second[name])
    assert not any(group.frozen for group in twin.learner.layer_groups)


@pytest.mark.parametrize("settings", [{}, {"from_scratch": True}, {"head": "concat-pooling", "from_scratch": True}])
def test_weights_train_in_float32_whatever_they_were_saved_in(tmp_path, settings):
    folder = save_bert(tmp_path / "half", dtype="bfloat16")
    model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    network = build(folder, **settings).network
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


# A folder that plain transformers loads

PLAIN = """
import json, sys
sys.modules["ulmfit_pipe"] = None
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
texts, found = json.loads(sys.argv[1]), {}
for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoded).logits
    classify = pipeline("text-classification", model=folder, device="cpu", top_k=None)
    rows = [{each["label"]: each["score"] for each in row} for row in classify(texts, truncation=True, batch_size=3)]
    found[folder] = {"logits": logits.tolist(), "rows": rows}
print(json.dumps(found))
"""


def scores_without_ulmfit_pipe(texts, *folders):
    command = [sys.executable, "-c", PLAIN, json.dumps(texts), *map(str, folders)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_plain_transformers_gives_the_same_scores_where_there_is_no_ulmfit_pipe(trained, tmp_path):
    several = fit(
        trained_start := save_bert(tmp_path / "start"),
        tmp_path / "several",
        multi_label_table(24),
        multi_label_table(10, seed=3),
    ).path
    assert trained_start.is_dir()
    texts = [*TEXTS, LONG]
    found = scores_without_ulmfit_pipe(texts, *trained.values(), several)
    for folder in [*trained.values(), several]:
        predictor = Predictor.load(folder)
        expected = scores_of(predictor.predict(texts))
        plain = found[str(folder)]
        logits = torch.tensor(plain["logits"])
        scores = logits.sigmoid() if predictor.multi_label else logits.softmax(-1)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)
        rows = torch.tensor([[row[name] for name in predictor.label_names] for row in plain["rows"]])
        torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)
    assert Predictor.load(several).multi_label


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_gets_the_same_scores_alone_and_among_others(trained, kind):
    predictor = Predictor.load(trained[kind])
    texts = [*TEXTS, LONG, "dull", "a warm film <|endoftext|>"]
    together = scores_of(predictor.predict(texts))
    alone = torch.cat([scores_of(predictor.predict([text])) for text in texts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert float((together[0] - together[5]).abs().max()) > 1e-3


def test_a_classifier_of_another_program_predicts_too_and_is_cut_where_its_positions_end(tmp_path):
    folder = save_bert(tmp_path / "other", max_position_embeddings=20)
    config = load_config(folder)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    predictor = Predictor.load(folder)
    assert predictor.reading == Reading("truncate", 20)
    assert list(predictor.predict([LONG])[0]["scores"]) == ["LABEL_0", "LABEL_1"]


def test_a_summary_at_the_last_position_is_padded_on_the_left_and_types_of_tokens_are_the_tokenizers(tmp_path):
    folder = save_xlnet_classifier(tmp_path / "xlnet")
    predictor = Predictor.load(folder)
    together = scores_of(predictor.predict([*TEXTS, "dull"]))
    alone = torch.cat([scores_of(predictor.predict([text])) for text in (*TEXTS, "dull")])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        plain = model(**tokenizer([*TEXTS, "dull"], padding=True, return_tensors="pt")).logits.softmax(-1)
    torch.testing.assert_close(together, plain, atol=1e-5, rtol=0)
    learner = build(folder, train=generic(TRAIN), validation=generic(VALIDATION)).learner
    assert "token_type_ids" in next(iter(learner.task.train_batches))


def test_a_file_is_predicted(trained, tmp_path):
    (tmp_path / "in.csv").write_text("text\n" + "\n".join(TEXTS) + "\n")
    settings = PredictFileSettings(str(trained["gpt2"]), str(tmp_path / "in.csv"), str(tmp_path / "out.jsonl"))
    assert predict_file(settings, context=heard()[1]).rows == 5
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["label"] for row in rows] == [row["label"] for row in Predictor.load(trained["gpt2"]).predict(TEXTS)]


# Padding


def test_a_decoder_without_a_padding_token_gets_its_end_of_text_and_says_so(pretrained, trained):
    said, context = heard()
    parts = build(pretrained["gpt2"], context=context)
    line = f"{pretrained['gpt2']} has no padding token: its end-of-text token '<|endoftext|>' is used instead"
    assert said.count(line) == 1
    assert (parts.tokenizer.pad_token, parts.network.config.pad_token_id) == ("<|endoftext|>", 0)
    assert AutoTokenizer.from_pretrained(trained["gpt2"]).pad_token_id == load_config(trained["gpt2"]).pad_token_id == 0
    said, _ = heard()
    load_text_tokenizer(trained["gpt2"], load_config(trained["gpt2"]), say=said.append)
    assert said == []


def test_a_tokenizer_with_neither_padding_nor_end_is_refused(tmp_path):
    folder = save_gpt2(tmp_path / "gpt2")
    tokenizer = decoder_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ArtifactError, match="has neither a padding nor an end-of-text token; add one"):
        build(folder)


# Labels


def test_several_labels_a_row_get_thresholds_that_are_saved_and_used(pretrained, tmp_path, monkeypatch):
    settled = [0.3, 0.45, 0.55], "thresholds: as they are settled"
    monkeypatch.setattr(classifier, "settle_thresholds", lambda *_args, **_kwargs: settled)
    validation = multi_label_table(16, seed=3)
    result = fit(pretrained["distilbert"], tmp_path / "several", multi_label_table(40), validation)
    assert {"micro_f1", "macro_f1", "mean_average_precision", "loss", "n"} == set(result.metrics) - {"accuracy"}
    predictor = Predictor.load(tmp_path / "several")
    assert predictor.thresholds == load_config(tmp_path / "several").ulmfit_pipe["thresholds"]
    assert predictor.thresholds == settled[0]
    assert predictor.score(validation) == pytest.approx(result.metrics)
    assert predictor.models[0].config.problem_type == "multi_label_classification"


@pytest.mark.parametrize("head", ["own", "concat-pooling", "mean-pooling"])
def test_going_on_from_a_saved_classifier_keeps_its_head(pretrained, trained, tmp_path, head):
    start = trained["bert"]
    if head != "own":
        start = fit(pretrained["bert"], tmp_path / "first", settings=ClassifierSettings(plan="head", head=head)).path
    state = build(start).network.state_dict()
    stored = load_file(start / "model.safetensors")
    assert set(stored) == set(state)
    assert all(torch.equal(state[name], value) for name, value in stored.items())
    assert fit(start, tmp_path / "more", train=table(reviews(16, seed=11))).metrics["n"] == 10


def test_a_classifier_of_other_labels_is_refused(trained):
    other = table([(text, {"bad": "no", "good": "yes"}[label]) for text, label in reviews(8)], ("no", "yes"))
    with pytest.raises(ArtifactError, match=r"is a classifier of bad, good, the training table has the labels"):
        build(trained["bert"], train=other)


def test_a_classifier_of_one_label_a_text_cannot_go_on_with_several(pretrained, tmp_path):
    three = table(reviews(12, labels=("bad", "fair", "good")), ("bad", "fair", "good"))
    fit(pretrained["bert"], tmp_path / "one", three, three)
    with pytest.raises(ArtifactError, match="gives a text one label, the training table several labels"):
        build(tmp_path / "one", train=multi_label_table(12), validation=multi_label_table(6))


def test_a_classifier_cannot_exchange_its_head_for_another(pretrained, trained, tmp_path):
    with pytest.raises(ArtifactError, match="is a classifier with a head of its own, which cannot become a concat-poo"):
        build(trained["bert"], head="concat-pooling")
    pooled = tmp_path / "pooled"
    fit(pretrained["bert"], pooled, settings=ClassifierSettings(plan="head", final_epochs=1, head="mean-pooling"))
    with pytest.raises(ArtifactError, match="with a mean-pooling head, which cannot become a concat-pooling one; give"):
        build(pooled, head="concat-pooling")
    for head in ("own", "mean-pooling"):  # the head it has, whether it is named or not
        assert build(pooled, head=head).network.config.pooling == "mean"


# Long documents


def test_truncation_is_said_aloud_with_the_share_of_texts_cut(pretrained):
    said, context = heard()
    rows = table([*reviews(6), (LONG, "bad"), (LONG, "good")])
    parts = build(pretrained["bert"], train=rows, context=context)
    assert (
        "2 of 8 training texts (25.0 %) are longer than 64 tokens and are truncated, the beginning is kept; " in said[0]
    )
    assert max(batch["input_ids"].shape[1] for batch in parts.learner.task.train_batches) == 64
    assert parts.tokenizer.model_max_length == 64
    assert not [line for line in said if "validation texts" in line]


def test_going_on_from_a_classifier_of_short_texts_may_read_longer_ones_again(pretrained, tmp_path):
    settings = ClassifierSettings(plan="head", final_epochs=1, max_length=12)
    short = fit(pretrained["bert"], tmp_path / "short", settings=settings).path
    assert Predictor.load(short).reading == Reading("truncate", 12)
    assert AutoTokenizer.from_pretrained(short).model_max_length == 12
    parts = build(short)
    assert max(batch["input_ids"].shape[1] for batch in parts.learner.task.train_batches) > 12
    assert parts.tokenizer.model_max_length == 64


def test_prediction_says_aloud_how_many_texts_it_cut(trained, tmp_path):
    predictor = Predictor.load(trained["bert"])
    assert predictor.describe_cut() == ""
    predictor.predict([LONG, *TEXTS])
    line = "1 of 6 texts to predict (16.7 %) are longer than 64 tokens and are truncated, the beginning is kept; "
    assert predictor.describe_cut().startswith(line)
    (tmp_path / "in.csv").write_text(f"text\n{LONG}\n{TEXTS[0]}\n")
    said, context = heard()
    predict_file(
        PredictFileSettings(str(trained["bert"]), str(tmp_path / "in.csv"), str(tmp_path / "out.csv")), context=context
    )
    assert said[0].startswith("1 of 2 texts to predict (50.0 %) are longer than 64 tokens and are truncated")


@pytest.fixture(scope="module")
def windowed(pretrained, tmp_path_factory) -> Path:
    """Return the folder of a BERT that was trained on windows of 16 tokens."""
    settings = ClassifierSettings(
        epochs_per_phase=1, final_epochs=1, batch_size=4, lr=0.1, long_documents="windows", window_length=16
    )
    rows = table([*reviews(6), (LONG, "bad"), (f"{LONG} warm", "good")])
    return fit(pretrained["bert"], tmp_path_factory.mktemp("windows") / "bert", rows, rows, settings=settings).path


def test_a_long_texts_logits_are_the_mean_over_its_windows_and_a_short_ones_are_plain(windowed):
    predictor = Predictor.load(windowed)
    assert predictor.reading == Reading("windows", None, 16, 2)
    tokenizer = AutoTokenizer.from_pretrained(windowed)
    model = AutoModelForSequenceClassification.from_pretrained(windowed).eval()
    expected = []
    for text in (LONG, *TEXTS):
        windows = tokenizer(
            text, truncation=True, stride=2, return_overflowing_tokens=True, padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            logits = model(input_ids=windows["input_ids"], attention_mask=windows["attention_mask"]).logits
        expected.append(logits.mean(0).softmax(-1))
    assert len(tokenizer(LONG)["input_ids"]) > 100
    found = scores_of(predictor.predict([LONG, *TEXTS]))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(found[:1], scores_of(predictor.predict([LONG])), atol=1e-5, rtol=0)


def test_a_learner_on_windows_finds_rates_shows_itself_and_comes_back(pretrained, tmp_path):
    learner = build(
        pretrained["distilbert"], long_documents="windows", window_length=10, window_overlap=2, batch_size=8
    ).learner
    assert learner.names == GROUPS
    windows = len(next(iter(learner.task.train_batches))["document"])
    assert windows > 8
    assert f"({windows}, 10, 16)" in str(learner.summary())
    assert learner.lr_find(num_steps=40).suggestions
    learner.freeze_to(-2)
    learner.fit(1, 1e-2)
    learner.save(tmp_path / "saved")
    loaded = load_learner(tmp_path / "saved", learner.task, say=str)
    first, second = learner.model.state_dict(), loaded.model.state_dict()
    assert all(torch.equal(second[name], value) for name, value in first.items())
    assert loaded.freeze_map() == learner.freeze_map()
    assert loaded.validate() == learner.validate()


@pytest.mark.parametrize(("kind", "head"), [("bert", "own"), ("gpt2", "own"), ("distilbert", "concat-pooling")])
def test_a_learner_that_was_saved_with_its_tokenizer_comes_back_and_predicts(pretrained, tmp_path, kind, head):
    parts = build(pretrained[kind], batch_size=8, head=head)
    learner = parts.learner
    learner.freeze_to(-2)
    learner.fit(1, 1e-2)
    learner.save(tmp_path / "saved", add_files=parts.tokenizer.save_pretrained)
    loaded = load_learner(tmp_path / "saved", learner.task, say=str)
    first, second = learner.model.state_dict(), loaded.model.state_dict()
    assert all(torch.equal(second[name], value) for name, value in first.items())
    assert loaded.freeze_map() == learner.freeze_map()
    assert loaded.names == GROUPS
    scores = [Predictor([parts.network], parts.tokenizer).predict(TEXTS)]
    scores.append(Predictor.load(tmp_path / "saved").predict(TEXTS))
    torch.testing.assert_close(scores_of(scores[0]), scores_of(scores[1]), atol=1e-6, rtol=0)


# Settings that mean nothing


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"drop_mult": 0.5},
            "drop_mult 0.5 multiplies the AWD-LSTM's five dropouts; .* is a 'bert' model with dropouts",
        ),
        (
            {"gradient_window": 70},
            "gradient_window 70 is for an AWD-LSTM's recurrent state; .* is a 'bert'",
        ),
        ({"max_length": 65}, "max_length 65 is more than .*bert reads, 64 tokens"),
    ],
)
def test_a_setting_of_the_awd_lstm_is_refused_with_the_reason(pretrained, settings, words):
    with pytest.raises(ValueError, match=words):
        build(pretrained["bert"], **settings)


@pytest.mark.parametrize("setting", [{"long_documents": "windows"}, {"block_groups": 2}])
def test_a_setting_of_transformers_is_refused_for_an_awd_lstm(tiny_language_model_folder, setting):
    name, value = next(iter(setting.items()))
    with pytest.raises(ValueError, match=f"{name} {value!r} is for transformers; .* is an AWD-LSTM, which reads docu"):
        build(tiny_language_model_folder, **setting)


def test_the_preset_for_transformers_is_refused_for_an_awd_lstm(tiny_language_model_folder):
    with pytest.raises(
        ValueError, match="preset 'transformer' has no dropouts and windows for an AWD-LSTM; take 'auto'"
    ):
        build(tiny_language_model_folder, context=RunContext(preset="transformer", say=str))


# Models that cannot be used


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (T5Config(), "is a 't5' model, an encoder with a decoder behind it: .*give an encoder"),
        (
            ViTConfig(),
            "is a 'vit' model, which reads images, not texts; train it on images with ImagePipeline or .*a text model",
        ),
        (
            CLIPConfig(),
            "is a 'clip' model, which transformers cannot classify texts with; give an AWD-LSTM's folder, a text",
        ),
    ],
    ids=["t5", "vit", "clip"],
)
def test_a_model_that_is_no_text_classifier_or_language_model_is_refused(tmp_path, config, words):
    config.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match=words):
        build(tmp_path)


def test_a_model_without_layers_to_thaw_is_refused(tmp_path):
    folder = save_bert(tmp_path / "bert", num_hidden_layers=0)
    with pytest.raises(
        ValueError, match="BertForSequenceClassification has no list of blocks, so its layer groups can"
    ):
        build(folder)


def test_an_architecture_that_mixes_padding_into_a_text_is_refused(tmp_path):
    folder = save_fnet(tmp_path / "fnet")
    with pytest.raises(
        ArtifactError, match="fnet is a 'fnet' model, which mixes padding into a text: its scores would"
    ):
        build(folder)


def test_a_hub_id_without_network_says_so_and_how_to_give_a_folder():
    words = (
        r"'google-bert/bert-base-uncased' is not a folder here and could not be fetched from the hub \(HF_HUB_OFFLINE"
    )
    with pytest.raises(ArtifactError, match=words):
        build("google-bert/bert-base-uncased")


def test_the_files_of_a_tokenizer_are_part_of_what_tells_a_model_from_another(bert_copy, pretrained):
    assert model_identity(bert_copy) == model_identity(pretrained["bert"])
    (bert_copy / "tokenizer.json").write_text((bert_copy / "tokenizer.json").read_text().replace("dull", "drab"))
    assert model_identity(bert_copy) != model_identity(pretrained["bert"])


def test_a_folder_without_a_tokenizer_is_refused(bert_copy):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bert_copy / name).unlink()
    with pytest.raises(ArtifactError, match="holds no tokenizer"):
        build(bert_copy)


def test_a_tokenizer_that_is_no_fast_one_is_refused(tmp_path):
    folder = save_bert(tmp_path / "bert", vocab_size=384)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    ByT5Tokenizer().save_pretrained(folder)
    with pytest.raises(ArtifactError, match=r"is a ByT5Tokenizer, not a fast tokenizer \(tokenizer.json\); save it"):
        build(folder)


@pytest.mark.parametrize("size", [20, 400])
def test_a_vocabulary_and_a_model_that_differ_in_size_are_refused(tmp_path, size):
    folder = save_bert(tmp_path / "bert", vocab_size=size)
    advice = {
        20: r"if tokens were added, model.resize_token_embeddings\(len\(tokenizer\)\) and save both again; else copy"
    }
    words = f"has {len(encoder_tokenizer())} ids, the model's embedding {size} rows, so they do not belong together; "
    words += advice.get(size, "copy the tokenizer files")
    with pytest.raises(ArtifactError, match=words):
        build(folder)


def test_an_embedding_with_some_rows_more_than_the_vocabulary_is_fine(tmp_path):
    folder = save_bert(tmp_path / "bert", vocab_size=len(encoder_tokenizer()) + 5)
    assert build(folder).learner.names == GROUPS


def test_a_vocabulary_in_another_order_is_refused_where_a_classifier_was_trained_with_it(trained, tmp_path):
    folder = shutil.copytree(trained["bert"], tmp_path / "copy")
    content = json.loads((folder / "tokenizer.json").read_text())
    entries = content["model"]["vocab"]
    entries["warm"], entries["dull"] = entries["dull"], entries["warm"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        ArtifactError, match="does not belong to the model: it has as many tokens, but others or in anot"
    ):
        Predictor.load(folder)


def test_two_classifiers_of_other_vocabularies_are_not_averaged(trained, tmp_path):
    folder = shutil.copytree(trained["bert"], tmp_path / "copy")
    shutil.copytree(trained["bert"], folder / "backward")
    assert len(Predictor.load(folder).models) == 2
    config = json.loads((folder / "backward/config.json").read_text())
    config["ulmfit_pipe"]["vocabulary"] = "0" * 64
    (folder / "backward/config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="backward was trained with another vocabulary than the classifier it is"):
        Predictor.load(folder)


@pytest.mark.parametrize("head", ["own", "concat-pooling", "mean-pooling"])
def test_weights_that_lack_a_part_of_the_encoder_are_refused_not_filled_with_random_ones(bert_copy, head):
    weights = bert_copy / "model.safetensors"
    tensors = {name: value for name, value in load_file(weights).items() if "layer.1.output.dense" not in name}
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(
        ArtifactError, match=r"lack .*encoder.layer.1.output.dense.bias \(2 in all\), so they are not a complete"
    ):
        build(bert_copy, head=head)


def test_a_saved_classifier_without_its_head_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained["bert"], tmp_path / "copy")
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in tensors.items() if not name.startswith("classifier.")},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "stage.json").unlink()  # it holds the digest of the file
    with pytest.raises(ArtifactError, match=r"lack classifier\."):
        Predictor.load(folder)
    with pytest.raises(ArtifactError, match=r"lack classifier\."):
        build(folder)


def test_a_language_model_of_transformers_is_no_classifier_to_predict_with(pretrained):
    with pytest.raises(
        ArtifactError, match="gpt2 is a language model, which knows no labels: train a classifier from it"
    ):
        Predictor.load(pretrained["gpt2"])


def test_the_other_presets_train_a_transformer_where_they_are_asked_for(pretrained, tmp_path):
    context = RunContext(preset="fastai", say=str)
    result = fit(pretrained["bert"], tmp_path / "fastai", settings=CLASSIFIER, context=context)
    assert result.metrics["n"] == 10
    assert [epoch["phase"] for epoch in read_stage(tmp_path / "fastai")["epochs"]] == [
        "last 1",
        "last 2",
        "last 3",
        "all",
    ]
