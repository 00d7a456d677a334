import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.modeling_outputs import BaseModelOutput

from tests.support.tiny_backbones import BACKBONES, tiny_backbone, tiny_images
from ulmfit_pipe.models.images.backbones import (
    _with_channels,
    adapt_channels,
    build_backbone,
    channels_of,
    check_takes_images,
    drop_unused,
    dropped_from,
    inspect_backbone,
    rebuild_backbone,
    small_resnet_config,
)

PREFIX_TOKENS = {"vit": 1, "deit": 2, "beit": 1, "dinov2": 1, "dinov2_with_registers": 5, "clip_vision_model": 1}
UNUSED = {
    "resnet": (),
    "convnext": ("layernorm",),
    "vit": ("pooler",),
    "beit": ("pooler",),
    "dinov2": ("embeddings.mask_token",),
    "clip_vision_model": ("post_layernorm",),
    "siglip_vision_model": ("head",),
}


def facts_of(backbone, size=32):
    return inspect_backbone(backbone, channels=channels_of(backbone.config), height=size, width=size)


@pytest.mark.parametrize("kind", ["resnet", "swin", "convnext", *PREFIX_TOKENS])
def test_the_features_and_the_tokens_before_the_images_are_counted(kind):
    backbone = tiny_backbone(kind)
    facts = facts_of(backbone)
    hidden = backbone(tiny_images(kind)).last_hidden_state
    assert facts.feature_size == (hidden.shape[1] if hidden.ndim == 4 else hidden.shape[2])
    assert facts.prefix_tokens == PREFIX_TOKENS.get(kind, 0)
    assert not facts.channels_last


@pytest.mark.parametrize("kind", sorted(UNUSED))
def test_what_the_features_do_not_depend_on_is_found_and_can_be_taken_out(kind):
    backbone = tiny_backbone(kind)
    expected = backbone(tiny_images(kind)).last_hidden_state
    facts = facts_of(backbone)
    assert facts.unused == UNUSED[kind]
    drop_unused(backbone, facts.unused)
    assert torch.equal(backbone(tiny_images(kind)).last_hidden_state, expected)
    assert dropped_from(backbone) == UNUSED[kind]
    backbone(tiny_images(kind)).last_hidden_state.sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_inspecting_changes_nothing():
    backbone = tiny_backbone("resnet").train()
    frozen = next(backbone.parameters())
    frozen.requires_grad_(False)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    facts_of(backbone)
    assert backbone.training
    assert not frozen.requires_grad
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_what_levit_remembers_of_an_earlier_pass_does_not_hide_its_weights():
    backbone = tiny_backbone("levit")
    with torch.no_grad():
        backbone(tiny_images("levit"))  # it keeps its position biases, cut off from their weights
    assert facts_of(backbone, size=64).unused == ()


class OddModel(nn.Module):
    """What inspect_backbone sees of a model, with an output of any shape."""

    main_input_name = "pixel_values"
    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, shape, *, output_fmt=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.timm_model = nn.Identity()
        self.timm_model.output_fmt = output_fmt

    def forward(self, pixel_values):
        return BaseModelOutput(last_hidden_state=None if self.weight.ndim == 1 else self.weight * 1)


class DrawingModel(OddModel):
    def forward(self, pixel_values):
        return BaseModelOutput(last_hidden_state=self.weight * torch.rand(()))


def test_a_model_that_draws_what_it_sees_is_refused():
    with pytest.raises(ValueError, match="DrawingModel outputs something else each time it reads the same image, in"):
        inspect_backbone(DrawingModel((2, 4, 5, 7)), channels=3, height=8, width=8)


def test_a_model_that_puts_the_images_of_a_batch_together_is_refused():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    backbone = build_backbone(AutoConfig.for_model("pixtral", image_size=16, patch_size=8, **sizes))
    with pytest.raises(ValueError, match="PixtralVisionModel outputs 1 rows for 2 images: .*give an image model"):
        facts_of(backbone, size=16)


def test_a_masked_autoencoder_sees_the_whole_image():
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    backbone = build_backbone(AutoConfig.for_model("vit_mae", image_size=32, patch_size=8, **sizes))
    facts = facts_of(backbone)
    assert (facts.prefix_tokens, facts.feature_size) == (1, 12)
    assert backbone(tiny_images("vit")).last_hidden_state.shape == (2, 1 + 16, 12)


