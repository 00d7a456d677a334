"""Our AWD-LSTM against stored outputs of fastai 2.8.12 (tests/reference/make_fastai_reference.py)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import SCALED_DROPOUTS, AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM, AwdLstmForSequenceClassification
from ulmfit_pipe.models.layer_groups.group_specs import layer_group_specs
from ulmfit_pipe.tools.fastai.weights import fastai_sizes, from_fastai_state_dict

REFERENCE = Path(__file__).parents[2] / "reference"


def stored(name):
    with np.load(REFERENCE / name, allow_pickle=False) as arrays:
        return dict(arrays)


def fastai_weights(arrays, prefix="weights/"):
    return {k.removeprefix(prefix): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(prefix)}


def load(model_class, weights, **settings):
    no_dropout = dict.fromkeys((*SCALED_DROPOUTS, "head_dropout"), 0.0)
    model = model_class(AwdLstmConfig(**fastai_sizes(weights), **no_dropout, **settings))
    model.load_state_dict(from_fastai_state_dict(weights), strict=True)
    return model.eval()


def grouped_parameters(model):
    groups, seen = [], set()
    for spec in layer_group_specs(model):
        named = [(n, p) for n, p in model.named_parameters() if n.startswith(spec.prefixes) and n not in seen]
        seen |= {n for n, _ in named}
        groups.append([p for _, p in named])
    assert len(seen) == len(list(model.parameters()))
    return groups


class FastaiAdam:
    """torch AdamW driven with fastai's rates and momenta, weight decay 0."""

    def __init__(self, model):
        groups = [{"params": params} for params in grouped_parameters(model)]
        self.optimizer = torch.optim.AdamW(groups, lr=1.0, eps=1e-5, weight_decay=0.0)

    def step(self, loss, lrs, moms):
        for group, lr, mom in zip(self.optimizer.param_groups, lrs, moms, strict=True):
            group["lr"], group["betas"] = float(lr), (float(mom), 0.99)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def activation_penalty(dropped, raw):
    """fastai's AR (alpha 2) and TAR (beta 1)."""
    return 2 * dropped.pow(2).mean() + (raw[:, 1:] - raw[:, :-1]).pow(2).mean()


def assert_same_weights(model, arrays, prefix):
    for name, value in from_fastai_state_dict(fastai_weights(arrays, prefix)).items():
        torch.testing.assert_close(
            model.state_dict()[name], value, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n} {m}"
        )


def test_language_model_logits_and_carried_state_are_fastais():
    arrays = stored("language_model.npz")
    model, state = load(AwdLstmForCausalLM, fastai_weights(arrays)), None
    for window in ("first", "second"):
        out = model(torch.from_numpy(arrays[f"{window}_ids"]), hidden_state=state)
        state = out.hidden_state
        np.testing.assert_allclose(out.logits.detach(), arrays[f"{window}_logits"], atol=1e-6)
        np.testing.assert_allclose(out.raw_output.detach(), arrays[f"{window}_raw_output"], atol=1e-6)


@pytest.mark.parametrize("length", [1, 5, 71, 72, 73, 200, 1369])
def test_classifier_logits_of_a_document_alone_are_fastais(length):
    arrays = stored("classifier.npz")
    model = load(AwdLstmForSequenceClassification, fastai_weights(arrays), num_labels=4, bptt=72, gradient_window=1368)
    logits = model(torch.from_numpy(arrays[f"ids_{length}"].astype(np.int64))).logits
    np.testing.assert_allclose(logits.detach(), arrays[f"logits_{length}"], atol=1e-5)


def test_five_language_model_steps_have_fastais_losses_and_weights():
    arrays = stored("language_model_steps.npz")
    model = load(AwdLstmForCausalLM, fastai_weights(arrays)).train()
    stream, adam, state = torch.from_numpy(arrays["stream"]), FastaiAdam(model), None
    for i in range(5):
        ids, targets = stream[:, 3 * i : 3 * i + 3], stream[:, 3 * i + 1 : 3 * i + 4]
        out = model(ids, hidden_state=state)
        state = tuple((h.detach(), c.detach()) for h, c in out.hidden_state)
        loss = F.cross_entropy(out.logits.flatten(0, 1), targets.flatten())
        penalized = loss + activation_penalty(out.dropped_output, out.raw_output)
        assert loss.item() == pytest.approx(arrays["losses"][i], abs=1e-6)
        assert penalized.item() == pytest.approx(arrays["penalized_losses"][i], abs=1e-6)
        adam.step(penalized, arrays["lrs"][i], arrays["moms"][i])
    assert_same_weights(model, arrays, "after/")


@pytest.mark.parametrize(("documents", "length"), [("short", 3), ("long", 14)])
def test_five_classifier_steps_have_fastais_losses(documents, length):
    arrays = {
        k.removeprefix(f"{documents}/"): v for k, v in stored("classifier_steps.npz").items() if k.startswith(documents)
    }
    settings = {"num_labels": 4, "bptt": 4, "gradient_window": 16}
    model = load(AwdLstmForSequenceClassification, fastai_weights(arrays), **settings).double().train()
    adam = FastaiAdam(model)
    assert arrays["ids"].shape == (5, 6, length)
    for i in range(5):
        out = model(torch.from_numpy(arrays["ids"][i]), labels=torch.from_numpy(arrays["labels"][i]))
        penalized = out.loss + activation_penalty(out.raw_output, out.raw_output)
        assert out.loss.item() == pytest.approx(arrays["losses"][i], abs=1e-6)
        adam.step(penalized, arrays["lrs"][i], arrays["moms"][i])
    assert_same_weights(model, arrays, "after/")
