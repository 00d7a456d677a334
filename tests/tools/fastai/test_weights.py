from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import (
    AwdLstmForCausalLM,
    AwdLstmForSequenceClassification,
    AwdLstmModel,
)
from ulmfit_pipe.tools.fastai.weights import (
    fastai_head_sizes,
    fastai_sizes,
    from_fastai_state_dict,
    to_fastai_state_dict,
)

REFERENCE = Path(__file__).parents[2] / "reference"
CONFIG = AwdLstmConfig(vocab_size=11, embedding_size=5, hidden_size=7, num_hidden_layers=3, num_labels=4)
LAYER_PARTS = ("weight_hh_l0_raw", "module.weight_ih_l0", "module.bias_ih_l0", "module.bias_hh_l0")


def stored_weights(name):
    with np.load(REFERENCE / name, allow_pickle=False) as arrays:
        return {
            k.removeprefix("weights/"): torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith("weights/")
        }


def old_layout(weights):
    """The same language model as fastai 0.7 and salesforce wrote it."""
    renamed = {}
    for key, value in weights.items():
        key = key.replace("encoder_dp.emb", "encoder_with_dropout.embed")
        renamed[key.replace(".weight_hh_l0_raw", ".module.weight_hh_l0_raw")] = value
    return renamed


@pytest.mark.parametrize(
    ("name", "model_class"),
    [("language_model.npz", AwdLstmForCausalLM), ("classifier.npz", AwdLstmForSequenceClassification)],
)
def test_fastais_keys_become_exactly_ours_and_back(name, model_class):
    theirs = stored_weights(name)
    ours = from_fastai_state_dict(theirs)
    assert ours.keys() == model_class(CONFIG).state_dict().keys()
    back = to_fastai_state_dict(ours)
    assert list(back) == list(theirs), "fastai's load_pretrained goes by position"
    assert all(torch.equal(back[key], theirs[key]) for key in theirs)


def test_every_layer_gets_its_own_weights_by_name_whatever_the_order():
    theirs = stored_weights("language_model.npz")
    ours = from_fastai_state_dict(dict(reversed(theirs.items())))
    for layer in range(3):
        for part in LAYER_PARTS:
            mapped = part.removeprefix("module.").removesuffix("_raw")
            assert torch.equal(ours[f"model.layers.{layer}.{mapped}"], theirs[f"0.rnns.{layer}.{part}"])


def test_an_encoder_file_fills_the_backbone_and_is_written_again():
    theirs = {k.removeprefix("0."): v for k, v in stored_weights("language_model.npz").items() if k.startswith("0.")}
    ours = from_fastai_state_dict(theirs)
    backbone = AwdLstmModel(CONFIG)
    backbone.load_state_dict({k.removeprefix("model."): v for k, v in ours.items()}, strict=True)
    assert to_fastai_state_dict(backbone.state_dict()).keys() == to_fastai_state_dict(ours).keys() == theirs.keys()


def test_the_old_layout_a_learner_file_and_a_dropped_copy_give_the_same_weights():
    theirs = stored_weights("language_model.npz")
    expected = from_fastai_state_dict(theirs)
    with_copies = {**theirs, "0.rnns.1.module.weight_hh_l0": torch.zeros(28, 7)}
    salesforce = {k.removeprefix("0.").removeprefix("1."): v for k, v in old_layout(theirs).items()}
    for layout in (old_layout(theirs), with_copies, salesforce, {"model": theirs, "opt": {}}):
        mapped = from_fastai_state_dict(layout)
        assert mapped.keys() == expected.keys()
        assert all(torch.equal(mapped[key], expected[key]) for key in expected)


def test_the_heads_linear_is_found_at_both_indices_and_written_at_the_asked_one():
    theirs = stored_weights("classifier.npz")
    ours = from_fastai_state_dict(theirs)
    without_dropout = to_fastai_state_dict(ours, linear_index=(1, 2))
    with np.load(REFERENCE / "classifier.npz", allow_pickle=False) as arrays:
        assert set(without_dropout) == set(arrays["keys_at_drop_mult_0"].tolist())
    assert from_fastai_state_dict(without_dropout).keys() == ours.keys()


def test_another_number_of_layers_fails_by_name_instead_of_filling_by_position():
    ours = from_fastai_state_dict(stored_weights("language_model.npz"))
    two_layers = AwdLstmForCausalLM(AwdLstmConfig(vocab_size=11, embedding_size=5, hidden_size=7, num_hidden_layers=2))
    with pytest.raises(RuntimeError, match="model.layers.2.weight_ih_l0"):
        two_layers.load_state_dict(ours, strict=True)


