from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from tests.support.toy_models import ToyBatches, groups_of, new_model, new_task, text_rows, weights_of
from ulmfit_pipe.training.distributed.norm_statistics import recompute_norm_statistics
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.objectives import ClassificationObjective


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def recompute(model, batches, accelerator):
    return recompute_norm_statistics(model, batches, ClassificationObjective(), accelerator)


def spoil(model):
    """Statistics that no data gave."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.fill_(3.0)
            module.running_var.fill_(9.0)


def test_the_statistics_are_those_of_all_rows_whatever_the_batches(accelerator):
    rows = text_rows(20)
    model = new_model(norm="batch", dropout=0.5)
    spoil(model)
    names = recompute(model, ToyBatches(rows, batch_size=7), accelerator)
    assert names == ["body.1", "middle.1"]
    with torch.no_grad():
        entering = model.body[0](model.embeddings(rows["input_ids"]).mean(dim=1))
    torch.testing.assert_close(model.body[1].running_mean, entering.mean(0))
    torch.testing.assert_close(model.body[1].running_var, entering.var(0))


def test_a_norm_behind_another_does_not_see_the_old_statistics(accelerator):
    rows = text_rows(20)
    everything = ToyBatches(rows, batch_size=len(rows["labels"]))
    model = new_model(norm="batch")
    spoil(model)
    recompute(model, everything, accelerator)
    predicted = model(rows["input_ids"]).logits
    model.train()
    torch.testing.assert_close(predicted, model(rows["input_ids"]).logits, rtol=0.1, atol=0.02)  # n - 1 against n


def test_weights_momentum_and_the_count_of_steps_stay(accelerator):
    model = new_model(norm="batch")
    model.body[1].momentum = 0.3
    before, steps = weights_of(model), int(model.body[1].num_batches_tracked)
    parameters = {name: value.clone() for name, value in model.named_parameters()}
    recompute(model, ToyBatches(text_rows(20)), accelerator)
    assert all(torch.equal(parameters[name], value) for name, value in model.named_parameters())
    assert (model.body[1].momentum, int(model.body[1].num_batches_tracked)) == (0.3, steps)
    assert not torch.equal(before["body.1.running_mean"], model.body[1].running_mean)
    assert not any(module.training for module in model.modules())
    assert not model.body[1]._forward_pre_hooks


def test_a_model_without_batch_norm_is_left_alone(accelerator):
    assert recompute(new_model(), ToyBatches(text_rows(20)), accelerator) == []


def test_images_are_averaged_over_rows_and_places(accelerator):
    class Images(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, pixel_values):
            return SimpleNamespace(logits=self.norm(pixel_values).mean((2, 3)))

    images = torch.randn(12, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 2 + 1
    model = Images()
    recompute(model, ToyBatches({"pixel_values": images, "labels": torch.zeros(12, dtype=torch.int64)}), accelerator)
    torch.testing.assert_close(model.norm.running_mean, images.mean((0, 2, 3)))
    torch.testing.assert_close(model.norm.running_var, images.transpose(0, 1).flatten(1).var(1))


def test_a_learner_says_whose_statistics_were_taken_anew():
    said = []
    model = new_model(norm="batch")
    learner = Learner(model, groups_of(model), new_task(), accelerator=Accelerator(cpu=True), say=said.append)
    assert learner.recompute_norm_statistics() == ["body.1", "middle.1"]
    assert said[-1] == "batch-norm statistics taken anew from the training data: body.1, middle.1"
