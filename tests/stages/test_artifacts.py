"""Model names, folders that are whole or absent, and what tells one model from another."""

import importlib.util
import io
import json
import re
import shutil
from functools import partial

import pytest
import sentencepiece
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    DebertaV2Model,
)
from transformers.utils import logging

from tests.support.tiny_images import save_backbone
from tests.support.tiny_runs import folder_bytes, reviews
from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.stages.artifacts import (
    ArtifactError,
    _require_vocabulary,
    check_stage_files,
    load_config,
    load_model,
    load_text_tokenizer,
    load_tokenizer,
    model_identity,
    read_stage,
    refuse_foreign_folder,
    resolve_model,
    save_stage,
)
from ulmfit_pipe.stages.finished import finished_result
from ulmfit_pipe.stages.model_folder import remote_code
from ulmfit_pipe.text.predict.predictor import Predictor


def test_a_folder_resolves_to_itself_and_a_hub_id_to_its_name(tiny_language_model_folder):
    assert resolve_model(tiny_language_model_folder) == str(tiny_language_model_folder)
    assert resolve_model("owner/name") == "owner/name"


def test_a_folder_without_a_model_names_the_one_inside_it(tiny_language_model_folder, tmp_path):
    shutil.copytree(tiny_language_model_folder, tmp_path / "run/language_model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ArtifactError, match=r"run holds no model \(no config.json\); did you mean .*run/language_model"
    ):
        resolve_model(tmp_path / "run")
    with pytest.raises(ArtifactError, match="holds no model .*; give the folder that a stage wrote"):
        resolve_model(tmp_path / "empty")


def test_the_folder_of_an_adapter_says_how_to_merge_it(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    words = "holds an adapter of peft (adapter_config.json), not the model it belongs to; merge the two: "
    with pytest.raises(ArtifactError, match=re.escape(words + "peft_model.merge_and_unload().save_pretrained(folder)")):
        resolve_model(tmp_path)


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "table.csv").write_text("text\n")
    with pytest.raises(ArtifactError, match="table.csv is a file, not a model folder"):
        resolve_model(tmp_path / "table.csv")


