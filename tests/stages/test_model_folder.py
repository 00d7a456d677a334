"""Folders from strangers: no code, no pickles, nothing from elsewhere, no sizes that cannot be; one line each."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2Model,
)

from tests.support.tiny_images import save_backbone
from tests.support.tiny_transformers import SIZES, WIDE, encoder_tokenizer, save_bert
from ulmfit_pipe.stages.artifacts import (
    ArtifactError,
    load_config,
    load_image_processor,
    load_model,
    load_text_tokenizer,
    model_identity,
)
from ulmfit_pipe.text.predict.predictor import Predictor

ROOT = Path(__file__).parents[2]

MODEL_CODE = """
import pathlib
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel, BertTokenizer
pathlib.Path(r"{marker}").write_text("ran")
class TheirConfig(BertConfig):
    model_type = "theirs"
class TheirModel(BertModel):
    config_class = TheirConfig
class TheirClassifier(BertForSequenceClassification):
    config_class = TheirConfig
"""


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Return the folder of a BERT classifier of bad, fair, good, as another program saves it."""
    return save_classifier(tmp_path_factory.mktemp("bert"))


def save_classifier(folder: Path, **settings) -> Path:
    tokenizer = encoder_tokenizer()
    names = {"id2label": dict(enumerate(("bad", "fair", "good"))), "label2id": {"bad": 0, "fair": 1, "good": 2}}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, **SIZES, **WIDE}
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(**{**sizes, **names, **settings})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(bert, tmp_path):
    return shutil.copytree(bert, tmp_path / "copy")


def change(folder: Path, file: str = "config.json", **values) -> Path:
    """Change entries of a JSON file by hand."""
    path = folder / file
    record = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**record, **values}))
    return folder


def shard(folder: Path) -> dict[str, str]:
    """Split a folder's weights into two files with an index, and return its weight_map."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, inside in parts.items():
        save_file({name: tensors[name] for name in inside}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, inside in parts.items() for name in inside}
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    change(folder, "model.safetensors.index.json", metadata={}, weight_map=weight_map)


# ---- code


def with_code(folder: Path, marker: Path) -> Path:
    """Let a folder come with code of its own, for configuration, models and tokenizer, that writes a file."""
    (folder / "theirs.py").write_text(MODEL_CODE.format(marker=marker))
    models = {"AutoModel": "theirs.TheirModel", "AutoModelForSequenceClassification": "theirs.TheirClassifier"}
    return change(folder, model_type="theirs", auto_map={"AutoConfig": "theirs.TheirConfig", **models})


def run_with_yes(code: str, tmp_path: Path) -> str:
    """Run a script whose every question is answered with y, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", code], input="y\n" * 100, text=True, capture_output=True, env=environment, timeout=200
    )
    return done.stdout + done.stderr


