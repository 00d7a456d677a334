import pytest
from torch import nn

from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import (
    AwdLstmForCausalLM,
    AwdLstmForSequenceClassification,
    AwdLstmModel,
)
from ulmfit_pipe.models.layer_groups.group_specs import layer_group_specs

CONFIG = AwdLstmConfig(vocab_size=11, embedding_size=5, hidden_size=7, num_hidden_layers=2, num_labels=4)


def names_by_group(model):
    return {
        spec.name: [n for n, _ in model.named_parameters() if any(n.startswith(f"{p}.") for p in spec.prefixes)]
        for spec in layer_group_specs(model)
    }


@pytest.mark.parametrize(
    ("model_class", "groups"),
    [
        (AwdLstmModel, ["embeddings", "lstm0", "lstm1"]),
        (AwdLstmForCausalLM, ["lstm0", "lstm1", "embeddings"]),
        (AwdLstmForSequenceClassification, ["embeddings", "lstm0", "lstm1", "head"]),
    ],
)
def test_the_groups_run_from_the_input_side_and_hold_every_parameter_once(model_class, groups):
    model = model_class(CONFIG)
    by_group = names_by_group(model)
    assert list(by_group) == groups
    assert sorted(sum(by_group.values(), [])) == sorted(n for n, _ in model.named_parameters())


def test_the_tied_embedding_is_last_in_the_language_model_and_first_in_the_classifier():
    assert names_by_group(AwdLstmForCausalLM(CONFIG))["embeddings"] == ["model.embeddings.weight", "lm_head.bias"]
    classifier = names_by_group(AwdLstmForSequenceClassification(CONFIG))
    assert list(classifier.items())[0] == ("embeddings", ["model.embeddings.weight"])


def test_an_untied_decoder_is_in_the_language_models_last_group():
    config = AwdLstmConfig(vocab_size=11, embedding_size=5, hidden_size=7, tie_word_embeddings=False)
    last = names_by_group(AwdLstmForCausalLM(config))["embeddings"]
    assert last == ["model.embeddings.weight", "lm_head.weight", "lm_head.bias"]


def test_a_subclass_has_its_parents_groups():
    class Mine(AwdLstmForCausalLM):
        pass

    assert [spec.name for spec in layer_group_specs(Mine(CONFIG))] == ["lstm0", "lstm1", "embeddings"]


def test_an_unknown_architecture_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="no layer groups are known for Linear; known are .* LayerGroupSpec"):
        layer_group_specs(nn.Linear(2, 3))