@pytest.mark.parametrize("name", ["./lm", "/nowhere/lm", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(name):
    with pytest.raises(ArtifactError, match=f"there is no folder '{name}'; give the folder that a stage wrote"):
        resolve_model(name)


def test_a_model_is_known_by_its_files_not_by_its_place(tiny_language_model_folder, tiny_classifier_folder, tmp_path):
    known = model_identity(tiny_language_model_folder)
    moved = shutil.copytree(tiny_language_model_folder, tmp_path / "moved")
    (moved / "stage.json").write_text("{}")
    assert model_identity(moved) == known
    assert model_identity(tiny_classifier_folder) != known
    (moved / "config.json").write_text((moved / "config.json").read_text() + " ")
    assert model_identity(moved) != known
    assert (model_identity("owner/name"), model_identity(None)) == ("owner/name", None)


def test_whatever_changes_what_a_model_computes_is_part_of_its_fingerprint(tmp_path):
    images = save_backbone(tmp_path / "images")
    known = model_identity(images, images=True)
    processor = json.loads((images / "preprocessor_config.json").read_text())
    (images / "preprocessor_config.json").write_text(json.dumps({**processor, "image_mean": [0.1, 0.1, 0.1]}))
    assert model_identity(images, images=True) != known
    (images / "code.py").write_text("SCALE = 1")
    known = model_identity(images, images=True)
    with remote_code(True):
        trusted = model_identity(images, images=True)
        (images / "code.py").write_text("SCALE = 2")
        assert trusted not in (known, model_identity(images, images=True))
    assert model_identity(images, images=True) == known  # code that may not run changes nothing


def test_a_folder_without_a_tokenizer_says_how_a_learner_is_saved_with_one(tmp_path):
    AwdLstmConfig(vocab_size=11, embedding_size=5, hidden_size=7).save_pretrained(tmp_path)
    words = r"holds no tokenizer \(ulmfit_tokenizer.json\); .*save\(folder, add_files=tokenizer.save_pretrained\)"
    with pytest.raises(ArtifactError, match=words):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_is_not_ours_is_refused(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ArtifactError, match="not one that this project wrote"):
        load_tokenizer(tmp_path)


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
def test_loading_and_saving_is_quiet(tiny_language_model_folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(logging, "_tqdm_active", True)
    load_model(tiny_language_model_folder, AutoModelForCausalLM).save_pretrained(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_quiet_ends_also_when_loading_fails(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    verbosity = logging.get_verbosity()
    with pytest.raises(ArtifactError, match="cannot be loaded"):
        load_config(tmp_path)
    assert logging.get_verbosity() == verbosity


# ---- a model that ships its sentencepiece file, and no tokenizer.json, as DeBERTa v2 and v3 do

TEXTS = [text for text, _ in reviews(40)]


@pytest.fixture(scope="module")
def deberta(tmp_path_factory):
    """Return the folder of such a model, and sentencepiece's own reader of its file."""
    folder, written = tmp_path_factory.mktemp("deberta"), io.BytesIO()
    numbers = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3}  # as Microsoft's
    names = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=written, vocab_size=50, minloglevel=2, **numbers, **names
    )
    (folder / "spm.model").write_bytes(written.getvalue())
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 10}
    relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4}
    torch.manual_seed(0)
    DebertaV2Model(DebertaV2Config(vocab_size=51, type_vocab_size=0, **sizes, **relative)).save_pretrained(folder)
    return folder, sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


def test_a_sentencepiece_file_alone_is_read_as_sentencepiece_reads_it_and_saved_as_a_fast_tokenizer(deberta, tmp_path):
    folder, reader = deberta
    config = load_config(folder)
    tokenizer = load_text_tokenizer(folder, config)
    assert tokenizer(TEXTS)["input_ids"] == [[1, *reader.encode(text), 2] for text in TEXTS]
    assert (len(tokenizer), tokenizer.mask_token_id, config.pad_token_id) == (51, 50, 0)
    model = load_model(folder, AutoModel)
    assert model(**tokenizer(TEXTS[:2], padding=True, return_tensors="pt")).last_hidden_state.isfinite().all()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file()
    again = load_text_tokenizer(tmp_path, load_config(tmp_path))
    assert again(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


def test_without_protobuf_the_extra_that_brings_it_is_named(deberta, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(
        ArtifactError, match=r"in spm\.model only, .* needs protobuf, .* pip install 'ulmfit_pipe\[spm\]'"
    ):
        _require_vocabulary(deberta[0])


def test_a_model_is_known_by_its_sentencepiece_file_where_its_tokenizer_is_made_from_it(deberta, tmp_path):
    folder = shutil.copytree(deberta[0], tmp_path / "m")
    known = model_identity(folder)
    (folder / "spm.model").write_bytes(b"another")
    assert model_identity(folder) != known


def test_a_stage_is_written_whole_with_its_record_and_replaced_by_the_same_stage_only(tmp_path):
    def write(text):
        return lambda folder: (folder / "weights").write_text(text)

    path = save_stage(tmp_path / "lm", stage="language_model", record={"seconds": 2.0}, write=write("one"))
    record = read_stage(path)
    assert (record["stage"], record["seconds"], record["format"]) == ("language_model", 2.0, 1)
    assert "torch" in record["versions"]
    save_stage(path, stage="language_model", record={}, write=write("two"))
    assert (path / "weights").read_text() == "two"
    before = folder_bytes(path)
    with pytest.raises(ArtifactError, match="holds a language_model stage, not a classifier stage"):
        save_stage(path, stage="classifier", record={}, write=write("three"))
    assert folder_bytes(path) == before


def test_a_stage_that_was_cut_short_is_none(tmp_path):
    assert read_stage(tmp_path) is None
    (tmp_path / "stage.json").write_text('{"format": 1, "sta')
    assert read_stage(tmp_path) is None
    with pytest.raises(ArtifactError, match="holds files that are not a stage's"):
        refuse_foreign_folder(tmp_path, "classifier")


@pytest.mark.parametrize(
    "content",
    ["[" * 200_000, '{"format": ' + "1" * 5_000 + "}", "[1]", '{"format": 1, "identity": [1]}'],
)
def test_a_record_that_no_stage_wrote_is_none(tmp_path, content):
    (tmp_path / "stage.json").write_text(content)
    assert read_stage(tmp_path) is None


@pytest.fixture
def finished(tiny_classifier_folder, tmp_path):
    """Return the folder of a finished stage."""
    write = partial(shutil.copytree, tiny_classifier_folder, dirs_exist_ok=True)
    return save_stage(tmp_path / "c", stage="classifier", record={"metrics": {}, "seconds": 1.0}, write=write)


def damage(file, *, at: int) -> None:
    """Flip one bit."""
    content = bytearray(file.read_bytes())
    content[at] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer_config.json", "ulmfit_tokenizer.json"])
def test_a_flipped_bit_of_a_finished_stage_is_named_wherever_it_is_used(finished, name):
    assert set(read_stage(finished)["files"]) >= {"model.safetensors", "config.json", name}
    check_stage_files(finished)
    damage(finished / name, at=-3)
    words = rf"{name} is not the file that was saved \(its SHA-256 differs\): .* remove .*/c and run the command that w"
    for use in (check_stage_files, model_identity, lambda path: load_model(path, AutoModelForSequenceClassification)):
        with pytest.raises(ArtifactError, match=words):
            use(finished)


def test_a_flipped_bit_of_a_stages_own_record_is_noticed_or_harmless(finished):
    file = finished / "stage.json"
    content, saved = file.read_bytes(), read_stage(finished)
    for at in range(len(content)):
        damage(file, at=at)
        try:
            check_stage_files(finished)
        except ArtifactError as error:
            assert "stage.json" in str(error) and "put back a copy of it" in str(error)
        else:
            left = read_stage(finished)
            assert {name: left[name] for name in saved if name != "record_sha256"} == {
                name: saved[name] for name in saved if name != "record_sha256"
            }
        file.write_bytes(content)


def test_a_finished_stage_whose_record_was_altered_is_not_taken_for_another_runs(finished):
    record = json.loads((finished / "stage.json").read_text())
    (finished / "stage.json").write_text(json.dumps({**record, "identity": {"seed": 1}, "metrics": {"accuracy": 1.0}}))
    with pytest.raises(
        ArtifactError, match=r"stage.json is not what was saved \(its SHA-256 differs\): it was damaged"
    ):
        finished_result(finished, stage="classifier", identity={"seed": 1}, say=print)
    older = {name: value for name, value in record.items() if name != "record_sha256"}
    (finished / "stage.json").write_text(json.dumps({**older, "identity": {"seed": 1}}))  # of a version without seals
    assert finished_result(finished, stage="classifier", identity={"seed": 1}, say=print).skipped


def test_the_ways_out_of_an_altered_file_work(finished):
    original = (finished / "config.json").read_text()
    (finished / "config.json").write_text(original.replace('"bad"', '"awful"'))
    with pytest.raises(ArtifactError, match=r"config.json is not the file that was saved \(it has [\d,]+ bytes, \d+ w"):
        Predictor.load(finished)
    record = json.loads((finished / "stage.json").read_text())
    (finished / "stage.json").write_text(json.dumps({name: record[name] for name in record if name != "files"}))
    with pytest.raises(
        ArtifactError, match="if you changed it on purpose, delete its entry 'record_sha256', or remove"
    ):
        Predictor.load(finished)
    kept = {name: record[name] for name in record if name not in ("files", "record_sha256")}
    (finished / "stage.json").write_text(json.dumps(kept))
    assert Predictor.load(finished).label_names == ["awful", "fair", "good"]  # changed on purpose, and said so
    (finished / "stage.json").write_text(json.dumps(record))
    (finished / "config.json").write_text(original)
    assert Predictor.load(finished).label_names == ["bad", "fair", "good"]


def test_a_missing_file_of_a_finished_stage_is_named_and_an_added_one_is_nobodys_business(finished):
    (finished / "metrics.json").write_text("{}")
    check_stage_files(finished)
    (finished / "ulmfit_tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"ulmfit_tokenizer.json is not the file that was saved \(it is missing\)"):
        check_stage_files(finished)


def test_an_old_folder_that_a_killed_save_left_aside_is_put_back(tmp_path):
    path = save_stage(tmp_path / "lm", stage="language_model", record={"seconds": 2.0}, write=lambda folder: None)
    path.rename(tmp_path / ".lm.0123abcd.old")
    refuse_foreign_folder(path, "language_model")
    assert read_stage(path)["seconds"] == 2.0


def test_random_state_is_not_touched_by_a_load(tiny_language_model_folder):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_config(tiny_language_model_folder)
    assert torch.equal(torch.rand(2), expected)


def test_a_link_to_nothing_is_refused_as_a_stages_folder(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "gone")
    with pytest.raises(ArtifactError, match=r"run is a link to .*gone, which is not there; make that folder, or"):
        refuse_foreign_folder(tmp_path / "run", "classifier")
