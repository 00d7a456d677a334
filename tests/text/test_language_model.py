"""The language-model stage on a model of a few thousand weights."""

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file

from tests.support.tiny_runs import FILLERS, LM, TINY_LM, folder_bytes, heard, reviews, texts_of
from ulmfit_pipe.data.text.text_rules import SPECIAL_TOKENS
from ulmfit_pipe.data.text.tokenization import build_word_tokenizer, tokens_in_order, vocab_hash
from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM
from ulmfit_pipe.settings.text import LanguageModelSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, load_tokenizer
from ulmfit_pipe.stages.context import RunContext, deadline_after
from ulmfit_pipe.text.families import awd_lstm
from ulmfit_pipe.text.language_model import build_language_model_learner, train_language_model
from ulmfit_pipe.training.schedules import Schedule

TRAIN = texts_of(*[text for text, _ in reviews(40)])
VALIDATION = texts_of(*[text for text, _ in reviews(10, seed=7)])


def weights_in(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a model from scratch, what was said, and the result."""
    folder = tmp_path_factory.mktemp("lm") / "general"
    said, context = heard()
    result = train_language_model(TRAIN, VALIDATION, output_dir=folder, settings=LM, context=context)
    return folder, said, result


@pytest.fixture(scope="module")
def word_model_folder(tmp_path_factory):
    """Return the folder of a language model over words."""
    folder = tmp_path_factory.mktemp("lm") / "words"
    special = "xxunk xxpad xxbos xxeos xxfld xxrep xxwrep xxup xxmaj".split()
    tokenizer = build_word_tokenizer([*special, *sorted(set(FILLERS)), "elephant"])
    torch.manual_seed(1)
    sizes = {"embedding_size": 10, "hidden_size": 14, "num_hidden_layers": 2, "bptt": 11}
    model = AwdLstmForCausalLM(AwdLstmConfig(vocab_size=len(tokenizer), vocab_hash=vocab_hash(tokenizer), **sizes))
    torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_from_scratch_ends_in_a_folder_with_all_that_belongs_to_it(trained):
    folder, said, result = trained
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "log.jsonl",
        "model.safetensors",
        "stage.json",
        "tokenizer_config.json",
        "ulmfit_tokenizer.json",
    ]
    assert (result.path, result.skipped) == (folder, False)
    assert result.metrics["perplexity"] == pytest.approx(math.exp(result.metrics["loss"]))
    assert 1 < result.metrics["perplexity"] < 110
    config = json.loads((folder / "config.json").read_text())
    assert [config[name] for name in ("embedding_size", "hidden_size", "num_hidden_layers", "bptt")] == [10, 14, 2, 11]
    assert config["vocab_hash"] == vocab_hash(load_tokenizer(folder))
    assert any(line.startswith("language model: ") and "tokens to train on, vocabulary of" in line for line in said)


def test_perplexity_per_word_is_the_loss_over_what_white_space_cuts(trained):
    folder, _, result = trained
    tokens = sum(len(ids) for ids in load_tokenizer(folder)(VALIDATION["text"][:])["input_ids"])
    words = sum(len(text.split()) for text in VALIDATION["text"])
    expected = result.metrics["loss"] * tokens / words
    assert math.log(result.metrics["perplexity_per_word"]) == pytest.approx(expected, rel=0.05)


def test_a_backward_twin_takes_its_tokenizer_over(trained, tmp_path):
    folder, _, _ = trained
    sizes = {name: value for name, value in TINY_LM.items() if name != "vocab_size"}
    settings = LanguageModelSettings(**sizes, epochs=1, batch_size=4, direction="backward", tokenizer_of=str(folder))
    train_language_model(TRAIN, VALIDATION, output_dir=tmp_path / "twin", settings=settings, context=heard()[1])
    config = json.loads((tmp_path / "twin" / "config.json").read_text())
    assert config["direction"] == "backward"
    assert config["vocab_hash"] == vocab_hash(load_tokenizer(folder)) == vocab_hash(load_tokenizer(tmp_path / "twin"))


@pytest.mark.parametrize(("setting", "value"), [("vocab_size", 100), ("min_count", 2), ("tokenizer", "bpe")])
def test_a_tokenizer_cannot_be_taken_over_and_made_at_once(setting, value):
    with pytest.raises(ValueError, match=f"tokenizer_of takes the tokenizer of lm as it is, so {setting} has no mean"):
        LanguageModelSettings(tokenizer_of="lm", **{setting: value})


def test_a_pretrained_model_keeps_its_own_tokenizer(trained, tmp_path):
    folder, _, _ = trained
    with pytest.raises(ValueError, match=r"has a tokenizer of its own; leave tokenizer_of \(.*general\) out"):
        build_language_model_learner(
            TRAIN, VALIDATION, model=str(folder), settings=LanguageModelSettings(tokenizer_of=str(folder))
        )


def test_pretraining_goes_on_from_a_model_with_one_rate_and_one_cycle(trained):
    folder, _, _ = trained
    settings = LanguageModelSettings(plan="pretrain", lr=3e-3, epochs=2)
    parts = build_language_model_learner(TRAIN, VALIDATION, model=str(folder), settings=settings, context=heard()[1])
    (phase,) = parts.phases
    assert (phase.trainable, phase.lrs, phase.epochs) == ((0, 1, 2), (3e-3, 3e-3, 3e-3), 2)
    assert phase.schedule == Schedule.one_cycle()


def test_bits_per_character_are_the_loss_over_the_characters(trained):
    folder, _, result = trained
    tokens = sum(len(ids) for ids in load_tokenizer(folder)(VALIDATION["text"][:])["input_ids"])
    characters = sum(len(text) for text in VALIDATION["text"])
    expected = result.metrics["loss"] * tokens / (math.log(2) * characters)
    assert result.metrics["bits_per_character"] == pytest.approx(expected, rel=0.05)  # a few tokens at the end less


def test_the_record_holds_plan_epochs_groups_rates_and_versions(trained):
    record = json.loads((trained[0] / "stage.json").read_text())
    assert record["stage"] == "language_model"
    assert [epoch["phase"] for epoch in record["epochs"]] == ["full"]
    assert [group["group"] for group in record["groups"]] == ["lstm0", "lstm1", "embeddings"]
    assert len(record["rates"]["values"]) == record["epochs"][0]["step"] > 3
    assert record["cut_short"] is False
    assert "one-cycle" in record["plan"]
    assert {"python", "torch", "transformers", "ulmfit_pipe"} <= set(record["versions"])


def test_the_same_seed_gives_bit_identical_weights_and_another_seed_others(trained, tmp_path):
    again, other = tmp_path / "again", tmp_path / "other"
    quiet = {"settings": LM}
    train_language_model(TRAIN, VALIDATION, output_dir=again, context=heard()[1], **quiet)
    train_language_model(TRAIN, VALIDATION, output_dir=other, context=RunContext(seed=5, say=str), **quiet)
    first = weights_in(trained[0])
    assert all(torch.equal(value, first[name]) for name, value in weights_in(again).items())
    assert not torch.equal(weights_in(other)["model.embeddings.weight"], first["model.embeddings.weight"])


def test_a_finished_stage_is_skipped_and_says_so(trained):
    folder, _, result = trained
    before = folder_bytes(folder)
    said, context = heard()
    again = train_language_model(TRAIN, VALIDATION, output_dir=folder, settings=LM, context=context)
    assert said == [f"language_model: already finished in {folder} with the same settings and data, skipped"]
    assert again.skipped
    assert (again.metrics, again.seconds) == (result.metrics, result.seconds)
    assert folder_bytes(folder) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"settings": LanguageModelSettings(**TINY_LM, epochs=3, batch_size=4)}, "settings.epochs (1 there, 3 now)"),
        ({"context": RunContext(preset="paper", say=str)}, "preset ('fastai' there, 'paper' now)"),
        ({"context": RunContext(seed=9, say=str)}, "seed (0 there, 9 now)"),
        ({"train": texts_of("another text", "and one more")}, "data ("),
    ],
)
def test_changed_settings_or_data_are_named_and_nothing_is_lost(trained, changes, words):
    before = folder_bytes(trained[0])
    given = {"train": TRAIN, "settings": LM, "context": heard()[1], **changes}
    with pytest.raises(ArtifactError, match=re.escape(words)):
        train_language_model(given.pop("train"), VALIDATION, output_dir=trained[0], **given)
    assert folder_bytes(trained[0]) == before


def test_the_number_of_workers_is_no_other_run(trained):
    settings = LanguageModelSettings(**TINY_LM, epochs=1, batch_size=4, num_workers=1)
    said, context = heard()
    assert train_language_model(TRAIN, VALIDATION, output_dir=trained[0], settings=settings, context=context).skipped


def test_a_pretrained_subword_model_keeps_its_tokenizer_and_starts_from_its_weights(tiny_language_model_folder):
    parts = build_language_model_learner(TRAIN, VALIDATION, model=str(tiny_language_model_folder), context=heard()[1])
    assert tokens_in_order(parts.tokenizer) == tokens_in_order(load_tokenizer(tiny_language_model_folder))
    stored = weights_in(tiny_language_model_folder)
    state = parts.learner.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in stored.items())
    assert parts.pretrained
    assert [group.name for group in parts.learner.layer_groups if not group.frozen] == ["embeddings"]
    assert [phase.name for phase in parts.phases] == ["embeddings", "all"]


def test_a_word_model_gets_a_new_vocabulary_and_known_words_keep_their_rows(word_model_folder):
    said, context = heard()
    settings = LanguageModelSettings(min_count=1)
    parts = build_language_model_learner(
        TRAIN, VALIDATION, model=str(word_model_folder), settings=settings, context=context
    )
    old, new = tokens_in_order(load_tokenizer(word_model_folder)), tokens_in_order(parts.tokenizer)
    stored, state = weights_in(word_model_folder), parts.learner.model.state_dict()
    rows, bias = stored["model.embeddings.weight"], stored["lm_head.bias"]
    assert {"film", "elephant"} & set(old) == {"film", "elephant"}
    assert {"film", "funny", "elephant"} & set(new) == {"film", "funny"}
    film, funny = new.index("film"), new.index("funny")
    assert torch.equal(state["model.embeddings.weight"][film], rows[old.index("film")])
    assert torch.equal(state["lm_head.bias"][film], bias[old.index("film")])
    torch.testing.assert_close(state["model.embeddings.weight"][funny], rows.mean(0))
    torch.testing.assert_close(state["lm_head.bias"][funny], bias.mean())
    kept = len(set(old) & set(new))
    assert f"vocabulary: {kept} tokens kept their rows, {len(new) - kept} start at the mean" in said
    assert parts.learner.model.config.vocab_hash == vocab_hash(parts.tokenizer)


def test_a_subword_model_gets_another_subword_vocabulary_by_token_string(tiny_language_model_folder):
    said, context = heard()
    settings = LanguageModelSettings(tokenizer="unigram", vocab_size=110)
    parts = build_language_model_learner(
        TRAIN, VALIDATION, model=str(tiny_language_model_folder), settings=settings, context=context
    )
    old, new = tokens_in_order(load_tokenizer(tiny_language_model_folder)), tokens_in_order(parts.tokenizer)
    stored, state = weights_in(tiny_language_model_folder), parts.learner.model.state_dict()
    shared = set(old) & set(new)
    assert len(SPECIAL_TOKENS) < len(shared) < len(new)
    rows = stored["model.embeddings.weight"]
    for number, token in enumerate(new):
        expected = rows[old.index(token)] if token in shared else rows.mean(0)
        torch.testing.assert_close(state["model.embeddings.weight"][number], expected)
    assert f"vocabulary: {len(shared)} tokens kept their rows, {len(new) - len(shared)} start at the mean" in said
    assert parts.learner.model.config.vocab_hash == vocab_hash(parts.tokenizer)


def test_a_model_with_a_new_vocabulary_is_saved_whole_and_loads_again(word_model_folder, tmp_path):
    settings = LanguageModelSettings(min_count=1, epochs=1, batch_size=4)
    folder = tmp_path / "tuned"
    train_language_model(
        TRAIN, VALIDATION, output_dir=folder, model=str(word_model_folder), settings=settings, context=heard()[1]
    )
    parts = build_language_model_learner(TRAIN, VALIDATION, model=str(folder), settings=settings, context=heard()[1])
    assert len(parts.tokenizer) == parts.learner.model.config.vocab_size


def test_a_new_word_vocabulary_may_hold_60000_words_and_a_subword_one_15000(monkeypatch, word_model_folder):
    asked = []

    def train(texts, **numbers):
        asked.append(numbers)
        raise ValueError("far enough")

    monkeypatch.setattr(awd_lstm, "train_tokenizer", train)
    for model in (str(word_model_folder), None):
        with pytest.raises(ValueError, match="far enough"):
            build_language_model_learner(TRAIN, VALIDATION, model=model, context=heard()[1])
    assert asked == [
        {"kind": "word", "vocab_size": 60_000, "min_count": 3},
        {"kind": "unigram", "vocab_size": 15_000, "min_count": 3},
    ]


def test_the_validation_text_gives_neither_vocabulary_nor_batches():
    settings = LanguageModelSettings(
        tokenizer="word", min_count=1, batch_size=1, bptt=11, embedding_size=5, hidden_size=7
    )
    rare = texts_of("zebra giraffe zebra giraffe zebra giraffe")
    parts = build_language_model_learner(TRAIN, rare, settings=settings, context=heard()[1])
    assert "zebra" not in parts.tokenizer.get_vocab()
    seen = torch.cat([batch["input_ids"].flatten() for batch in parts.learner.task.train_batches])
    held = torch.cat([batch["input_ids"].flatten() for batch in parts.learner.task.valid_batches])
    assert parts.tokenizer.unk_token_id not in seen
    assert parts.tokenizer.unk_token_id in held


def test_a_backward_model_reads_the_stream_from_its_end(tmp_path):
    def first_epoch(direction):
        settings = LanguageModelSettings(**TINY_LM, batch_size=1, direction=direction)
        parts = build_language_model_learner(TRAIN, VALIDATION, settings=settings, context=heard()[1])
        return torch.cat([batch["input_ids"][0] for batch in parts.learner.task.valid_batches]), parts

    forward, _ = first_epoch("forward")
    backward, parts = first_epoch("backward")
    assert torch.equal(forward[1:], backward.flip(0)[:-1])
    assert parts.learner.model.config.direction == "backward"


def test_a_model_of_the_other_direction_is_refused(tiny_language_model_folder):
    settings = LanguageModelSettings(direction="backward")
    with pytest.raises(ArtifactError, match="reads text forward, the settings ask for backward; set direction to"):
        build_language_model_learner(
            TRAIN, VALIDATION, model=str(tiny_language_model_folder), settings=settings, context=heard()[1]
        )


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("block_size", 64, "block_size 64 is for transformers; an AWD-LSTM reads one stream .*: set bptt"),
        ("mask_probability", 0.2, "mask_probability 0.2 is for transformers; .* names the next one: leave it out"),
        ("whole_word_masking", True, "whole_word_masking True is for transformers; .*: leave it out"),
    ],
)
def test_settings_of_transformers_are_refused(setting, value, words):
    settings = LanguageModelSettings(**TINY_LM, **{setting: value})
    with pytest.raises(ValueError, match=words):
        build_language_model_learner(TRAIN, VALIDATION, settings=settings, context=heard()[1])


@pytest.mark.parametrize("value", [1.0, 1.5])
def test_a_mask_probability_of_one_and_more_is_refused(value):
    with pytest.raises(ValueError, match=rf"mask_probability must lie in \(0, 1\), got {value}; 0.15 is BERT's value"):
        LanguageModelSettings(mask_probability=value)


def test_keeping_a_tokenizer_needs_a_model():
    settings = LanguageModelSettings(tokenizer="keep")
    with pytest.raises(ValueError, match="tokenizer 'keep' needs a pretrained model; give one, or a kind: unigram"):
        build_language_model_learner(TRAIN, VALIDATION, settings=settings, context=heard()[1])


@pytest.mark.parametrize(
    ("plan", "names", "epochs"),
    [
        ("full", ["full"], [4]),
        ("gradual", ["last 1", "last 2", "all"], [2, 2, 4]),
        ("preset", ["embeddings", "all"], [2, 4]),
    ],
)
def test_every_plan_takes_the_epochs_given(tiny_language_model_folder, plan, names, epochs):
    settings = LanguageModelSettings(plan=plan, epochs=4, frozen_epochs=2)
    parts = build_language_model_learner(
        TRAIN, VALIDATION, model=str(tiny_language_model_folder), settings=settings, context=heard()[1]
    )
    assert [phase.name for phase in parts.phases] == names
    assert [phase.epochs for phase in parts.phases] == epochs


def test_a_rate_given_for_the_full_plan_is_the_last_groups_rate(tiny_language_model_folder):
    settings = LanguageModelSettings(plan="full", lr=0.03)
    parts = build_language_model_learner(
        TRAIN, VALIDATION, model=str(tiny_language_model_folder), settings=settings, context=heard()[1]
    )
    assert parts.phases[0].lrs == pytest.approx((0.03 / 2.6**2, 0.03 / 2.6, 0.03))


def test_dropouts_are_the_presets_times_drop_mult(tiny_language_model_folder):
    settings = LanguageModelSettings(drop_mult=0.5)
    parts = build_language_model_learner(
        TRAIN, VALIDATION, model=str(tiny_language_model_folder), settings=settings, context=heard()[1]
    )
    config = parts.learner.model.config
    assert (config.input_dropout, config.output_dropout, config.weight_dropout) == (0.125, 0.05, 0.1)
    assert (config.embedding_dropout, config.hidden_dropout) == (0.01, 0.075)


def test_a_short_text_narrows_the_batch():
    parts = build_language_model_learner(
        TRAIN, VALIDATION, settings=LanguageModelSettings(**TINY_LM), context=heard()[1]
    )
    assert parts.learner.task.train_batches.batch_size == max(1, parts.tokens // 400)


def test_a_time_limit_that_is_over_leaves_the_pretrained_model_and_says_so(tiny_language_model_folder, tmp_path):
    said, context = heard()
    context.deadline = deadline_after(1e-9)
    result = train_language_model(
        TRAIN, VALIDATION, output_dir=tmp_path / "lm", model=str(tiny_language_model_folder), context=context
    )
    expected = "language model: max_seconds ran out before the first step, so it stays as the pretrained one was"
    assert expected in said
    stored, kept = weights_in(tiny_language_model_folder), weights_in(tmp_path / "lm")
    assert all(torch.equal(kept[name], value) for name, value in stored.items())
    assert math.isfinite(result.metrics["perplexity"])
    said, context = heard()
    again = train_language_model(
        TRAIN, VALIDATION, output_dir=tmp_path / "lm", model=str(tiny_language_model_folder), context=context
    )
    assert again.skipped
    assert "that training was cut short by a time limit; remove" in said[1]


def test_the_metrics_are_those_of_the_weights_that_were_kept(trained):
    folder, _, result = trained
    parts = build_language_model_learner(
        TRAIN, VALIDATION, model=str(folder), settings=LanguageModelSettings(batch_size=4, bptt=11), context=heard()[1]
    )
    assert parts.learner.validate()["loss"] == pytest.approx(result.metrics["loss"], rel=1e-6)


@pytest.mark.parametrize(("given", "expected"), [({}, (2.0, 1.0)), ({"alpha": 0.0, "beta": 0.5}, (0.0, 0.5))])
def test_the_penalties_on_activations_are_the_preset_s_unless_they_are_given(
    tiny_language_model_folder, given, expected
):
    parts = build_language_model_learner(
        TRAIN,
        VALIDATION,
        model=str(tiny_language_model_folder),
        settings=LanguageModelSettings(**given),
        context=heard()[1],
    )
    objective = parts.learner.task.objective
    assert (objective.alpha, objective.beta) == expected
