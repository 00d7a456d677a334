"""What this loop would train wrongly with is refused before the first step, with what to do instead."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend

from tests.support.toy_models import groups_of, new_model, new_phase, new_task, same, weights_of
from ulmfit_pipe.training.compute.accelerator_checks import (
    UnsupportedAcceleratorError,
    check_accelerator,
    check_parameters_kept,
)
from ulmfit_pipe.training.loop import fit
from ulmfit_pipe.training.lr_finder import lr_find
from ulmfit_pipe.training.records import TrainingOptions


def like(kind=DistributedType.NO, **changes):
    """Return what is asked of an accelerator, as it would be on machines that are not here."""
    state = SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=DynamoBackend.NO))
    usual = {"gradient_accumulation_steps": 1, "state": state, "distributed_type": kind, "is_fsdp2": False}
    usual |= {"mixed_precision": "no", "scaler": None, "parallelism_config": None}
    return SimpleNamespace(**{**usual, **changes})


@pytest.mark.parametrize("kind", [DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU])
def test_one_process_and_plain_data_parallelism_are_right(kind):
    check_accelerator(like(kind))


def test_the_second_fsdp_is_right_and_the_first_is_refused():
    check_accelerator(like(DistributedType.FSDP, is_fsdp2=True))
    words = "one, which cannot be frozen in part; set fsdp_version: 2, as fsdp2.yaml"
    with pytest.raises(UnsupportedAcceleratorError, match=words):
        check_accelerator(like(DistributedType.FSDP))


def test_deepspeed_is_refused_with_what_does_the_same():
    words = "DeepSpeed takes steps, clipping and loss scaling over.*start with fsdp2.yaml"
    with pytest.raises(UnsupportedAcceleratorError, match=words):
        check_accelerator(like(DistributedType.DEEPSPEED))


@pytest.mark.parametrize("kind", [DistributedType.MEGATRON_LM, DistributedType.XLA])
def test_other_ways_to_part_a_model_are_refused(kind):
    with pytest.raises(UnsupportedAcceleratorError, match=f"training under {kind.value} is not supported"):
        check_accelerator(like(kind))


def test_tensor_and_context_parallelism_are_refused():
    with pytest.raises(UnsupportedAcceleratorError, match="parallelism_config .tensor, context or sequence"):
        check_accelerator(like(parallelism_config=SimpleNamespace(tp_size=2)))


def test_an_accelerator_that_compiles_itself_is_refused_before_a_step(accelerator):
    accelerator.state.dynamo_plugin.backend = DynamoBackend.INDUCTOR
    model = new_model()
    before = weights_of(model)
    words = "compiles models itself .dynamo_backend INDUCTOR.; make it without .accelerate launch --dynamo_backend no."
    for train in (fit_once, sweep):
        with pytest.raises(UnsupportedAcceleratorError, match=words):
            train(model, accelerator)
    assert same(before, weights_of(model)) == list(before)


def fit_once(model, accelerator):
    fit(model, groups_of(model), new_phase(3), new_task(), accelerator=accelerator, options=TrainingOptions())


def sweep(model, accelerator):
    lr_find(model, groups_of(model), new_task(), accelerator=accelerator, options=TrainingOptions())


def test_a_wrapper_that_replaces_parameters_is_found_out(accelerator, monkeypatch):
    """As Transformer Engine's 8-bit layers do, and FSDP where a model is parted in place."""
    model = new_model()
    check_parameters_kept(list(model.parameters()), torch.nn.Sequential(model))
    whole = Accelerator.prepare

    def replacing(self, bare, *others):
        bare.head = torch.nn.Linear(*reversed(bare.head.weight.shape))
        return whole(self, bare, *others)

    monkeypatch.setattr(Accelerator, "prepare", replacing)
    words = "Accelerate replaced 2 of 11 parameters when it wrapped the model, so layer groups would train weights that"
    with pytest.raises(UnsupportedAcceleratorError, match=words):
        fit_once(model, accelerator)
