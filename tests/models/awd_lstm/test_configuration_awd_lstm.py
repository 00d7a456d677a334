import json

import pytest

from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig


def test_default_sizes_and_dropouts_are_fastais():
    config = AwdLstmConfig()
    assert config.layer_sizes() == [(400, 1152), (1152, 1152), (1152, 400)]
    dropouts = (config.embedding_dropout, config.input_dropout, config.weight_dropout, config.hidden_dropout)
    assert (*dropouts, config.output_dropout) == (0.02, 0.25, 0.2, 0.15, 0.1)
    assert (config.bptt, config.gradient_window + config.bptt) == (72, 1440)


def test_a_single_layer_is_embedding_wide():
    assert AwdLstmConfig(embedding_size=5, hidden_size=7, num_hidden_layers=1).layer_sizes() == [(5, 5)]


@pytest.mark.parametrize("name", ["vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "bptt"])
def test_a_size_below_one_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        AwdLstmConfig(**{name: 0})


def test_a_negative_gradient_window_is_refused():
    with pytest.raises(ValueError, match="gradient_window must be at least 0 tokens, got -1"):
        AwdLstmConfig(gradient_window=-1)


def test_a_dropout_of_one_is_refused():
    with pytest.raises(ValueError, match=r"weight_dropout must lie in \[0, 1\), got 1.0"):
        AwdLstmConfig(weight_dropout=1.0)


def test_a_misspelt_setting_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="no setting 'embeding_dropout'; did you mean 'embedding_dropout'"):
        AwdLstmConfig(embeding_dropout=0.5)


def test_drop_mult_scales_five_dropouts_and_leaves_the_original_and_the_head():
    config = AwdLstmConfig(output_dropout=0.4, id2label={0: "bad", 1: "good", 2: "fine"})
    scaled = config.scaled_dropouts(0.5)
    assert (scaled.embedding_dropout, scaled.input_dropout, scaled.weight_dropout) == (0.01, 0.125, 0.1)
    assert (scaled.hidden_dropout, scaled.output_dropout, scaled.head_dropout) == (0.075, 0.2, 0.1)
    assert (config.output_dropout, scaled.id2label) == (0.4, {0: "bad", 1: "good", 2: "fine"})


def test_a_drop_mult_that_drops_everything_or_is_negative_is_refused():
    with pytest.raises(ValueError, match="drop_mult 4 makes input_dropout 1, .* just under 4"):
        AwdLstmConfig(input_dropout=0.25).scaled_dropouts(4)
    with pytest.raises(ValueError, match="drop_mult must be at least 0, got -1"):
        AwdLstmConfig().scaled_dropouts(-1)


def test_saving_and_loading_keeps_every_setting(tmp_path):
    config = AwdLstmConfig(
        vocab_size=11, direction="backward", tie_word_embeddings=False, vocab_hash="ab", thresholds=[0.5, 0.25], bptt=6,
        id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}, problem_type="multi_label_classification",
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "modeling_awd_lstm.AwdLstmConfig",
        "AutoModel": "modeling_awd_lstm.AwdLstmModel",
        "AutoModelForCausalLM": "modeling_awd_lstm.AwdLstmForCausalLM",
        "AutoModelForSequenceClassification": "modeling_awd_lstm.AwdLstmForSequenceClassification",
    }
    assert (tmp_path / "modeling_awd_lstm.py").is_file()
    loaded = AwdLstmConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "config.json").read_text()
