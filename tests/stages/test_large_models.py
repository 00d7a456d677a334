"""What large models need, on real models of a few thousand weights: layers that run again, weights in pieces, compiled
code. Each leads where training without it leads.
"""

import dataclasses

import pytest
import torch

from tests.support.processes.forked_processes import run_in_processes
from tests.support.processes.several_process_runs import HELD_OUT, HELD_OUT_TEXTS, ROWS, TEXTS, quiet, save_awd_lstm
from tests.support.processes.sharded_stage_runs import in_pieces
from tests.support.tiny_runs import table, texts_of
from tests.support.tiny_transformers import save_bert, save_gpt2
from ulmfit_pipe.settings.text import ClassifierSettings, LanguageModelSettings
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.text.classifier import build_classifier_learner
from ulmfit_pipe.text.language_model import build_language_model_learner
from ulmfit_pipe.training.compute import wrapping
from ulmfit_pipe.training.compute.accelerator_checks import UnsupportedAcceleratorError
from ulmfit_pipe.training.distributed.sharding import _check_parts

GRADUAL = {"plan": "gradual", "epochs_per_phase": 1, "final_epochs": 1, "batch_size": 8, "lr": 1e-2, "num_workers": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_awd_lstm(folder / "awd_lstm", head_dropout=0.1)
    save_bert(folder / "bert")
    save_gpt2(folder / "gpt2")
    return folder


def classifier(models, name, *, still=False, **choices):
    """Return the parts of a classifier, without dropout where it is to be still."""
    settings = dict(GRADUAL)
    pooling = name == "bert, concat-pooling"
    if pooling:
        settings["head"] = "concat-pooling"
    torch.manual_seed(0)
    parts = build_classifier_learner(
        table(ROWS),
        table(HELD_OUT),
        model=str(models / name.split(",")[0]),
        settings=ClassifierSettings(**settings, drop_mult=0.0 if still and name == "awd_lstm" else 1.0),
        context=RunContext(seed=1, say=quiet, **choices),
    )
    return without_dropout(parts) if still else parts


def language_model(models, name, **choices):
    settings = {"plan": "gradual", "frozen_epochs": 1, "epochs": 1, "lr": 1e-2, "num_workers": 1, "batch_size": 4}
    settings |= {"bptt": 30} if name == "awd_lstm" else {"block_size": 40}
    torch.manual_seed(0)
    return build_language_model_learner(
        texts_of(*TEXTS),
        texts_of(*HELD_OUT_TEXTS),
        model=str(models / name),
        settings=LanguageModelSettings(**settings),
        context=RunContext(seed=1, say=quiet, **choices),
    )


def without_dropout(parts):
    for module in parts.learner.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return parts


def trained(parts):
    """Train all phases and return the weights."""
    torch.manual_seed(2)
    parts.learner.fit_plan(parts.phases, keep_best=False)
    return {name: value.clone() for name, value in parts.learner.model.state_dict().items()}


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (classifier, "awd_lstm"),
        (classifier, "bert"),
        (classifier, "bert, concat-pooling"),
        (language_model, "awd_lstm"),
        (language_model, "gpt2"),
    ],
)
def test_layers_that_run_again_lead_to_the_same_weights_dropout_and_all(models, build, name, monkeypatch):
    again = []
    original = wrapping.checkpoint

    def noting(function, *args, **named):
        again.append(function)
        return original(function, *args, **named)

    monkeypatch.setattr(wrapping, "checkpoint", noting)
    plain = trained(build(models, name))
    assert again == []
    same = trained(build(models, name, gradient_checkpointing=True))
    assert again
    for key, value in plain.items():
        torch.testing.assert_close(same[key], value, rtol=0, atol=1e-6, msg=key)


def test_the_head_alone_runs_no_layer_again(models, monkeypatch):
    monkeypatch.setattr(wrapping, "checkpoint", None)  # a call would fail
    for name in ("awd_lstm", "bert"):
        parts = classifier(models, name, gradient_checkpointing=True)
        first = dataclasses.replace(parts.phases[0], epochs=1)
        assert parts.learner.fit_plan([first], keep_best=False).steps


@pytest.mark.slow
@pytest.mark.two_process
def test_a_transformer_in_pieces_is_thawed_as_a_whole_one_is(models, tmp_path):
    one = in_pieces(models)
    for many in run_in_processes(lambda: in_pieces(models), tmp_path, processes=2):
        for name, single in one.items():
            assert many[name]["losses"] == pytest.approx(single["losses"], abs=1e-9)
            assert many[name]["metrics"] == pytest.approx(single["metrics"], abs=1e-9)
            for key, value in single["weights"].items():
                torch.testing.assert_close(many[name]["weights"][key], value, rtol=0, atol=1e-9, msg=key)


def test_an_awd_lstm_classifier_in_pieces_is_refused(models):
    parts = classifier(models, "awd_lstm")
    with pytest.raises(UnsupportedAcceleratorError, match="AwdLstmForSequenceClassification reads a text in as many"):
        _check_parts(parts.learner.model, parts.learner.accelerator)
    _check_parts(language_model(models, "awd_lstm").learner.model, parts.learner.accelerator)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["awd_lstm", "bert"])
def test_compiled_models_end_where_eager_ones_do(models, name, monkeypatch):
    """Through torch's compiler up to both graphs; training/compute/test_compiling.py makes C++ of toys."""
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: original(module, backend="aot_eager"))
    plain = classifier(models, name, still=True)
    before = {key: value.clone() for key, value in plain.learner.model.state_dict().items()}
    expected = trained(plain)
    made = trained(classifier(models, name, still=True, compile=True))
    for key, value in expected.items():
        torch.testing.assert_close(made[key], value, rtol=1e-3, atol=1e-4, msg=key)
    still = [key for key, value in made.items() if value.is_floating_point() and torch.equal(value, before[key])]
    assert still == []  # everything was thawed in the end, and trained