def test_code_in_a_folder_never_runs_unasked_whatever_stdin_says_and_runs_where_it_is_allowed(copy, bert, tmp_path):
    with_code(copy, tmp_path / "ran")
    tokenizer = shutil.copytree(bert, tmp_path / "tokenizer")
    (tokenizer / "theirs.py").write_text(MODEL_CODE.format(marker=tmp_path / "ran"))
    change(tokenizer, "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "theirs.BertTokenizer"]})
    images = save_backbone(tmp_path / "images")
    (images / "theirs.py").write_text(MODEL_CODE.format(marker=tmp_path / "ran"))
    change(images, "preprocessor_config.json", image_processor_type="X", auto_map={"AutoImageProcessor": "theirs.X"})
    shutil.copytree(copy, tmp_path / "trusted")
    printed = run_with_yes(
        f"""
from pathlib import Path
from ulmfit_pipe import Predictor
from ulmfit_pipe.stages.artifacts import *
from ulmfit_pipe.stages.model_folder import remote_code
def refused(call):
    try:
        call()
    except ArtifactError as error:
        print("refused:", error)
    print("ran", Path({str(tmp_path / "ran")!r}).exists())
refused(lambda: Predictor.load({str(copy)!r}))
refused(lambda: load_config({str(copy)!r}))
refused(lambda: load_text_tokenizer({str(tokenizer)!r}, load_config({str(tokenizer)!r})))
refused(lambda: load_image_processor({str(images)!r}))
trusted = Predictor.load({str(tmp_path / "trusted")!r}, trust_remote_code=True)
print(type(trusted.models[0]).__name__, trusted.predict(["warm film"])[0]["scores"])
print("expected", Predictor.load({str(bert)!r}).predict(["warm film"])[0]["scores"])
refused(lambda: load_config({str(copy)!r}))
""",
        tmp_path,
    )
    assert "Do you wish to run" not in printed
    words = (
        r"refused: \S+copy comes with Python code of its own \(auto_map in config.json\), which would run here with "
    )
    assert len(re.findall(words, printed)) == 3, printed
    assert printed.count("where you have read the code and trust it, set trust_remote_code to true") == 3
    assert len(re.findall("ran False", printed)) == 4, printed
    scores = re.findall(r"TheirClassifier (.*)\nexpected (.*)\n", printed)
    assert len(scores) == 1 and scores[0][0] == scores[0][1], printed


def test_a_folder_whose_code_only_repeats_what_transformers_knows_is_loaded_without_it(copy, bert, tmp_path):
    (copy / "theirs.py").write_text(MODEL_CODE.format(marker=tmp_path / "ran"))
    change(copy, auto_map={"AutoConfig": "theirs.TheirConfig", "AutoModel": "theirs.TheirModel"})
    assert Predictor.load(copy).predict(["warm film"]) == Predictor.load(bert).predict(["warm film"])
    assert not (tmp_path / "ran").exists()


# ---- weights


def test_sharded_weights_load_and_their_index_belongs_to_the_fingerprint(copy, bert):
    whole = Predictor.load(bert).predict(["warm film"])
    weight_map = shard(copy)
    assert Predictor.load(copy).predict(["warm film"]) == whole
    known = model_identity(copy)
    write_index(copy, {**weight_map, "another": "one.safetensors"})
    assert model_identity(copy) != known


@pytest.mark.parametrize("suffix", ["bin", "pt", "pkl"])
def test_an_index_that_names_a_pickle_is_refused_and_the_pickle_not_opened(copy, suffix, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "ran", "x"))

    weight_map = shard(copy)
    (copy / f"weights.{suffix}").write_bytes(pickle.dumps(Evil()))
    write_index(copy, {**weight_map, "classifier.bias": f"weights.{suffix}"})
    words = f"index.json names 'weights.{suffix}', a pickled checkpoint, which can run code when read, so it is refused"
    with pytest.raises(ArtifactError, match=re.escape(words)):
        Predictor.load(copy)
    assert not (tmp_path / "ran").exists()


NO_SHARDS = ["../outside.safetensors", "sub/one.safetensors", "..\\one.safetensors", "one.dat", "a\0b.safetensors"]


@pytest.mark.parametrize("given", [*NO_SHARDS, "a" * 5000 + ".safetensors"], ids=lambda given: repr(given)[:30])
def test_an_index_that_names_anything_but_a_safetensors_file_of_the_folder_is_refused(copy, given):
    weight_map = shard(copy)
    shutil.copy(copy / "one.safetensors", copy.parent / "outside.safetensors")
    (copy / "sub").mkdir()
    shutil.copy(copy / "one.safetensors", copy / "sub")
    shutil.copy(copy / "one.safetensors", copy / "one.dat")
    write_index(copy, {name: given if file == "one.safetensors" else file for name, file in weight_map.items()})
    with pytest.raises(ArtifactError, match=r"which is not a safetensors file inside the folder; take another save"):
        Predictor.load(copy)


def test_a_shard_that_is_a_link_out_of_the_folder_is_refused_but_not_one_of_the_hubs_cache(copy, tmp_path):
    shard(copy)
    (tmp_path / "hub/blobs").mkdir(parents=True)
    snapshot = shutil.copytree(copy, tmp_path / "hub/snapshots/abc")
    (snapshot / "one.safetensors").rename(tmp_path / "hub/blobs/1234")
    (snapshot / "one.safetensors").symlink_to("../../blobs/1234")
    assert Predictor.load(snapshot).label_names == ["bad", "fair", "good"]
    (copy / "one.safetensors").unlink()
    (copy / "one.safetensors").symlink_to(tmp_path / "hub/blobs/1234")
    with pytest.raises(ArtifactError, match="names 'one.safetensors', which is not a safetensors file inside the fold"):
        Predictor.load(copy)