def test_the_sizes_are_read_from_the_weights():
    sizes = fastai_sizes(stored_weights("classifier.npz"))
    assert sizes == {"vocab_size": 11, "embedding_size": 5, "hidden_size": 7, "num_hidden_layers": 3}
    with pytest.raises(ValueError, match="no 'encoder.weight' among the 1 mapped keys"):
        fastai_sizes({"1.decoder.bias": torch.zeros(11)})


def test_foreign_and_ambiguous_keys_are_refused_by_name():
    with pytest.raises(ValueError, match="'0.layers.0.attn.weight' is not one of a fastai AWD-LSTM"):
        from_fastai_state_dict({"0.layers.0.attn.weight": torch.zeros(1)})
    both = {"1.layers.0.1.weight": torch.zeros(1), "1.layers.0.2.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="'1.layers.0.1.weight' and '1.layers.0.2.weight' both become"):
        from_fastai_state_dict(both)
    with pytest.raises(ValueError, match="key 'score.weight' is not one of AwdLstmModel"):
        to_fastai_state_dict({"score.weight": torch.zeros(1)})


def old_classifier(kind, *, labels=4):
    """A classifier of fastai 1 or 0.7, whose head has biases; and that head as a torch module."""
    torch.manual_seed(3)
    head = nn.Sequential(
        nn.BatchNorm1d(15),
        nn.Dropout(),
        nn.Linear(15, 6),
        nn.ReLU(),
        nn.BatchNorm1d(6),
        nn.Dropout(),
        nn.Linear(6, labels),
    )
    for norm in (head[0], head[4]):
        norm.running_mean.uniform_(-1, 1)
        norm.bias.data.uniform_(-1, 1)
    encoder = {k: v for k, v in stored_weights("classifier.npz").items() if k.startswith("0.")}
    weights = head.state_dict()
    if kind == "0.7":
        names = {"0": "0.bn", "2": "0.lin", "4": "1.bn", "6": "1.lin"}
        weights = {f"{names[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in weights.items() if "tracked" not in k}
    return {**encoder, **{f"1.layers.{k}": v for k, v in weights.items()}}, head.eval()


@pytest.mark.parametrize("kind", ["1", "0.7"])
def test_an_older_head_with_biases_gives_the_same_scores(kind):
    theirs, head = old_classifier(kind)
    assert fastai_head_sizes(theirs) == {"head_hidden_size": 6, "num_labels": 4}
    config = AwdLstmConfig(**fastai_sizes(theirs), head_hidden_size=6, num_labels=4)
    model = AwdLstmForSequenceClassification(config).eval()
    model.load_state_dict(from_fastai_state_dict(dict(reversed(theirs.items()))), strict=True)
    pooled = torch.randn(8, 15)
    torch.testing.assert_close(model.classifier(pooled), head(pooled), rtol=0, atol=1e-5)


def test_head_sizes_are_read_and_none_where_there_is_no_head():
    assert fastai_head_sizes(stored_weights("classifier.npz")) == {"head_hidden_size": 50, "num_labels": 4}
    assert fastai_head_sizes(stored_weights("language_model.npz")) == {}


def test_heads_that_cannot_be_mapped_are_refused():
    theirs, _ = old_classifier("1")
    with pytest.raises(ValueError, match="the head has 2 norms but 1 linear layers; it is cut short"):
        from_fastai_state_dict({k: v for k, v in theirs.items() if not k.startswith("1.layers.6")})
    wide, _ = old_classifier("1", labels=7)
    with pytest.raises(ValueError, match=r"layer of shape \(7, 6\) has a bias that cannot be moved into its norm"):
        from_fastai_state_dict(wide)
    three = {**stored_weights("classifier.npz"), "1.layers.2.2.weight": torch.zeros(4, 4)}
    with pytest.raises(ValueError, match=r"the head has a block 2 \('1.layers.2.2.weight'\); a head of two blocks"):
        from_fastai_state_dict(three)
    one = {k: v for k, v in stored_weights("classifier.npz").items() if not k.startswith("1.layers.1")}
    with pytest.raises(ValueError, match="no linear layer in block 1; this is not a complete classifier"):
        fastai_head_sizes(one)


@pytest.mark.parametrize(
    ("key", "changed", "words"),
    [
        (
            "0.encoder.weight",
            torch.ones(5),
            r"model.embeddings.weight must have the axes \(vocab, embedding\), its .*\(5,\)",
        ),
        (
            "0.rnns.0.weight_hh_l0_raw",
            torch.ones(7),
            r"layers.0.weight_hh_l0 must have the axes \(4 x hidden, hidden\)",
        ),
        (
            "1.decoder.bias",
            torch.ones(9),
            r"the decoder's bias has the shape \(9,\), but the embedding asks for \(11,\)",
        ),
        ("1.decoder.bias", torch.ones(11, 1), r"the decoder's bias has the shape \(11, 1\), but the embedding asks"),
        ("1.decoder.weight", torch.ones(9, 5), r"weight has the shape \(9, 5\), but the embedding asks for \(11, 5\)"),
    ],
)
def test_parts_of_another_shape_are_refused_with_both_shapes(key, changed, words):
    with pytest.raises(ValueError, match=words):
        fastai_sizes({**stored_weights("language_model.npz"), key: changed})


def test_a_head_of_another_shape_is_refused():
    weights = {**stored_weights("classifier.npz"), "1.layers.1.2.weight": torch.ones(50)}
    with pytest.raises(
        ValueError, match=r"classifier.blocks.1.linear.weight must have the axes \(out, in\), .* \(50,\)"
    ):
        fastai_head_sizes(weights)


@pytest.mark.parametrize(
    ("key", "changed", "words"),
    [
        ("1.layers.0.bias", None, "the norm of the head's block 0 has no bias; it is not a whole classifier"),
        ("1.layers.6.weight", None, "the linear layer of the head's block 1 has no weight; it is not a whole"),
        (
            "1.layers.0.bias",
            torch.ones(14),
            r"head's block 0 do not fit: norm and linear layer have \[\(14,\), \(6, 15\)",
        ),
        ("1.layers.2.bias", torch.ones(5), r"do not fit: norm and linear layer have \[\(15,\), \(6, 15\), \(5,\)\]"),
        (
            "1.layers.6.weight",
            torch.ones(6),
            r"block 1 do not fit: norm and linear layer have \[\(6,\), \(6,\), \(4,\)\]",
        ),
    ],
)
def test_an_older_head_with_a_part_missing_or_of_another_shape_is_refused(key, changed, words):
    theirs, _ = old_classifier("1")
    del theirs[key]
    with pytest.raises(ValueError, match=words):
        from_fastai_state_dict(theirs if changed is None else {**theirs, key: changed})


@pytest.mark.parametrize("hidden", [1150, 1152])
def test_the_published_widths_are_read_from_the_tensors(hidden):
    weights = {"0.encoder.weight": torch.empty(2, 400, device="meta")}
    for layer, (inside, outside) in enumerate([(400, hidden), (hidden, hidden), (hidden, 400)]):
        weights[f"0.rnns.{layer}.module.weight_ih_l0"] = torch.empty(4 * outside, inside, device="meta")
        weights[f"0.rnns.{layer}.module.weight_hh_l0_raw"] = torch.empty(4 * outside, outside, device="meta")
    sizes = fastai_sizes(weights)
    assert sizes == {"vocab_size": 2, "embedding_size": 400, "hidden_size": hidden, "num_hidden_layers": 3}


def test_an_embedding_without_layers_is_no_checkpoint():
    with pytest.raises(ValueError, match="no 'rnns.0.weight_hh_l0_raw' among the 1 mapped keys"):
        fastai_sizes({"0.encoder.weight": torch.zeros(11, 5)})


def test_a_model_without_its_tied_copy_is_written_in_fastais_order():
    ours = from_fastai_state_dict(stored_weights("language_model.npz"))
    del ours["lm_head.weight"]
    assert list(to_fastai_state_dict(ours))[-2:] == ["1.decoder.weight", "1.decoder.bias"]


@pytest.mark.parametrize("layout", [dict, old_layout])
def test_copies_of_the_embedding_that_differ_are_refused_with_both_names(layout):
    theirs = stored_weights("language_model.npz")
    theirs["0.encoder_dp.emb.weight"] = theirs["0.encoder_dp.emb.weight"].clone()
    assert from_fastai_state_dict(layout(theirs)).keys()
    changed = {**theirs, "0.encoder_dp.emb.weight": theirs["0.encoder_dp.emb.weight"] + 1}
    shorter = {**theirs, "0.encoder_dp.emb.weight": theirs["0.encoder_dp.emb.weight"][:-1]}
    for wrong in (changed, shorter):
        words = (
            r"'0.encoder.weight' and '0.encoder_(dp.emb|with_dropout.embed).weight' are one embedding .*; take an ear"
        )
        with pytest.raises(ValueError, match=words):
            from_fastai_state_dict(layout(wrong))


def test_the_model_is_taken_out_of_whatever_stands_beside_it():
    theirs = stored_weights("language_model.npz")
    for beside in ({}, {"opt": {}}, {"opt": {}, "epoch": 3}):
        assert from_fastai_state_dict({"model": theirs, **beside}).keys() == from_fastai_state_dict(theirs).keys()
