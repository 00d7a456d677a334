"""First-layer filters and activations, against the modules' own weights and outputs."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from tests.support.tiny_backbones import BACKBONES, size_of, tiny_backbone, tiny_classifier, tiny_images
from ulmfit_pipe.models.images.layer_activations import default_layers, first_filters, layer_activations

EVERY_KIND = sorted(BACKBONES)
STEMS = {
    "resnet": "backbone.embedder.embedder.convolution.weight",
    "vit": "backbone.embeddings.patch_embeddings.projection.weight",
    "convnext": "backbone.embeddings.patch_embeddings.weight",
}


@pytest.fixture
def bert():
    return BertModel(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=6)
    )


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_first_filters_read_the_image_and_the_stages_give_maps(kind):
    model = tiny_classifier(kind)
    name, filters = first_filters(model)
    assert STEMS.get(kind, name) == name
    assert filters.ndim == 4 and filters.shape[1] == 3
    assert torch.equal(filters, model.state_dict()[name])
    layers = default_layers(model)
    maps = layer_activations(model, tiny_images(kind), layers)
    assert list(maps) == layers
    size = size_of(kind)
    for found in maps.values():
        assert found.ndim == 4 and found.shape[0] == 2
        assert found.shape[2] == found.shape[3] <= size


def test_maps_are_what_the_layers_give_with_images_in_their_order():
    model, images = tiny_classifier("resnet"), tiny_images("resnet")
    name = "backbone.embedder.embedder.convolution"
    found = layer_activations(model, images, [name, "backbone.encoder.stages.0"])
    torch.testing.assert_close(found[name], model.get_submodule(name)(images))
    stages = model.backbone.encoder.stages
    torch.testing.assert_close(
        stages[1](found["backbone.encoder.stages.0"]),
        layer_activations(model, images, ["backbone.encoder.stages.1"])["backbone.encoder.stages.1"],
    )


def test_tokens_are_laid_out_where_they_lie_in_the_image():
    model = tiny_classifier("vit")
    images = tiny_images("vit")
    name = "backbone.embeddings.patch_embeddings"
    found = layer_activations(model, images, [name])[name]  # before the class token is added
    torch.testing.assert_close(found, model.get_submodule(name).projection(images))  # (batch, channels, 4, 4)
    last = layer_activations(model, images, ["backbone"])["backbone"]
    tokens = model.backbone(pixel_values=images).last_hidden_state  # (batch, 1 + 16, channels)
    torch.testing.assert_close(last[1, :, 2, 3], tokens[1, 1 + 2 * 4 + 3])


def test_tokens_of_an_oblong_image_keep_its_proportions():
    model = tiny_backbone("vit", image_size=[16, 40])
    found = layer_activations(model, torch.randn(2, 3, 16, 40), default_layers(model))
    assert {tuple(each.shape[2:]) for each in found.values()} == {(2, 5)}


def test_maps_with_their_channels_last_are_turned():
    model = tiny_classifier("resnet")
    model.config.channels_last = True
    images = tiny_images("resnet")
    (found,) = layer_activations(model, images, ["backbone.encoder.stages.0"]).values()
    model.config.channels_last = False
    (plain,) = layer_activations(model, images, ["backbone.encoder.stages.0"]).values()
    torch.testing.assert_close(found, plain.permute(0, 3, 1, 2))


def test_a_grey_model_has_filters_of_one_channel():
    _, filters = first_filters(tiny_backbone("resnet", num_channels=1))
    assert filters.shape[1] == 1


def test_the_model_is_left_as_it_was():
    model = tiny_classifier("resnet").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer_activations(model, tiny_images("resnet"), ["backbone"])
    assert model.training and model.head.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_go_also_where_the_model_cannot_run():
    model = tiny_classifier("resnet")
    with pytest.raises(ValueError, match="pixel values match"):
        layer_activations(model, torch.zeros(2, 5, 32, 32), ["backbone"])
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("backbone.encoder.stage.0", "backbone.encoder.stages.0, "),
        ("encoder.stages.1", "backbone.encoder.stages.1, "),
        ("", "backbone, backbone.embedder, "),
    ],
)
def test_an_unknown_layer_is_refused_with_the_nearest_real_names(name, near):
    words = f"UlmfitForImageClassification has no layer '{name}'; names near it: {near}"
    with pytest.raises(ValueError, match=words):
        layer_activations(tiny_classifier("resnet"), tiny_images("resnet"), [name])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "backbone.encoder.stages",
            r"\(a ModuleList\) has no output of its own in a forward pass; take one that gives a",
        ),
        ("head", r"outputs \(2, 3\), which is not the shape of a map; take .* such as 'backbone.encoder.stages.2'"),
    ],
)
def test_layers_that_give_no_map_are_refused(name, told):
    with pytest.raises(ValueError, match=f"layer '{name}' {told}"):
        layer_activations(tiny_classifier("resnet"), tiny_images("resnet"), [name])


def test_tokens_that_fill_no_grid_are_refused():
    class Odd(nn.Module):
        def forward(self, hidden):
            return hidden[:, :7]

    model = tiny_backbone("vit")
    model.embeddings.dropout = Odd()
    with pytest.raises(ValueError, match="layer 'embeddings.dropout' gives 7 tokens, which cannot be laid out over an"):
        layer_activations(model, tiny_images("vit"), ["embeddings.dropout"])


def test_a_text_model_has_no_filters_no_stages_and_no_maps(bert):
    words = r"BertModel \(bert\) reads 'input_ids', not images \('pixel_values'\); give an image model"
    with pytest.raises(ValueError, match=words):
        first_filters(bert)
    with pytest.raises(ValueError, match=words):
        default_layers(bert)
    with pytest.raises(ValueError, match=words):
        layer_activations(bert, torch.zeros(2, 3, 8, 8), ["encoder"])


def test_a_model_whose_convolutions_read_no_image_has_no_filters():
    model = tiny_backbone("resnet")
    model.config.num_channels = 5
    with pytest.raises(ValueError, match="ResNetModel has no convolution that reads an image of 5 channels"):
        first_filters(model)