@pytest.mark.parametrize(
    "index", ["{}", '{"weight_map": {}, "metadata": {}}', '{"weight_map": {"a": "b.safetensors"}}']
)
def test_an_index_without_its_entries_is_refused(copy, index):
    shard(copy)
    (copy / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ArtifactError, match="index.json has no weight_map and metadata, so it was altered"):
        Predictor.load(copy)


def test_a_download_that_is_not_complete_is_named(copy):
    shard(copy)
    (copy / "two.safetensors").unlink()
    words = r"two.safetensors is missing \(1 of 2 files of weights\), the download or copy is not complete; fetch the f"
    with pytest.raises(ArtifactError, match=words):
        Predictor.load(copy)
    (copy / "two.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n")
    with pytest.raises(ArtifactError, match="two.safetensors is a pointer of Git LFS, .* run git lfs pull there"):
        Predictor.load(copy)


def test_a_file_of_weights_that_is_too_long_or_no_safetensors_file_is_refused(copy):
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole + b"more")
    with pytest.raises(
        ArtifactError, match=rf"\({len(whole) + 4:,} bytes are there, its header declares {len(whole):,}\)"
    ):
        Predictor.load(copy)
    for header in (b"[1]", b'{"a": {"dtype": "F32"}}', b"[" * 50_000):
        weights.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(ArtifactError, match=r"was cut short or altered \(its header cannot be read\)"):
            Predictor.load(copy)


def write_pickle(file):
    file.write_bytes(pickle.dumps([1]))


def write_torch_save(file):
    torch.save([1], file)


@pytest.mark.parametrize("write", [write_pickle, write_torch_save])
def test_a_pickle_under_the_name_of_a_safetensors_file_is_told_to_be_one(copy, write):
    write(copy / "model.safetensors")
    with pytest.raises(ArtifactError, match="model.safetensors is a pickled checkpoint under another name, which can"):
        Predictor.load(copy)


@pytest.mark.parametrize("given", ["weights.bin", "../model.safetensors", "other.safetensors", 3])
def test_a_configuration_that_names_other_weights_is_refused(copy, given):
    change(copy, transformers_weights=given)
    with pytest.raises(ArtifactError, match="transformers_weights in config.json is .*: rename the file, and delete"):
        Predictor.load(copy)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.uint8])
def test_weights_that_are_no_floating_point_numbers_are_refused(copy, dtype):
    tensors = load_file(copy / "model.safetensors")
    tensors["classifier.weight"] = tensors["classifier.weight"].to(dtype)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="classifier.weight is stored as .*, weights must be one of F64, F32, F16"):
        Predictor.load(copy)


def test_half_precision_weights_load_as_ever(copy):
    tensors = {name: value.half() for name, value in load_file(copy / "model.safetensors").items()}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert load_model(copy, AutoModelForSequenceClassification).dtype == torch.float32


def test_weights_of_another_architecture_are_named(copy):
    sizes = {"n_embd": 16, "n_head": 2, "n_layer": 3, "n_positions": 64}
    GPT2Model(GPT2Config(vocab_size=60, bos_token_id=0, eos_token_id=0, **sizes)).save_pretrained(copy / "gpt2")
    shutil.copy(copy / "gpt2/model.safetensors", copy)
    words = r"holds none of the weights of a BertForSequenceClassification, but others \(h.0.attn.c_attn.bias, ...\)"
    with pytest.raises(ArtifactError, match=words + ": config.json and weights are of two models; take both from one"):
        Predictor.load(copy)


def test_an_adapter_beside_a_model_is_refused(copy):
    change(copy, "adapter_config.json", base_model_name_or_path="owner/name", peft_type="LORA")
    with pytest.raises(ArtifactError, match="holds a model and an adapter of peft .* merge the two with peft_model"):
        Predictor.load(copy)


# ---- names of other files and models


@pytest.mark.parametrize(
    ("entries", "path"),
    [
        ({"attn_implementation": "owner/kernel"}, "attn_implementation"),
        ({"_attn_implementation": "kernels-community/flash-attn2:forward"}, "_attn_implementation"),
        ({"attn_implementation": {"": "sdpa", "text_config": "owner/kernel"}}, "attn_implementation"),
        ({"text_config": {"attn_implementation": "flash_attention_2"}}, "text_config.attn_implementation"),
        ({"parts": [{"_attn_implementation_internal": "paged|owner/k"}]}, "parts.0._attn_implementation_internal"),
        ({"experts_implementation": "owner/kernel"}, "experts_implementation"),
    ],
)
def test_a_kernel_that_would_be_fetched_is_refused(copy, entries, path):
    change(copy, **entries)
    with pytest.raises(ArtifactError, match=rf"{re.escape(path)} in config.json is '.*', which may be fetched from el"):
        Predictor.load(copy)


