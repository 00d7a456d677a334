import json

import pytest
import torch
from torch import nn

from tests.support.folder_contents import files_of, no_space
from tests.support.toy_models import (
    ToyClassifier,
    ToyLanguageModel,
    groups_of,
    lm_groups_of,
    new_model,
    same,
    weights_of,
)
from ulmfit_pipe.storage import atomic, tensor_files
from ulmfit_pipe.storage.atomic import CheckpointError
from ulmfit_pipe.training.layer_groups import split_layer_groups
from ulmfit_pipe.training.resume import saved_learner

STATE = {"trainable": ["head"], "position": None, "epochs_done": 0}


def save(path, model=None, groups=None, **options):
    model = model or new_model()
    saved_learner.save(path, model, groups or groups_of(model), STATE, **options)


def test_weights_come_back_by_name_with_the_rest_of_the_state(tmp_path):
    model, other = new_model(norm="batch"), new_model(norm="batch", seed=1)
    save(tmp_path / "run", model)
    state = saved_learner.load(tmp_path / "run", other, groups_of(other))
    assert state["trainable"] == ["head"]
    assert state["groups"][0] == {"name": "embeddings", "prefixes": ["embeddings"], "frozen": False}
    assert same(weights_of(model), weights_of(other)) == list(weights_of(model))
    assert sorted(files_of(tmp_path / "run")) == ["learner.json", "model.safetensors"]


def test_tied_weights_are_saved_once_and_stay_tied(tmp_path):
    torch.manual_seed(0)
    model, other = ToyLanguageModel(), ToyLanguageModel()
    save(tmp_path / "run", model, lm_groups_of(model))
    assert "lm_head.weight" not in tensor_files.load_tensors(tmp_path / "run" / "model.safetensors")
    saved_learner.load(tmp_path / "run", other, lm_groups_of(other))
    assert other.lm_head.weight is other.embeddings.weight
    assert torch.equal(other.embeddings.weight, model.embeddings.weight)


def test_tied_weights_saved_under_their_other_name_are_found(tmp_path):
    model, other = ToyLanguageModel(), ToyLanguageModel()
    save(tmp_path / "run", model, lm_groups_of(model))
    path = tmp_path / "run" / "model.safetensors"
    tensors = tensor_files.load_tensors(path)
    tensors["lm_head.weight"] = tensors.pop("embeddings.weight")
    tensor_files.save_tensors(path, tensors)
    with pytest.raises(
        CheckpointError, match=r"model.safetensors is not the file that was saved \(its SHA-256 differs"
    ):
        saved_learner.load(tmp_path / "run", other, lm_groups_of(other))
    record = json.loads((tmp_path / "run" / "learner.json").read_text())
    unsealed = {name: value for name, value in record.items() if name not in ("weights", "record_sha256")}
    (tmp_path / "run" / "learner.json").write_text(json.dumps(unsealed))  # as versions without digests wrote it
    saved_learner.load(tmp_path / "run", other, lm_groups_of(other))
    assert torch.equal(other.embeddings.weight, model.embeddings.weight)


def test_a_models_own_save_pretrained_and_further_files_go_into_the_folder(tmp_path):
    class WithConfig(ToyClassifier):
        def save_pretrained(self, folder):
            (folder / "config.json").write_text("{}")
            tensor_files.save_tensors(folder / "model.safetensors", dict(self.named_parameters()))

    save(tmp_path / "run", WithConfig(), add_files=lambda folder: (folder / "vocab.txt").write_text("xxunk"))
    assert sorted(files_of(tmp_path / "run")) == ["config.json", "learner.json", "model.safetensors", "vocab.txt"]


def save_nothing(model, folder):
    (folder / "adapter.json").write_text("{}")


def save_the_head_only(model, folder):
    head = {name: value for name, value in model.state_dict().items() if name.startswith("head")}
    tensor_files.save_tensors(folder / "model.safetensors", head)


def save_under_older_names(model, folder):
    renamed = {f"old.{name}": value for name, value in saved_learner.untied_state(model).items()}
    tensor_files.save_tensors(folder / "model.safetensors", renamed)


@pytest.mark.parametrize("save_pretrained", [save_nothing, save_the_head_only, save_under_older_names])
def test_what_a_models_own_save_leaves_out_or_renames_is_kept_beside_it(tmp_path, save_pretrained):
    class Own(ToyLanguageModel):
        pass

    Own.save_pretrained = save_pretrained
    torch.manual_seed(0)
    model, other = Own(), Own()
    save(tmp_path / "run", model, lm_groups_of(model))
    saved_learner.load(tmp_path / "run", other, lm_groups_of(other))
    assert same(weights_of(model), weights_of(other)) == list(weights_of(model))
    kept = tensor_files.load_tensors(tmp_path / "run" / "learner.safetensors")
    assert "lm_head.weight" not in kept  # tied
    Own.save_pretrained = lambda self, folder: tensor_files.save_tensors(
        folder / "model.safetensors", saved_learner.untied_state(self)
    )
    save(tmp_path / "run", model, lm_groups_of(model))
    assert sorted(files_of(tmp_path / "run")) == ["learner.json", "model.safetensors"]


