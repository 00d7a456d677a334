import copy
import warnings

import pytest
import torch
from safetensors import safe_open
from torch import distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForCausalLM

from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import (
    AwdLstmForCausalLM,
    AwdLstmForSequenceClassification,
    AwdLstmModel,
)

SIZES = {"vocab_size": 11, "embedding_size": 5, "hidden_size": 7, "num_hidden_layers": 3}


def language_model(**settings):
    torch.manual_seed(0)
    return AwdLstmForCausalLM(AwdLstmConfig(**SIZES, **settings)).eval()


def words(batch, seq_len, seed=0):
    return torch.randint(2, 11, (batch, seq_len), generator=torch.Generator().manual_seed(seed))


def test_the_backbone_is_three_torch_lstms_in_eval():
    model, ids = language_model().model, words(2, 3)
    x = nn.functional.embedding(ids, model.embeddings.weight)
    for layer, (size_in, size_out) in zip(model.layers, [(5, 7), (7, 7), (7, 5)], strict=True):
        twin = nn.LSTM(size_in, size_out, batch_first=True)
        twin.load_state_dict(layer.state_dict())
        x, _ = twin(x)
    torch.testing.assert_close(model(ids).last_hidden_state, x, atol=1e-7, rtol=0)


def test_two_windows_with_carried_state_read_like_one():
    model, ids = language_model(), words(2, 7)
    first = model(ids[:, :3])
    second = model(ids[:, 3:], hidden_state=first.hidden_state)
    whole = model(ids)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole.logits, atol=1e-7, rtol=0)
    assert [tuple(h.shape) for h, _ in second.hidden_state] == [(1, 2, 7), (1, 2, 7), (1, 2, 5)]
    torch.testing.assert_close(second.hidden_state, whole.hidden_state, atol=1e-7, rtol=0)


def test_the_state_of_another_batch_or_model_is_refused_with_its_shapes():
    model = language_model()
    state = model(words(2, 3)).hidden_state
    with pytest.raises(ValueError, match=r"h of shapes \[\(1, 2, 7\).*3 layers and input_ids has a batch of 4"):
        model(words(4, 3), hidden_state=state)
    with pytest.raises(ValueError, match="this model has 3 layers"):
        model(words(2, 3), hidden_state=state[:2])


def test_embedding_dropout_rests_while_the_embedding_alone_is_in_eval():
    config = AwdLstmConfig(**SIZES, embedding_dropout=0.5, input_dropout=0, weight_dropout=0, hidden_dropout=0)
    model, ids = AwdLstmModel(config).train(), words(2, 3)
    assert not torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)
    model.embeddings.eval()
    assert torch.equal(model(ids).last_hidden_state, model(ids).last_hidden_state)


def test_initialization_is_fastais_and_torchs():
    model = AwdLstmForCausalLM(AwdLstmConfig(vocab_size=500, embedding_size=50, hidden_size=64))
    assert 0.099 < model.model.embeddings.weight.abs().max() <= 0.1
    assert model.lm_head.bias.abs().max() == 0
    for layer, bound in zip(model.model.layers, (64**-0.5, 64**-0.5, 50**-0.5), strict=True):
        assert all(0.98 * bound < w.abs().max() <= bound for w in (layer.weight_ih_l0, layer.weight_hh_l0))


def test_training_drops_at_all_five_places_and_eval_at_none():
    ids, off = words(2, 3), {f"{place}_dropout": 0.0 for place in ("embedding", "input", "weight", "hidden", "output")}
    for place in off:
        model = language_model(**{**off, place: 0.5})
        reference = model(ids).logits
        assert torch.equal(reference, model(ids).logits)
        outputs = [model.train()(ids).logits for _ in range(4)]
        assert any(not torch.equal(out, reference) for out in outputs), place
    assert torch.equal(language_model(**off).train()(ids).logits, reference)


def test_no_hidden_dropout_follows_the_last_layer():
    out = language_model(hidden_dropout=0.9, output_dropout=0.0).train()(words(2, 3))
    assert (out.raw_output != 0).all()


def test_output_dropout_lies_between_raw_and_dropped_output():
    model = language_model(output_dropout=0.5)
    out = model(words(2, 3))
    assert torch.equal(out.raw_output, out.dropped_output)
    torch.manual_seed(3)
    out = model.train()(words(2, 3))
    kept = out.dropped_output != 0
    torch.testing.assert_close(out.dropped_output[kept], 2 * out.raw_output[kept])
    assert torch.equal(kept[:, 0], kept[:, 2]) and not kept.all()
    torch.testing.assert_close(out.logits, model.lm_head(out.dropped_output))