def test_the_plain_kinds_of_attention_load(copy, bert):
    for kind in ("eager", "sdpa", None):
        change(copy, attn_implementation=kind)
        (found,) = Predictor.load(copy).predict(["warm film"])
        assert found["scores"] == pytest.approx(Predictor.load(bert).predict(["warm film"])[0]["scores"], abs=1e-5)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "config.json has quantization_config: its weights are",
        ),
        ({"use_kernels": True}, "config.json has use_kernels: it asks for compute kernels"),
        ({"vision": {"use_pretrained_backbone": True}}, "vision.use_pretrained_backbone: it asks for the weights of"),
        ({"model_args": {"checkpoint_path": "x.pt"}}, "model_args.checkpoint_path: it asks for weights outside"),
        ({"backbone": "owner/name"}, "backbone in config.json names another model, 'owner/name'"),
        ({"architecture": "local-dir:evil"}, "architecture in config.json names another model"),
    ],
)
def test_a_configuration_that_asks_for_another_model_is_refused(copy, entries, words):
    change(copy, **entries)
    with pytest.raises(ArtifactError, match=re.escape(words)):
        load_config(copy)


def test_a_tokenizer_file_outside_of_the_folder_is_refused_and_a_path_of_another_machine_ignored(copy):
    change(copy, "tokenizer_config.json", special_tokens_map_file="/home/somebody/.cache/special_tokens_map.json")
    assert load_text_tokenizer(copy, load_config(copy)).unk_token == "[UNK]"
    shutil.copy(copy / "tokenizer.json", copy.parent / "other.json")
    for entries in ({"tokenizer_file": "../other.json"}, {"fast_tokenizer_files": ["tokenizer.json", "../other.json"]}):
        change(copy, "tokenizer_config.json", **entries)
        with pytest.raises(ArtifactError, match=r"in tokenizer_config.json names '../other.json', which is outside"):
            load_text_tokenizer(copy, load_config(copy))
        change(copy, "tokenizer_config.json", **dict.fromkeys(entries))


@pytest.mark.parametrize("given", ["x", [1], -1, True])
def test_a_longest_input_that_is_no_number_is_refused(copy, given):
    change(copy, "tokenizer_config.json", model_max_length=given)
    with pytest.raises(ArtifactError, match="model_max_length in tokenizer_config.json must be a number above 0, got"):
        load_text_tokenizer(copy, load_config(copy))


# ---- JSON and sizes


@pytest.mark.parametrize("content", ["[" * 200_000, '{"a": ' + "7" * 5_000 + "}", "", "{", "\x00", '{"a": 1'])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "model.safetensors.index.json"])
def test_json_that_python_cannot_read_is_one_line(copy, file, content):
    if "index" in file:
        shard(copy)
    (copy / file).write_text(content)
    with pytest.raises(ArtifactError, match=rf"copy cannot be loaded: {file} is not readable JSON \(") as found:
        Predictor.load(copy)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("content", ["[1, 2]", "3", "null", '"text"'])
def test_json_that_is_no_object_is_refused(copy, content):
    (copy / "config.json").write_text(content)
    with pytest.raises(ArtifactError, match="config.json must hold a JSON object, it is "):
        Predictor.load(copy)


def test_a_configuration_of_too_many_levels_is_refused(copy):
    deep: dict = {}
    for _ in range(60):
        deep = {"a": deep}
    change(copy, more=deep)
    with pytest.raises(ArtifactError, match="config.json is nested more than 32 deep"):
        load_config(copy)


@pytest.mark.parametrize(
    "entries",
    [
        {"vocab_size": 10**12},
        {"hidden_size": 10**9},
        {"num_hidden_layers": 10**8},
        {"intermediate_size": 10**12},
        {"max_position_embeddings": 10**12},
        {"num_labels": 10**9, "id2label": None},
        {"type_vocab_size": 1e15},
        {"text_config": {"hidden_sizes": [4, 10**12]}},
    ],
)
def test_sizes_that_cannot_be_are_refused_before_anything_is_built(copy, entries):
    change(copy, **entries)
    with pytest.raises(ArtifactError, match=r"in config.json is .*, more than its weights can be of \(\d+ tensors"):
        load_config(copy)


