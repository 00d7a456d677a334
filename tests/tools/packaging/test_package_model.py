"""Packaging a language model: half the size, the same figures, a card, and nothing of the machine it was made on."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support.tiny_runs import LM, folder_bytes, heard, reviews, texts_of, write_csv
from ulmfit_pipe.settings.model_files import PackageSettings
from ulmfit_pipe.settings.text import LanguageModelSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, load_tokenizer
from ulmfit_pipe.text.language_model import train_language_model
from ulmfit_pipe.text.lineage import lineage_of
from ulmfit_pipe.tools.packaging import package_model
from ulmfit_pipe.tools.packaging.package_model import package_language_model, without_paths
from ulmfit_pipe.training.compute.precision import cpu_precision

TRAIN = texts_of(*[text for text, _ in reviews(80)])
HELD_OUT = reviews(12, seed=7)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return the folder in which a forward model lies and a backward one with its tokenizer."""
    place, validation = tmp_path_factory.mktemp("models"), texts_of(*[text for text, _ in HELD_OUT])
    write_csv(place / "held_out.csv", HELD_OUT)
    backward = dataclasses.replace(LM, vocab_size=None, tokenizer_of=str(place / "lm"), direction="backward")
    for name, settings in (("lm", LM), ("back", backward)):
        train_language_model(
            TRAIN,
            validation,
            output_dir=place / name,
            settings=settings,
            context=heard()[1],
            train_files=[place / "train.csv"],
        )
    return place


@pytest.fixture(scope="module")
def packaged(models):
    """Return the folder of the packaged forward model, measured again, and its record."""
    folder = models / "shipped/awd-lstm-en"
    settings = PackageSettings(
        str(models / "lm"), str(folder), validation_file=str(models / "held_out.csv"), sample_tokens=12
    )
    return folder, package_language_model(settings, context=heard()[1])


