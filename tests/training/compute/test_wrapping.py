"""What a wrapper exchanges inside a model for a phase is put back when the phase ends."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.support.toy_models import new_model
from ulmfit_pipe.training.compute.accelerator_checks import UnsupportedAcceleratorError
from ulmfit_pipe.training.compute.wrapping import prepared
from ulmfit_pipe.training.distributed import sharding
from ulmfit_pipe.training.records import TrainingOptions


class EightBitLinear(nn.Linear):
    """Stands for torchao's layer: another class that computes with the very weights."""

    @classmethod
    def of(cls, layer):
        made = cls(layer.in_features, layer.out_features, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        return made


def exchanging(original):
    def prepare(self, model, optimizer):
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.Linear:
                    setattr(parent, name, EightBitLinear.of(child))
        return original(self, model, optimizer)

    return prepare


@pytest.mark.parametrize("fails", [False, True])
def test_linear_layers_that_a_wrapper_exchanged_are_put_back(accelerator, monkeypatch, fails):
    model = new_model()
    before = dict(model.named_modules())
    monkeypatch.setattr(Accelerator, "prepare", exchanging(Accelerator.prepare))
    try:
        with prepared(model, torch.optim.SGD(model.parameters()), accelerator) as (wrapped, _):
            assert any(isinstance(module, EightBitLinear) for module in wrapped.modules())
            if fails:
                raise RuntimeError("stop")
    except RuntimeError:
        assert fails
    after = dict(model.named_modules())
    assert list(after) == list(before)
    assert all(after[name] is module for name, module in before.items())


def test_a_model_in_pieces_does_not_compute_in_8_bits(monkeypatch):
    monkeypatch.setattr(sharding, "is_sharded", lambda _model: True)
    accelerator = SimpleNamespace(mixed_precision="fp8", num_processes=2, is_fsdp2=True)
    with pytest.raises(UnsupportedAcceleratorError, match="a sharded model does not compute in fp8 here: use mix"):
        sharding.refuse_whole(new_model(), accelerator, TrainingOptions())
