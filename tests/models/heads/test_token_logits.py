"""Small random language models of many architectures, made from their configurations."""

import copy

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForMaskedLM

from ulmfit_pipe.models.heads.token_logits import causal_logits, masked_logits, sees_later_tokens

SIZES = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20}
DROPOUTS = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LLAMA = {**SIZES, "num_key_value_heads": 1, "head_dim": 12, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MASKED = {
    "bert": SIZES,
    "roberta": SIZES,
    "distilbert": {"vocab_size": 61, "dim": 24, "n_layers": 2, "n_heads": 2, "hidden_dim": 20},
    "albert": {**SIZES, "embedding_size": 16},
    "electra": {**SIZES, "embedding_size": 16},
    "deberta": SIZES,
    "deberta-v2": SIZES,
    "mpnet": SIZES,
    "modernbert": {
        **SIZES,
        "pad_token_id": 0,
        "cls_token_id": 1,
        "sep_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "funnel": {"vocab_size": 61, "block_sizes": [1, 1], "d_model": 24, "n_head": 2, "d_head": 12, "d_inner": 20},
    "xlm": {"vocab_size": 61, "emb_dim": 24, "n_layers": 2, "n_heads": 2},
}
CAUSAL = {
    "gpt2": {"vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 2},
    "gpt_neox": SIZES,
    "opt": {**SIZES, "ffn_dim": 20, "word_embed_proj_dim": 24},
    "llama": LLAMA,
    "qwen2": LLAMA,
}


def new_model(kind, name, numbers, **more):
    torch.manual_seed(0)
    model = kind.from_config(CONFIG_MAPPING[name](**{**numbers, **more}))
    for parameter in model.parameters():  # far from the small weights of the start, so that every difference shows
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch_of(seq_len=12):
    chance = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 61, (2, seq_len), generator=chance)
    wanted = torch.rand(2, seq_len, generator=chance) < 0.3
    return {"input_ids": ids}, wanted


@pytest.mark.parametrize("name", MASKED)
def test_logits_at_masked_positions_are_those_of_the_whole_model(name):
    model, (inputs, wanted) = new_model(AutoModelForMaskedLM, name, MASKED[name]), batch_of()
    expected = model(**inputs).logits[wanted]
    found = masked_logits(model, inputs, wanted)
    assert found.shape == (int(wanted.sum()), 61)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    again = model(**inputs).logits
    torch.testing.assert_close(again[wanted], expected)  # nothing is left behind on the model


def test_the_head_is_run_at_the_wanted_positions_only():
    model, (inputs, wanted) = new_model(AutoModelForMaskedLM, "bert", MASKED["bert"]), batch_of()
    shapes = []
    hook = model.cls.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    masked_logits(model, inputs, wanted)
    hook.remove()
    assert shapes == [(1, int(wanted.sum()), 61)]


def test_gradients_are_those_of_the_whole_model():
    model, (inputs, wanted) = new_model(AutoModelForMaskedLM, "bert", MASKED["bert"]), batch_of()
    other, targets = copy.deepcopy(model), torch.arange(int(wanted.sum()))
    F.cross_entropy(masked_logits(model, inputs, wanted), targets).backward()
    F.cross_entropy(other(**inputs).logits[wanted], targets).backward()
    for name, parameter in model.named_parameters():
        expected = other.get_parameter(name).grad
        if expected is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


def test_nothing_wanted_gives_no_logits_and_all_wanted_gives_all():
    model, (inputs, _) = new_model(AutoModelForMaskedLM, "bert", MASKED["bert"]), batch_of()
    nothing, everything = (torch.full((2, 12), value) for value in (False, True))
    assert masked_logits(model, inputs, nothing).shape == (0, 61)
    expected = model(**inputs).logits.flatten(0, 1)
    torch.testing.assert_close(masked_logits(model, inputs, everything), expected, rtol=1e-4, atol=1e-5)
    one_row = {"input_ids": inputs["input_ids"][:1]}
    torch.testing.assert_close(masked_logits(model, one_row, everything[:1]), expected[:12], rtol=1e-4, atol=1e-5)


def test_a_model_that_raises_is_left_without_the_hook():
    model, (inputs, wanted) = new_model(AutoModelForMaskedLM, "bert", MASKED["bert"]), batch_of()
    with pytest.raises(IndexError):
        masked_logits(model, {"input_ids": inputs["input_ids"] + 1000}, wanted)
    assert not model.base_model._forward_hooks


@pytest.fixture
def process_group():
    """A group of this process alone, for what data parallelism wraps around a model."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def test_a_data_parallel_model_gives_the_same_logits_and_gradients(process_group):
    model, (inputs, wanted) = new_model(AutoModelForMaskedLM, "bert", MASKED["bert"]), batch_of()
    other, targets = copy.deepcopy(model), torch.arange(int(wanted.sum()))
    wrapped = DistributedDataParallel(model)
    found, expected = masked_logits(wrapped, inputs, wanted), masked_logits(other, inputs, wanted)
    torch.testing.assert_close(found, expected)
    F.cross_entropy(found, targets).backward()
    F.cross_entropy(expected, targets).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, other.get_parameter(name).grad)
    causal = new_model(AutoModelForCausalLM, "gpt2", CAUSAL["gpt2"])
    expected = causal_logits(causal, inputs, wanted)
    torch.testing.assert_close(causal_logits(DistributedDataParallel(causal), inputs, wanted), expected)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_logits_are_the_models_own_without_a_cache(name):
    model, (inputs, wanted) = new_model(AutoModelForCausalLM, name, CAUSAL[name]), batch_of()
    output = model(**inputs)
    assert output.past_key_values is not None
    caches = []
    hook = model.register_forward_hook(lambda _module, _inputs, output: caches.append(output.past_key_values))
    some, all_of_them = causal_logits(model, inputs, wanted), causal_logits(model, inputs, torch.ones_like(wanted))
    hook.remove()
    torch.testing.assert_close(some, output.logits[wanted])
    torch.testing.assert_close(all_of_them, output.logits.flatten(0, 1))
    assert caches == [None, None]


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_model_does_not_see_later_tokens(name):
    model = new_model(AutoModelForCausalLM, name, CAUSAL[name]).train()
    assert not sees_later_tokens(model)
    assert model.training


@pytest.mark.parametrize("std", [0.02, 0.3])
@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("xlnet", {"vocab_size": 61, "d_model": 24, "n_layer": 2, "n_head": 2, "d_inner": 20}),
        ("bert-generation", SIZES),
        ("bert", SIZES),
    ],
)
def test_a_model_that_reads_both_ways_sees_later_tokens(name, numbers, std):
    model = new_model(AutoModelForCausalLM, name, numbers)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    assert sees_later_tokens(model)
    assert not model.training


def test_a_bert_that_was_told_to_be_a_decoder_does_not():
    assert not sees_later_tokens(new_model(AutoModelForCausalLM, "bert", SIZES, is_decoder=True))


def test_a_vocabulary_smaller_than_the_probe_is_no_obstacle():
    assert not sees_later_tokens(new_model(AutoModelForCausalLM, "gpt2", CAUSAL["gpt2"], vocab_size=4))
