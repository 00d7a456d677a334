"""Heads on a transformer's pooled outputs: what is pooled, independence of neighbours, and a folder that is ours."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    OPTConfig,
    XLNetConfig,
)

from ulmfit_pipe.models.heads.pooling_classifier import PoolingClassifierConfig, PoolingForSequenceClassification
from ulmfit_pipe.stages.artifacts import register

BERT = BertConfig(
    vocab_size=30,
    hidden_size=8,
    num_attention_heads=2,
    num_hidden_layers=2,
    intermediate_size=10,
    max_position_embeddings=16,
)
GPT2 = GPT2Config(vocab_size=30, n_embd=8, n_head=2, n_layer=2, n_positions=16, pad_token_id=0)
DISTILBERT = DistilBertConfig(vocab_size=30, dim=8, n_heads=2, n_layers=2, hidden_dim=10, max_position_embeddings=16)
XLNET = XLNetConfig(vocab_size=30, d_model=8, n_head=2, n_layer=2, d_inner=10, pad_token_id=0)
OPT = OPTConfig(  # its outputs are as wide as its embeddings, not as its hidden states
    vocab_size=30,
    hidden_size=8,
    word_embed_proj_dim=6,
    num_attention_heads=2,
    num_hidden_layers=2,
    ffn_dim=10,
    max_position_embeddings=16,
    pad_token_id=0,
)
POOLINGS = pytest.mark.parametrize("pooling", ["concat", "mean"])
BACKBONES = pytest.mark.parametrize(
    "encoder", [BERT, DISTILBERT, GPT2, XLNET, OPT], ids=lambda config: config.model_type
)


def make(encoder, **settings):
    torch.manual_seed(0)
    labels = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    config = PoolingClassifierConfig(encoder_config=encoder, head_hidden_size=6, **{**labels, **settings})
    return PoolingForSequenceClassification(config).eval()


def padded(*lengths):
    torch.manual_seed(1)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(4, 30, (len(lengths), max(lengths))) * mask, "attention_mask": mask}


@pytest.mark.parametrize("summary", ["first", "last"])
def test_the_head_sees_one_position_the_maximum_and_the_mean_over_the_text(summary):
    model, batch = make(BERT, summary=summary), padded(9, 4)
    outputs = model.backbone(**batch).last_hidden_state
    expected = []
    for row, length in enumerate((9, 4)):
        real = outputs[row, :length]
        one = real[0] if summary == "first" else real[-1]
        expected.append(torch.cat([one, real.max(0).values, real.mean(0)]))
    torch.testing.assert_close(model(**batch).logits, model.classifier(torch.stack(expected)))


def test_mean_pooling_gives_a_linear_head_the_average_over_the_text():
    model, batch = make(BERT, pooling="mean"), padded(9, 4)
    outputs = model.backbone(**batch).last_hidden_state
    means = torch.stack([outputs[0].mean(0), outputs[1, :4].mean(0)])
    head = model.classifier.linear
    torch.testing.assert_close(model(**batch).logits, means @ head.weight.T + head.bias)


def test_the_linear_heads_weights_start_as_torchs_its_bias_at_zero_and_its_input_drops():
    model, batch = make(BERT, pooling="mean", head_dropout=0.5), padded(9, 4)
    head = model.classifier
    assert 0.5 * 8**-0.5 < head.linear.weight.abs().max().item() <= 8**-0.5
    assert head.linear.bias.tolist() == [0, 0, 0]
    assert head.dropout.p == 0.5
    still = model(**batch).logits
    head.train()
    assert not torch.equal(model(**batch).logits, still)


@POOLINGS
@BACKBONES
def test_logits_depend_neither_on_padding_nor_on_neighbours(encoder, pooling):
    model, batch = make(encoder, pooling=pooling), padded(9, 4, 6)
    together = model(**batch).logits
    for row, length in enumerate((9, 4, 6)):
        alone = model(input_ids=batch["input_ids"][row : row + 1, :length]).logits
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=0)


@POOLINGS
@BACKBONES
def test_every_weight_is_used_so_that_a_pooler_nobody_reads_is_left_out(encoder, pooling):
    model = make(encoder, pooling=pooling).train()
    model(**padded(9, 4, 6)).logits.sum().backward()
    of_xlnet = ("mask_emb", "seg_embed", "r_s_bias")  # of its pretraining, and of token types where it is given some
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert [name for name in unused if not name.endswith(of_xlnet)] == []


@POOLINGS
@BACKBONES
def test_a_saved_folder_comes_back_through_transformers_with_the_same_logits(encoder, pooling, tmp_path):
    register()
    model, batch = make(encoder, pooling=pooling), padded(9, 4)
    model.save_pretrained(tmp_path)
    loaded, found = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert torch.equal(loaded.eval()(**batch).logits, model(**batch).logits)
    assert loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert type(loaded.config.encoder_config) is type(encoder)
    assert loaded.config.get_text_config().vocab_size == 30


def test_the_heads_weights_start_as_an_awd_lstm_classifiers_do():
    head = make(BERT).classifier
    for block in head.blocks:
        assert (block.norm.weight.min(), block.norm.weight.max()) == (1, 1)
        assert block.norm.bias.unique().tolist() == [pytest.approx(1e-3)]
        bound = block.linear.in_features**-0.5
        assert 0.5 * bound < block.linear.weight.abs().max().item() <= bound


def test_labels_give_transformers_loss():
    batch, labels = padded(9, 4), torch.tensor([2, 0])
    model = make(BERT, problem_type="single_label_classification")
    output = model(**batch, labels=labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))
    several = make(BERT, problem_type="multi_label_classification")
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    output = several(**batch, labels=targets)
    torch.testing.assert_close(output.loss, F.binary_cross_entropy_with_logits(output.logits, targets))


def test_a_plain_tuple_is_given_where_asked():
    model, batch = make(BERT), padded(9, 4)
    (logits,) = model(**batch, return_dict=False)
    assert torch.equal(logits, model(**batch).logits)


def test_left_padding_is_refused():
    batch = {name: value.flip(1) for name, value in padded(9, 4).items()}
    with pytest.raises(ValueError, match=r"row 1 of the batch has padding before its last token; pad on the right"):
        make(BERT)(**batch)