def test_a_network_many_times_its_weights_is_refused_before_it_gets_memory(copy):
    change(copy, hidden_size=900_000, intermediate_size=900_000)
    with pytest.raises(ArtifactError, match=r"config.json describes a network of [\d,]{12,} weights, its files hold"):
        load_model(copy, AutoModelForSequenceClassification)


@pytest.mark.parametrize("entries", [{"hidden_size": 18}, {"vocab_size": 60}, {"hidden_size": -3}, {"num_labels": 5}])
def test_sizes_that_are_not_those_of_the_weights_are_one_line(copy, entries):
    change(copy, **entries, **({"id2label": None} if "num_labels" in entries else {}))
    with pytest.raises(ArtifactError, match="cannot be loaded") as found:
        Predictor.load(copy)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("entries", [{"direction": "<script>"}, {"vocab_size": 1.5}, {"hidden_size": "9"}])
def test_a_value_of_another_type_is_one_line(tiny_classifier_folder, tmp_path, entries):
    folder = change(shutil.copytree(tiny_classifier_folder, tmp_path / "m"), **entries)
    (name,) = entries
    with pytest.raises(ArtifactError, match=rf"config.json has a value that cannot be used \(.*{name}.*\); correct it"):
        Predictor.load(folder)


def test_a_network_larger_than_its_weights_by_a_head_loads(bert):
    assert isinstance(load_model(bert, AutoModel, add_pooling_layer=False), BertModel)


def test_a_tokenizer_without_its_vocabulary_is_named(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"is not complete: its vocabulary \(.*tokenizer.json, vocab.txt, .*\) is"):
        load_text_tokenizer(copy, load_config(copy))
    (copy / "vocab.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is not complete: merges.txt is missing; copy all tokenizer files"):
        load_text_tokenizer(copy, load_config(copy))


def test_an_image_processor_is_refused_for_what_it_is(tmp_path):
    folder = save_backbone(tmp_path / "m")
    (folder / "preprocessor_config.json").write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match="preprocessor_config.json is not readable JSON"):
        load_image_processor(folder)


def test_a_language_model_of_a_stage_loads_with_its_auto_map(tiny_language_model_folder, tmp_path):
    assert "auto_map" in json.loads((tiny_language_model_folder / "config.json").read_text())
    assert load_config(tiny_language_model_folder).model_type == "awd_lstm"
    assert load_model(save_bert(tmp_path / "b"), AutoModel).config.model_type == "bert"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"architectures": 3}, "architectures in config.json must be a list of names, got 3"),
        ({"architectures": [1]}, "architectures in config.json must be a list of names, got [1]"),
        ({"auto_map": 3}, "auto_map in config.json must be an object, got 3"),
        ({"label2id": [1]}, "label2id in config.json must be an object, got [1]"),
        ({"ulmfit_pipe": [1, 2]}, "ulmfit_pipe in config.json must be an object, got [1, 2]"),
        ({"id2label": ["a"]}, "id2label in config.json must give the ids 0, 1, 2, ... without a gap a label each, got"),
        ({"id2label": {"0": "a", "2": "b"}}, "without a gap a label each, got ['0', '2']; correct it, or take another"),
        ({"id2label": {"0": "a", "01": "b"}}, "without a gap a label each, got ['0', '01']"),
    ],
)
def test_entries_of_other_types_are_named(copy, entries, words):
    change(copy, **entries)
    with pytest.raises(ArtifactError, match=re.escape(words)):
        load_config(copy)


@pytest.mark.parametrize("layers", [0, 2])
def test_fewer_layers_than_the_weights_have_are_refused(copy, tiny_classifier_folder, layers):
    change(copy, num_hidden_layers=layers)
    words = rf"files hold bert.encoder.layer.{layers}, config.json describes {layers} of these layers; take config.json"
    with pytest.raises(ArtifactError, match=words):
        Predictor.load(copy)
    shutil.rmtree(copy)
    change(shutil.copytree(tiny_classifier_folder, copy), num_hidden_layers=1)
    with pytest.raises(ArtifactError, match=r"config.json describes 1 of these layers|is \(.*\) in its files and"):
        Predictor.load(copy)
