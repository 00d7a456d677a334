"""Two saved models side by side: weights are matched by name, and what is new is told from what moved."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertModel,
    ViTImageProcessorPil,
)

from tests.support.moved_models import save_image_classifier, save_moved
from tests.support.tiny_images import RESNET, save_backbone
from tests.support.tiny_models import tiny_config
from tests.support.tiny_transformers import save_bert, save_distilbert, save_gpt2
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM, AwdLstmForSequenceClassification
from ulmfit_pipe.models.heads.pooling_classifier import PoolingClassifierConfig, PoolingForSequenceClassification
from ulmfit_pipe.stages.artifacts import ArtifactError
from ulmfit_pipe.tools.inspection.weight_comparison import compare_weights

SAME = "give two of one architecture and size, such as a pretrained model and what was fine-tuned from it"


def relative_of(rows):
    return {row.name: row.relative for row in rows}


def test_a_classifier_is_compared_with_the_language_model_below_it(
    tmp_path, tiny_language_model_folder, tiny_tokenizer
):
    classifier = AwdLstmForSequenceClassification(tiny_config(tiny_tokenizer))
    language_model = AwdLstmForCausalLM.from_pretrained(tiny_language_model_folder)
    classifier.model.load_state_dict(language_model.model.state_dict())
    after = save_moved(classifier, tmp_path / "after", "layers.1.")
    changes = compare_weights(tiny_language_model_folder, after)
    assert [row.name for row in changes.groups] == ["embeddings", "lstm0", "lstm1", "head"]
    assert [row.relative for row in changes.groups] == [0, 0, pytest.approx(0.1, rel=1e-4), None]
    assert changes.buffers == ()  # those of the new head have nothing before


def test_an_encoder_without_a_head_is_the_part_below_a_classifiers(tmp_path):
    before = save_bert(tmp_path / "before")
    model = AutoModelForSequenceClassification.from_pretrained(before, num_labels=3)
    after = save_moved(model, tmp_path / "after", "layer.2.")
    changes = compare_weights(before, after)
    assert [row.name for row in changes.groups] == ["embeddings", "block0", "block1", "block2", "head"]
    assert [row.relative for row in changes.groups] == [0, 0, 0, pytest.approx(0.1, rel=1e-4), 0]
    found = relative_of(changes.tensors)
    assert (found["bert.pooler.dense.weight"], found["classifier.weight"]) == (0, None)
    assert "(2 of 4 tensors new)" in str(changes)


def test_a_bare_encoder_is_compared_with_the_classifier_it_was_taken_from(tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(save_bert(tmp_path / "base"))
    model.save_pretrained(tmp_path / "classifier")
    after = save_moved(model.bert, tmp_path / "bare", "embeddings.")
    changes = relative_of(compare_weights(tmp_path / "classifier", after).groups)
    assert changes == {
        "embeddings": pytest.approx(0.1, rel=1e-4),
        **{f"block{number}": 0 for number in range(3)},
        "head": 0,
    }


def test_a_pooler_that_the_language_model_lacks_is_new(tmp_path):
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_pretrained(save_bert(tmp_path / "base"))
    model.save_pretrained(tmp_path / "before")
    after = AutoModelForSequenceClassification.from_pretrained(tmp_path / "before")
    changes = compare_weights(tmp_path / "before", save_moved(after, tmp_path / "after", "word_embeddings"))
    found = relative_of(changes.tensors)
    assert found["bert.pooler.dense.weight"] is None
    assert found["bert.embeddings.word_embeddings.weight"] == pytest.approx(0.1, rel=1e-4)
    assert [row.relative for row in changes.groups[1:]] == [0, 0, 0, None]


def test_a_decoders_language_model_is_compared_with_its_classifier_and_with_itself(tmp_path):
    before = save_gpt2(tmp_path / "before")
    model = AutoModelForSequenceClassification.from_pretrained(before)
    changes = compare_weights(before, save_moved(model, tmp_path / "after", "h.0."))
    assert [row.relative for row in changes.groups] == [0, pytest.approx(0.1, rel=1e-4), 0, 0, None]
    itself = compare_weights(before, before)
    assert {row.relative for row in itself.tensors} == {0.0}
    assert str(itself).count("unchanged") == len(itself.groups)


def test_concat_pooling_puts_the_backbone_below_another_name(tmp_path):
    before = save_distilbert(tmp_path / "before")
    base = AutoModelForSequenceClassification.from_pretrained(before)
    model = PoolingForSequenceClassification(PoolingClassifierConfig(encoder_config=base.config))
    model.backbone.load_state_dict(base.distilbert.state_dict())
    changes = compare_weights(before, save_moved(model, tmp_path / "after", "layer.1."))
    assert [row.relative for row in changes.groups] == [0, 0, pytest.approx(0.1, rel=1e-4), 0, None]


def test_a_head_for_the_same_labels_is_compared_and_one_for_others_is_new(tmp_path):
    base = save_backbone(tmp_path / "base")
    before = save_image_classifier(tmp_path / "before", base)
    moved = compare_weights(before, save_image_classifier(tmp_path / "after", base, part="head."))
    assert relative_of(moved.groups) == {"early": 0, "late": 0, "head": pytest.approx(0.1, rel=1e-4)}
    assert "head.blocks.0.norm.running_var" in relative_of(moved.buffers)
    others = save_image_classifier(tmp_path / "others", base, classes=("cat", "dog"), part="stages.2.")
    changes = compare_weights(before, others)
    assert relative_of(changes.groups)["head"] is None
    assert relative_of(changes.groups)["late"] == pytest.approx(0.1, rel=1e-4)
    assert not any(row.name.startswith("head.") for row in changes.buffers)


@pytest.mark.parametrize("head", [False, True])
def test_an_image_classifier_is_compared_with_its_backbone_with_or_without_a_head(tmp_path, head):
    base = save_backbone(tmp_path / "base", head=head)
    changes = compare_weights(base, save_image_classifier(tmp_path / "after", base, part="embedder."))
    assert changes.groups[0].relative > 0
    assert [row.relative for row in changes.groups[1:]] == [0, None]
    name = "backbone.embedder.embedder.normalization.running_mean"
    assert relative_of(changes.buffers)[name] == 0


def test_stages_that_were_cut_off_leave_the_others_comparable(tmp_path):
    base = save_backbone(tmp_path / "base")
    changes = compare_weights(base, save_image_classifier(tmp_path / "after", base, keep_stages=2))
    assert relative_of(changes.groups) == {"early": 0, "late": 0, "head": None}


def test_a_norm_after_stages_that_were_cut_off_is_new(tmp_path):
    sizes = {"embed_dim": 4, "depths": [1, 1, 1], "num_heads": [2, 2, 2], "window_size": 2, "patch_size": 2}
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model("swin", image_size=16, **sizes)).save_pretrained(tmp_path / "base")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "base")
    changes = compare_weights(
        tmp_path / "base", save_image_classifier(tmp_path / "after", tmp_path / "base", keep_stages=2)
    )
    found = relative_of(changes.tensors)
    assert (found["backbone.layernorm.weight"], found["backbone.layernorm.bias"]) == (None, None)
    assert relative_of(changes.groups) == {"early": 0, "late": 0, "head": None}


def test_a_first_convolution_for_other_channels_is_new(tmp_path):
    base = save_backbone(tmp_path / "base")
    changes = compare_weights(base, save_image_classifier(tmp_path / "after", base, channels=1))
    found = relative_of(changes.tensors)
    assert [name for name, value in found.items() if value is None and name.startswith("backbone.")] == [
        "backbone.embedder.embedder.convolution.weight"
    ]


def test_an_embedding_of_another_vocabulary_is_new(tmp_path):
    before = save_bert(tmp_path / "before")
    model = BertModel.from_pretrained(before)
    model.resize_token_embeddings(model.config.vocab_size + 5)
    model.save_pretrained(tmp_path / "after")
    changes = compare_weights(before, tmp_path / "after")
    found = relative_of(changes.tensors)
    assert [name for name, value in found.items() if value is None] == ["embeddings.word_embeddings.weight"]
    assert changes.groups[0].relative == 0


def test_models_of_different_architectures_are_refused(tmp_path):
    bert, gpt2 = save_bert(tmp_path / "bert"), save_gpt2(tmp_path / "gpt2")
    with pytest.raises(ArtifactError, match=f"bert is a 'bert' model, .*gpt2 a 'gpt2': their weights cannot .*{SAME}"):
        compare_weights(bert, gpt2)
    resnet, vit = save_backbone(tmp_path / "resnet"), save_backbone(tmp_path / "vit", "vit")
    classifier = save_image_classifier(tmp_path / "classifier", resnet)
    with pytest.raises(ArtifactError, match="vit is a 'vit' model, .*classifier a 'resnet'"):
        compare_weights(vit, classifier)


def test_models_of_different_depths_are_refused(tmp_path):
    deep, flat = save_bert(tmp_path / "deep"), save_bert(tmp_path / "flat", num_hidden_layers=2)
    with pytest.raises(ArtifactError, match=f"deep has 3 layers, .*flat 2: their weights cannot be compared; {SAME}"):
        compare_weights(deep, flat)
    small = save_backbone(tmp_path / "small", **{**RESNET, "hidden_sizes": [4, 6], "depths": [1, 1]})
    with pytest.raises(ArtifactError, match=r"small lacks 'encoder.stages.2.+' of .*large: their weights"):
        compare_weights(small, save_backbone(tmp_path / "large"))


def test_models_of_different_widths_are_refused(tmp_path):
    wide = save_bert(tmp_path / "wide", intermediate_size=24)
    words = r"'encoder.layer.0.intermediate.dense.weight' has the shape \(20, 16\) in .*narrow and \(24, 16\) in .*wide"
    with pytest.raises(ArtifactError, match=f"{words}: models of different sizes cannot be compared; {SAME}"):
        compare_weights(save_bert(tmp_path / "narrow"), wide)
    small = save_backbone(tmp_path / "small", embedding_size=5)
    with pytest.raises(
        ArtifactError, match=r"convolution.weight' has the shape \(5, 3, 7, 7\) in .* and \(4, 3, 7, 7\)"
    ):
        compare_weights(small, save_backbone(tmp_path / "large"))


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="there is no folder"):
        compare_weights(tmp_path / "none", tmp_path / "none")


def test_models_of_the_architecture_itself_are_loaded_by_their_own_class(tmp_path):
    base = save_backbone(tmp_path / "base", head=True)
    after = AutoModelForImageClassification.from_pretrained(base)
    changes = compare_weights(base, save_moved(after, tmp_path / "after", "classifier"))
    assert changes.groups[-1].relative == pytest.approx(0.1, rel=1e-4)