def test_the_loss_is_that_of_the_next_token_and_skips_ignored_ones():
    model, ids = language_model(), words(2, 4)
    labels = ids.clone()
    labels[1, 2:] = -100
    out = model(ids, labels=labels)
    per_token = F.cross_entropy(out.logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    assert out.loss.item() == pytest.approx((per_token[0].sum() + per_token[1, 0]).item() / 4, abs=1e-6)
    assert model(ids[:, :1], labels=ids[:, :1]).loss.item() == 0
    loss, logits, *_ = model(ids, labels=labels, return_dict=False)
    assert torch.equal(loss, out.loss) and torch.equal(logits, out.logits)


def test_saving_and_loading_is_bit_identical_and_keeps_the_tie(tmp_path):
    model, ids = language_model(), words(2, 3)
    model.lm_head.bias.data.uniform_()
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as saved:
        assert "lm_head.weight" not in saved.keys() and "lm_head.bias" in saved.keys()
    loaded = AwdLstmForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.lm_head.weight is loaded.model.embeddings.weight
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert torch.equal(model(ids).logits, loaded(ids).logits)


def test_an_untied_decoder_stays_untied(tmp_path):
    model = language_model(tie_word_embeddings=False)
    assert not torch.equal(model.lm_head.weight, model.model.embeddings.weight)
    model.save_pretrained(tmp_path)
    loaded = AwdLstmForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(loaded.lm_head.weight, loaded.model.embeddings.weight)


def test_a_copy_keeps_its_own_tie():
    model = language_model()
    copied = copy.deepcopy(model)
    assert copied.lm_head.weight is copied.model.embeddings.weight
    assert copied.lm_head.weight is not model.lm_head.weight


def test_a_classifier_from_a_language_models_folder_has_its_backbone_and_a_fresh_head(tmp_path):
    model = language_model()
    model.save_pretrained(tmp_path)
    classifier = AwdLstmForSequenceClassification.from_pretrained(tmp_path, num_labels=4)
    for name, weight in model.model.named_parameters():
        assert torch.equal(classifier.model.get_parameter(name), weight)
    first, second = classifier.classifier.blocks
    for block in (first, second):
        assert block.norm.weight.unique().tolist() == [1.0]
        assert block.norm.bias.unique().item() == pytest.approx(1e-3)
        assert (block.norm.running_mean.abs().max(), block.norm.running_var.min()) == (0, 1)
    assert 0.9 * 15**-0.5 < first.linear.weight.abs().max() <= 15**-0.5
    assert second.linear.weight.shape == (4, 50) and second.linear.weight.abs().max() <= 50**-0.5


def test_the_automatic_classes_load_a_registered_model(tmp_path):
    AutoConfig.register("awd_lstm", AwdLstmConfig, exist_ok=True)
    AutoModelForCausalLM.register(AwdLstmConfig, AwdLstmForCausalLM, exist_ok=True)
    model = language_model()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(loaded, AwdLstmForCausalLM)
    assert torch.equal(loaded(words(2, 3)).logits, model(words(2, 3)).logits)


def test_greedy_generation_is_repeated_argmax():
    model, ids = language_model(), words(2, 3)
    model.lm_head.bias.data.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(1))
    expected = ids
    for _ in range(6):
        expected = torch.cat([expected, model(expected).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(model.generate(ids, max_new_tokens=6, do_sample=False), expected)


def test_beam_search_carries_the_right_state_to_each_beam(monkeypatch):
    class Rereading(AwdLstmForCausalLM):
        def prepare_inputs_for_generation(self, input_ids, **kwargs):
            return {"input_ids": input_ids}

    model = language_model()
    for weight in model.parameters():
        weight.data.mul_(6)  # so that the beams change places
    rereading = Rereading(model.config)
    rereading.load_state_dict(model.state_dict())
    settings = {"max_new_tokens": 12, "num_beams": 4, "do_sample": False}
    found = model.generate(words(5, 3), **settings)
    assert torch.equal(found, rereading.eval().generate(words(5, 3), **settings))
    monkeypatch.setattr(AwdLstmForCausalLM, "_reorder_cache", lambda self, state, beam_idx: state)
    assert not torch.equal(found, model.generate(words(5, 3), **settings))


def test_padded_prompts_are_refused():
    with pytest.raises(ValueError, match="padded prompts, and an LSTM would read the padding"):
        language_model().generate(words(2, 3), attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]), max_new_tokens=2)


@pytest.mark.bf16
def test_bf16_autocast_gives_every_parameter_a_gradient():
    model, ids = language_model().train(), words(2, 3)
    state = model(ids).hidden_state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(ids, hidden_state=tuple((h.detach(), c.detach()) for h, c in state), labels=ids)
    assert out.logits.dtype == torch.bfloat16 and out.loss.dtype == torch.float32
    out.loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_nothing_is_stored_between_calls():
    model, ids = language_model(), words(2, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = model(ids).logits
    model(words(4, 9))
    assert torch.equal(model(ids).logits, first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture
def one_process_group(tmp_path):
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("model_class", [AwdLstmForCausalLM, AwdLstmForSequenceClassification])
def test_data_parallel_wrapping_finds_no_unused_parameter_and_warns_of_nothing(model_class, one_process_group):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bare = model_class(AwdLstmConfig(**SIZES, num_labels=4, bptt=4, gradient_window=4)).train()
        model = DistributedDataParallel(bare)
        for seed in range(3):  # an unused parameter raises at the second forward
            model(words(2, 13, seed)).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in bare.parameters())


def test_an_embedding_can_be_replaced_through_transformers():
    model = AwdLstmModel(AwdLstmConfig(**SIZES))
    assert model.get_input_embeddings() is model.embeddings
    resized = language_model()
    resized.resize_token_embeddings(13, mean_resizing=False)
    assert resized(words(2, 3)).logits.shape == (2, 3, 13)
    assert resized.lm_head.weight is resized.model.embeddings.weight