def test_a_map_with_its_channels_last_is_told_as_timm_tells_it():
    facts = inspect_backbone(OddModel((2, 4, 5, 7), output_fmt="NHWC"), channels=3, height=8, width=8)
    assert (facts.feature_size, facts.channels_last) == (7, True)


@pytest.mark.parametrize(("shape", "words"), [((2, 6), r"it gives one of shape \(2, 6\)"), ((3,), "it gives none")])
def test_a_model_without_a_map_or_tokens_is_refused(shape, words):
    with pytest.raises(ValueError, match=f"must give a last_hidden_state of 3 or 4 axes to pool over, {words}"):
        inspect_backbone(OddModel(shape), channels=3, height=8, width=8)


def test_a_model_that_reads_text_is_refused():
    config = AutoConfig.for_model(
        "bert", hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=9, vocab_size=11
    )
    with pytest.raises(ValueError, match=r"BertModel \(bert\) reads 'input_ids', not images.*such as a resnet"):
        build_backbone(config)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_of_a_model_of_texts_and_images_the_part_that_sees_can_be_saved(kind, tmp_path):
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 9}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    both = AutoModel.from_config(AutoConfig.for_model(kind, text_config=sizes, vision_config=vision))
    words = (
        r"reads 'input_ids', not images.*; or the part of this one that sees: .*\(name\).vision_model.save_pretrained"
    )
    with pytest.raises(ValueError, match=words):
        check_takes_images(both)
    both.vision_model.save_pretrained(tmp_path)
    assert facts_of(AutoModel.from_pretrained(tmp_path)).feature_size == 8


def test_images_of_a_size_that_the_model_cannot_read_are_refused_with_its_own_reason():
    with pytest.raises(
        ValueError, match="ViTModel cannot read images of 3 x 40 x 40 .*: Input image size.*set the ima"
    ):
        inspect_backbone(tiny_backbone("vit"), channels=3, height=40, width=40)


@pytest.mark.parametrize(("kind", "kept"), [("resnet", 2), ("convnext", -1), ("vit", 2), ("swin", 2), ("beit", -1)])
def test_a_cut_backbone_has_the_first_stages_with_their_weights(kind, kept):
    whole = tiny_backbone(kind)
    cut, fresh = rebuild_backbone(whole, stages=kept)
    weights = whole.state_dict()
    taken = {name: value for name, value in cut.state_dict().items() if name not in fresh}
    assert all(torch.equal(value, weights[name]) for name, value in taken.items())
    assert len(taken) < len(weights)
    # a norm made for the last stage's channels cannot serve an earlier one
    assert fresh == {
        "convnext": ["layernorm.weight", "layernorm.bias"],
        "swin": ["layernorm.weight", "layernorm.bias"],
    }.get(kind, [])
    shape = cut.eval()(tiny_images(kind)).last_hidden_state.shape
    assert (
        shape
        == {
            "resnet": (2, 12, 4, 4),
            "convnext": (2, 16, 2, 2),
            "vit": (2, 17, 12),
            "swin": (2, 16, 16),
            "beit": (2, 17, 12),
        }[kind]
    )


def test_the_cut_stages_give_what_they_gave_inside_the_whole():
    whole = tiny_backbone("resnet")
    cut, _ = rebuild_backbone(whole, stages=2)
    images = tiny_images("resnet")
    expected = whole(images, output_hidden_states=True).hidden_states[2]  # the stem's, stage 0's, stage 1's
    assert torch.equal(cut.eval()(images).last_hidden_state, expected)


@pytest.mark.parametrize("kept", [0, 1, 4, -2, -5])
def test_a_cut_must_leave_two_stages_and_no_more_than_there_are(kept):
    with pytest.raises(ValueError, match=rf"must leave 2 to 3 of the 3 stages of this 'resnet' model, got {kept}"):
        rebuild_backbone(tiny_backbone("resnet"), stages=kept)


def test_an_architecture_that_names_no_depth_cannot_be_cut():
    with pytest.raises(
        ValueError, match="stages cannot be removed from a 'mobilenet_v2' model.*neither depths nor num_hid"
    ):
        rebuild_backbone(tiny_backbone("mobilenet_v2"), stages=3)