def test_a_folder_with_something_else_is_not_overwritten(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("precious")
    with pytest.raises(CheckpointError, match=r"thesis exists and is not a saved learner .no learner\.json in it"):
        save(tmp_path / "thesis")
    with pytest.raises(CheckpointError, match="exists and is not a saved learner"):
        save(tmp_path / "thesis" / "chapter1.txt")
    assert files_of(tmp_path) == {"thesis/chapter1.txt": b"precious"}
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty")
    save(tmp_path / "empty")


@pytest.mark.parametrize("where", ["_sync", "weights", "add_files"])
def test_a_full_disk_keeps_the_previous_save_bit_identical(tmp_path, monkeypatch, where):
    model = new_model()
    save(tmp_path / "run", model)
    before = files_of(tmp_path)
    with torch.no_grad():
        model.head.weight.zero_()
    options = {}
    if where == "_sync":
        monkeypatch.setattr(atomic, "_sync", no_space)
    elif where == "weights":
        monkeypatch.setattr(saved_learner, "save_tensors", no_space)
    else:
        options["add_files"] = no_space
    with pytest.raises(CheckpointError, match="save to .*run.*No space left on device; what was there before"):
        save(tmp_path / "run", model, **options)
    assert files_of(tmp_path) == before


def load_into(path, model=None, groups=None):
    model = model or new_model(seed=1)
    before = weights_of(model)
    with pytest.raises(CheckpointError) as caught:
        saved_learner.load(path, model, groups or groups_of(model))
    assert same(before, weights_of(model)) == list(before)
    return str(caught.value)


def test_another_architecture_is_refused_before_anything_is_changed(tmp_path):
    save(tmp_path / "run")
    words = load_into(tmp_path / "run", new_model(norm="none"))
    assert "it lacks [] and has ['body.1.bias', 'body.1.weight', 'middle.1.bias'] too many" in words
    words = load_into(tmp_path / "run", new_model(norm="batch"))
    assert "it lacks ['body.1.running_mean', 'body.1.running_var', 'body.1.num_batches_tracked']" in words
    model = new_model()
    model.head = nn.Linear(6, 9)
    words = load_into(tmp_path / "run", model)
    assert "holds head.bias of shape (4,), this model's has (9,); build it as it was saved" in words


def test_another_class_with_the_same_names_is_refused(tmp_path):
    class Other(ToyClassifier):
        pass

    save(tmp_path / "run")
    assert "it was saved from a ToyClassifier, this is a Other" in load_into(tmp_path / "run", Other())


def test_other_groups_are_refused(tmp_path):
    save(tmp_path / "run")
    model = new_model()
    groups = split_layer_groups(model, [["embeddings", "body", "middle"], ["head"]], names=["low", "head"])
    words = load_into(tmp_path / "run", model, groups)
    assert "saved with layer groups ['embeddings', 'body', 'middle', 'head'], this model has ['low', 'head']" in words


def test_broken_folders_are_refused(tmp_path):
    save(tmp_path / "run")
    weights, state = tmp_path / "run" / "model.safetensors", tmp_path / "run" / "learner.json"
    whole, text = weights.read_bytes(), state.read_text()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "it was cut short or altered; take an earlier save" in load_into(tmp_path / "run")
    weights.write_bytes(whole)
    state.write_text(text[:40])
    assert "is not a whole JSON file" in load_into(tmp_path / "run")
    state.write_text("[]")
    assert "has format None, this version reads 1" in load_into(tmp_path / "run")
    state.write_text(text.replace('"epochs_done": 0', '"epochs_done": 9'))
    with pytest.raises(
        CheckpointError, match=r"learner.json is not what was saved \(its SHA-256 differs\): it was dama"
    ):
        saved_learner.read_state(tmp_path / "run")
    text = json.dumps({**json.loads(text), "record_sha256": None})
    state.write_text(json.dumps({**json.loads(text), "format": 2}))
    assert "has format 2, this version reads 1; save it again" in load_into(tmp_path / "run")
    state.write_text(json.dumps({key: value for key, value in json.loads(text).items() if key != "trainable"}))
    assert "learner.json lacks ['trainable']; it was altered" in load_into(tmp_path / "run")


@pytest.mark.parametrize("name", ["export.pkl", "model.pth"])
def test_a_pickle_offered_as_a_save_is_refused(tmp_path, name):
    torch.save({}, tmp_path / name)
    assert "is a pickled checkpoint, which can run code when read" in load_into(tmp_path / name)


def test_a_path_that_is_no_save_is_refused(tmp_path):
    assert "is not a saved learner (it has no learner.json); give the folder" in load_into(tmp_path)
    assert "is not a saved learner" in load_into(tmp_path / "nothing")
