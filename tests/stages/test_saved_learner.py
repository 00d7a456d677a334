"""A saved learner comes back with its weights, its freeze state and its place in the schedule."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import ViTConfig, ViTForImageClassification

from tests.support.tiny_runs import TINY_LM, heard, reviews, table, texts_of
from ulmfit_pipe.settings.text import LanguageModelSettings
from ulmfit_pipe.stages.artifacts import ArtifactError
from ulmfit_pipe.stages.saved_learner import groups_of, load_learner
from ulmfit_pipe.storage.atomic import CheckpointError
from ulmfit_pipe.text.classifier import build_classifier_learner
from ulmfit_pipe.text.language_model import build_language_model_learner
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.records import TrainingOptions

TRAIN, VALIDATION = table(reviews(24)), table(reviews(8, seed=7))


@pytest.fixture
def learner(tiny_language_model_folder):
    return build_classifier_learner(
        TRAIN, VALIDATION, model=str(tiny_language_model_folder), context=heard()[1]
    ).learner


def test_a_classifier_comes_back_as_it_was_and_says_what_is_frozen(learner, tmp_path):
    learner.freeze_to(-2)
    learner.fit_one_cycle(2, slice(1e-4, 1e-2))
    learner.save(tmp_path / "saved")
    said: list[str] = []
    loaded = load_learner(tmp_path / "saved", learner.task, say=said.append)
    first, second = learner.model.state_dict(), loaded.model.state_dict()
    assert all(torch.equal(second[name], value) for name, value in first.items())
    assert loaded.freeze_map() == learner.freeze_map()
    assert loaded.position == learner.position
    assert (loaded.position["epoch"], loaded.position["epochs"], loaded.epochs_done) == (2, 2, 2)
    assert loaded.options == learner.options
    (line,) = said
    assert "after epoch 2 of 2 of 'one-cycle'" in line
    assert "frozen: embeddings, lstm0 | trains: lstm1, head" in line
    assert loaded.validate() == learner.validate()


def test_other_options_and_a_monitor_may_be_given(learner, tmp_path):
    learner.save(tmp_path / "saved")
    options = TrainingOptions(weight_decay=0.5)
    loaded = load_learner(tmp_path / "saved", learner.task, options=options, monitor="accuracy", say=str)
    assert (loaded.options, loaded.monitor) == (options, "accuracy")


def test_a_language_model_comes_back_tied(tmp_path):
    text = texts_of(*[text for text, _ in reviews(20)])
    settings = LanguageModelSettings(**TINY_LM, batch_size=2)
    learner = build_language_model_learner(text, text, settings=settings, context=heard()[1]).learner
    learner.save(tmp_path / "saved")
    loaded = load_learner(tmp_path / "saved", learner.task, say=str)
    assert loaded.model.lm_head.weight is loaded.model.model.embeddings.weight
    assert [group.name for group in loaded.layer_groups] == ["lstm0", "lstm1", "embeddings"]
    assert not any(loaded.freeze_map().values())


def test_a_model_whose_files_keep_older_names_comes_back(learner, tmp_path):
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=10, image_size=4, patch_size=2
    )
    torch.manual_seed(0)
    model = ViTForImageClassification(config)
    saved = Learner(model, groups_of(model), learner.task, accelerator=learner.accelerator, say=str)
    saved.save(tmp_path / "saved")
    assert not set(load_file(tmp_path / "saved" / "model.safetensors")) <= set(model.state_dict())
    loaded = load_learner(tmp_path / "saved", learner.task, say=str).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())


def test_saving_and_loading_shows_no_bars(learner, tmp_path, capfd):
    capfd.readouterr()
    learner.save(tmp_path / "saved")
    load_learner(tmp_path / "saved", learner.task, say=str)
    assert capfd.readouterr() == ("", "")


def test_a_folder_of_a_stage_is_no_saved_learner(tiny_language_model_folder, learner):
    with pytest.raises(CheckpointError, match="is not a saved learner .*give the folder Learner.save wrote"):
        load_learner(tiny_language_model_folder, learner.task)


def test_weights_cut_short_are_refused(learner, tmp_path):
    path = learner.save(tmp_path / "saved") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="cut short"):
        load_learner(tmp_path / "saved", learner.task)


def test_groups_of_a_model_are_those_of_its_architecture(learner):
    assert [group.name for group in groups_of(learner.model)] == ["embeddings", "lstm0", "lstm1", "head"]