def test_a_cut_that_the_configuration_refuses_is_refused_in_words():
    sizes = {"embed_dim": 8, "image_size": [64, 64], "depths": [1, 1, 1], "num_heads": [1, 2, 2]}
    backbone = build_backbone(AutoConfig.for_model("hiera", num_query_pool=2, **sizes))
    words = (
        r"this 'hiera' model cannot be reduced to 2 of its 3 stages: .*num_query_pool \(2\) must be less.*; keep more"
    )
    with pytest.raises(ValueError, match=words):
        rebuild_backbone(backbone, stages=2)


def test_weights_of_another_shape_or_none_cannot_be_taken_over():
    backbone = tiny_backbone("resnet")
    complete = backbone.state_dict

    def altered(name, value):
        state = dict(complete())
        state.pop(name)
        if value is not None:
            state[name] = value
        return lambda: state

    name = "encoder.stages.0.layers.0.layer.0.convolution.weight"
    backbone.state_dict = altered(name, None)
    with pytest.raises(ValueError, match=f"the pretrained weights lack '{name}', so the backbone cannot end there"):
        rebuild_backbone(backbone, stages=2)
    backbone.state_dict = altered(name, torch.zeros(9, 8, 3, 3))
    with pytest.raises(ValueError, match=r"has the shape \(9, 8, 3, 3\), the shortened backbone needs \(8, 8, 3, 3\)"):
        rebuild_backbone(backbone, stages=2)


def test_a_grey_image_gives_what_its_three_equal_channels_gave():
    backbone = tiny_backbone("resnet")
    grey, fresh = rebuild_backbone(backbone, channels=1)
    images = tiny_images("resnet")[:, :1]
    assert fresh == []
    assert channels_of(grey.config) == 1
    expected = backbone(images.expand(-1, 3, -1, -1)).last_hidden_state
    torch.testing.assert_close(grey.eval()(images).last_hidden_state, expected)


def test_other_channels_are_made_as_fastai_makes_them():
    weight = torch.arange(2 * 3 * 1 * 2, dtype=torch.float32).reshape(2, 3, 1, 2)
    assert adapt_channels(weight, 1).tolist() == [[[[6.0, 9.0]]], [[[24.0, 27.0]]]]
    assert adapt_channels(weight, 2).tolist() == [
        [[[0.0, 1.5]], [[3.0, 4.5]]],
        [[[9.0, 10.5]], [[12.0, 13.5]]],
    ]
    four = adapt_channels(weight, 4)
    assert torch.equal(four[:, :3], weight)
    assert four[:, 3].abs().sum() == 0
    with pytest.raises(ValueError, match="reads 1 channels, only one for 3 can be turned into one for 3"):
        adapt_channels(weight[:, :1], 3)


def test_channels_that_the_configuration_does_not_name_cannot_be_changed():
    backbone = tiny_backbone("resnet")
    values = {name: value for name, value in backbone.config.to_dict().items() if name != "num_channels"}
    backbone.config.to_dict = lambda: values
    with pytest.raises(ValueError, match=r"of a 'resnet' model cannot be changed.*no num_channels; leave .* \(3\)"):
        _with_channels(backbone.config, 1)


def test_the_channels_of_a_timm_model_stand_in_its_arguments():
    class Config:
        model_type = "timm_wrapper"
        model_args = {"in_chans": 5}

    assert channels_of(Config()) == 5
    Config.model_args = None
    assert channels_of(Config()) == 3


def test_a_small_resnet_has_the_stages_asked_for():
    config = small_resnet_config(channels=1, embedding_size=4, hidden_sizes=[4, 6], depths=[1, 2])
    backbone = build_backbone(config)
    assert backbone.eval()(torch.zeros(1, 1, 32, 32)).last_hidden_state.shape == (1, 6, 4, 4)
    for sizes, depths in (([4], [1]), ([4, 6], [1])):
        with pytest.raises(ValueError, match="one depth for each of at least 2 stages"):
            small_resnet_config(embedding_size=4, hidden_sizes=sizes, depths=depths)


def test_every_backbone_of_the_tests_is_small():
    assert all(tiny_backbone(kind).num_parameters() < 700_000 for kind in BACKBONES)