def changed_copy(models, folder, change):
    """Copy the forward model with its weights changed on purpose, so that its record holds no digests of them."""
    shutil.copytree(models / "lm", folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    record = json.loads((folder / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps({**record, "files": None, "record_sha256": None}))
    return folder


def test_the_folder_holds_what_a_model_needs_and_nothing_else(packaged):
    assert {file.name for file in packaged[0].iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "stage.json",
        "tokenizer_config.json",
        "ulmfit_tokenizer.json",
    }


def test_the_weights_are_rounded_on_disk_and_load_as_float32(models, packaged):
    stored, trained = (load_file(folder / "model.safetensors") for folder in (packaged[0], models / "lm"))
    assert stored.keys() == trained.keys()
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert all(torch.equal(stored[name], value.half()) for name, value in trained.items())
    assert packaged[1]["weight_bytes"] == (packaged[0] / "model.safetensors").stat().st_size
    model, found = AutoModelForCausalLM.from_pretrained(packaged[0], output_loading_info=True)
    assert not found["missing_keys"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embeddings.weight
    load_tokenizer(packaged[0], config=model.config)


def test_the_figures_are_those_of_the_rounded_weights(models, packaged):
    trained = json.loads((models / "lm/stage.json").read_text())["metrics"]
    found = packaged[1]["metrics"]
    assert found.keys() == trained.keys()
    assert found["loss"] != trained["loss"]
    for name, value in trained.items():
        assert found[name] == pytest.approx(value, rel=2e-3), name
    assert (packaged[1]["measured_on"], packaged[1]["measured_in"]) == ("held_out.csv", "fp32")


def test_without_a_validation_file_the_trainings_figures_stand(models, tmp_path):
    record = package_language_model(
        PackageSettings(str(models / "lm"), str(tmp_path / "lm"), sample_tokens=3), context=heard()[1]
    )
    assert record["metrics"] == json.loads((models / "lm/stage.json").read_text())["metrics"]
    assert record["measured_on"] is None
    assert "before the weights were rounded to float16" in (tmp_path / "lm/README.md").read_text()


def test_no_path_of_the_machine_is_left_in_any_file(models, packaged):
    written = json.loads((models / "back/stage.json").read_text())["identity"]["settings"]["tokenizer_of"]
    assert written == str(models / "lm")  # the training's own record has them
    folder = models / "shipped/awd-lstm-en-backward"
    package_language_model(
        PackageSettings(str(models / "back"), str(folder), name=folder.name, sample_tokens=3), context=heard()[1]
    )
    for file in (*packaged[0].iterdir(), *folder.iterdir()):
        content = file.read_bytes().decode("utf-8", "replace")
        for word in (str(models), models.name, "/tmp", "/home", "/root"):
            assert word not in content, (file.name, word)
    record = json.loads((folder / "stage.json").read_text())
    assert record["settings"]["tokenizer_of"] == "lm"
    assert record["lineage"][0]["train_files"] == ["train.csv"]


def test_paths_become_their_last_part_and_other_words_stay():
    given = {
        "a": ["/home/me/wiki.parquet", "~/x", "../lm", "runs/lm", "owner/name"],
        "b": "2 x 1 thread / a core",
        "c": 1,
        "spaces": [
            "My Files/Client X/reviews.csv",
            "Client X/language model",
            "read from /home/Jane Doe/x.csv",
            "runs/lm/",
        ],
        "windows": ["C:\\Users\\Jane Doe\\x.csv", "\\\\server\\Client X\\lm", "C:/Users/Jane Doe/x.csv"],
        "address": "see https://example.org/licence here",
    }
    assert without_paths(given) == {
        "a": ["wiki.parquet", "x", "lm", "lm", "name"],
        "b": "2 x 1 thread / a core",
        "c": 1,
        "spaces": ["reviews.csv", "language model", "x.csv", "lm"],
        "windows": ["x.csv", "lm", "x.csv"],
        "address": "see https://example.org/licence here",
    }


def test_the_record_and_the_card_tell_the_training(models, packaged):
    record = json.loads((packaged[0] / "stage.json").read_text())
    assert record["stage"] == "package"
    assert record["lineage"] == lineage_of(json.loads((models / "lm/stage.json").read_text()))
    assert {"torch", "python"} <= set(record["trained_with"])
    card = (packaged[0] / "README.md").read_text()
    assert f"| perplexity a token | {record['metrics']['perplexity']:.2f} |" in card
    assert f"- Tokens seen: {record['lineage'][0]['tokens_seen']:,} (over 1 leg of training)." in card
    assert "CC BY-SA 4.0" in card


def test_the_sample_is_the_same_each_time_and_keeps_the_prompt(models, packaged, tmp_path):
    state = torch.get_rng_state()
    settings = PackageSettings(str(models / "lm"), str(tmp_path / "lm"), sample_tokens=12)
    sample = package_language_model(settings, context=heard()[1])["sample"]
    assert torch.equal(torch.get_rng_state(), state)
    assert sample == packaged[1]["sample"]
    assert (sample["tokens"], sample["seed"], sample["temperature"], sample["top_k"]) == (12, 0, 0.7, 40)
    other = dataclasses.replace(settings, seed=1, prompt="the warm story")
    sample = package_language_model(other, context=heard()[1])["sample"]
    assert sample["text"].startswith("the warm story ")
    assert "xx" not in sample["text"]


def test_a_backward_sample_ends_with_its_prompt(models, tmp_path):
    settings = PackageSettings(
        str(models / "back"), str(tmp_path / "b"), name="en-backward", sample_tokens=5, prompt="three brothers."
    )
    sample = package_language_model(settings, context=heard()[1])["sample"]
    assert sample["text"].lower().endswith("three brothers.")
    assert sample["tokens"] == 5


def test_a_packaged_model_is_gone_on_from_and_packaged_again(packaged, tmp_path):
    settings = LanguageModelSettings(plan="pretrain", epochs=1, batch_size=4)
    validation = texts_of(*[text for text, _ in HELD_OUT])
    train_language_model(
        TRAIN, validation, output_dir=tmp_path / "on", model=str(packaged[0]), settings=settings, context=heard()[1]
    )
    assert len(json.loads((tmp_path / "on/stage.json").read_text())["lineage"]) == 2
    for _ in range(2):
        record = package_language_model(
            PackageSettings(str(packaged[0]), str(tmp_path / "again"), sample_tokens=3), context=heard()[1]
        )
    assert record["metrics"] == packaged[1]["metrics"]
    assert (record["measured_on"], record["measured_in"]) == ("held_out.csv", "fp32")
    assert record["settings"] == packaged[1]["settings"]


def test_what_is_replaced_is_told_beside_what_replaces_it(models, packaged, tmp_path):
    folder, validation = tmp_path / "again", str(models / "held_out.csv")
    settings = PackageSettings(str(packaged[0]), str(folder), validation_file=validation, sample_tokens=3)
    said, context = heard()
    package_language_model(settings, context=context)
    assert not said  # nothing was there before
    package_language_model(settings, context=context)
    token, word = (packaged[1]["metrics"][name] for name in ("perplexity", "perplexity_per_word"))
    assert said == [
        f"replaced {folder}: validation perplexity {token:.2f} -> {token:.2f} per token (no change), "
        f"{word:.2f} -> {word:.2f} per word (no change)"
    ]


def packaged_record(perplexity, per_word, *, measured_on="v.parquet", measured_in="bf16", vocab_size=12_000, n=5_000.0):
    return {
        "metrics": {"perplexity": perplexity, "perplexity_per_word": per_word, "n": n},
        "measured_on": measured_on,
        "measured_in": measured_in,
        "sizes": {"vocab_size": vocab_size},
    }


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (
            packaged_record(60.0, 840.0),
            "validation perplexity 80.00 -> 60.00 per token (-25.0%), 800.00 -> 840.00 per word (+5.0%)",
        ),
        (packaged_record(None, 840.0), "validation perplexity 800.00 -> 840.00 per word (+5.0%)"),
        (packaged_record(None, None), "no perplexity of both is known"),
        (
            packaged_record(60.0, None, measured_in="fp32"),
            "validation perplexity 80.00 -> 60.00 per token (-25.0%); not to be compared: the old one was measured on "
            "v.parquet (5,000 tokens) in bf16, the new one on v.parquet (5,000 tokens) in fp32",
        ),
        (
            packaged_record(60.0, None, n=6_000.0),
            "validation perplexity 80.00 -> 60.00 per token (-25.0%); not to be compared: the old one was measured on "
            "v.parquet (5,000 tokens) in bf16, the new one on v.parquet (6,000 tokens) in bf16",
        ),
        (
            packaged_record(60.0, None, measured_on=None, measured_in=None),
            "validation perplexity 80.00 -> 60.00 per token (-25.0%); not to be compared: the old one was measured on "
            "v.parquet (5,000 tokens) in bf16, the new one by its training on the text that this held out",
        ),
        (
            packaged_record(60.0, None, vocab_size=9_000, n=6_000.0),
            "validation perplexity 80.00 -> 60.00 per token (-25.0%); the vocabularies differ: compare by word",
        ),
    ],
)
def test_two_packaged_models_are_compared_as_far_as_they_can_be(new, words):
    assert package_model.compared_with(packaged_record(80.0, 800.0), new) == words


def test_two_figures_of_two_trainings_are_not_to_be_compared():
    old = packaged_record(80.0, 800.0, measured_on=None, measured_in=None)
    assert "not to be compared: the old one was measured by its training" in package_model.compared_with(old, old)


@pytest.mark.bf16
def test_the_figures_can_be_measured_in_bf16(models, packaged, tmp_path, fresh_accelerator):
    settings = PackageSettings(
        str(models / "lm"),
        str(tmp_path / "lm"),
        validation_file=str(models / "held_out.csv"),
        mixed_precision="bf16",
        sample_tokens=3,
    )
    record = package_language_model(settings)
    assert record["measured_in"] == ("bf16" if cpu_precision("bf16")[0] == "bf16" else "fp32")
    assert record["metrics"]["loss"] == pytest.approx(packaged[1]["metrics"]["loss"], rel=0.02)


def test_a_training_is_never_overwritten(models):
    before = folder_bytes(models / "lm")
    with pytest.raises(ArtifactError, match="holds a language_model stage, not a package stage; choose another output"):
        package_language_model(
            PackageSettings(str(models / "lm"), str(models / "lm"), sample_tokens=3), context=heard()[1]
        )
    assert folder_bytes(models / "lm") == before


def test_more_than_the_most_bytes_are_refused_with_numbers(models, tmp_path, monkeypatch):
    monkeypatch.setattr(package_model, "MOST_BYTES", 2_000)
    with pytest.raises(
        ArtifactError, match=r"take 0.0 MB in float16, more than the 0.002 MB that a built-in model may"
    ):
        package_language_model(PackageSettings(str(models / "lm"), str(tmp_path / "lm")))
    assert not (tmp_path / "lm").exists()
    assert package_model.MOST_BYTES == 2_000


def test_thirty_two_megabytes_are_the_most():
    assert package_model.MOST_BYTES == 32_000_000


def test_a_weight_that_float16_cannot_hold_is_refused(models, tmp_path):
    def enlarge(weights):
        weights["lm_head.bias"][2] = 1e6

    folder = changed_copy(models, tmp_path / "large", enlarge)
    words = (
        r"lm_head.bias of .*large does not fit into float16 \(its largest weight is 1e\+06, float16 ends at 65,504\)"
    )
    with pytest.raises(ArtifactError, match=words):
        package_language_model(PackageSettings(str(folder), str(tmp_path / "lm")))


def test_a_model_without_a_record_is_refused(tiny_language_model_folder, tmp_path):
    with pytest.raises(
        ArtifactError, match=r"has no record of a language model's training \(stage.json\), so its card"
    ):
        package_language_model(PackageSettings(str(tiny_language_model_folder), str(tmp_path / "lm")))


@pytest.mark.parametrize(
    ("model", "name", "fitting"),
    [("back", "awd-lstm-en", "awd-lstm-en-backward"), ("lm", "awd-lstm-en-backward", "awd-lstm-en")],
)
def test_a_name_that_misleads_about_the_direction_is_refused(models, tmp_path, model, name, fitting):
    with pytest.raises(ArtifactError, match=re.escape(f"so '{name}' would mislead; name it '{fitting}'")):
        package_language_model(PackageSettings(str(models / model), str(tmp_path / "lm"), name=name))
