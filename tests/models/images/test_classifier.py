import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoModelForImageClassification

from tests.support.tiny_backbones import BACKBONES, tiny_backbone, tiny_classifier, tiny_images
from ulmfit_pipe.models.images.classifier import (
    ImagePooling,
    UlmfitForImageClassification,
    UlmfitImageConfig,
    build_image_classifier,
    head_dropouts,
    register_image_classifier,
)

register_image_classifier()


def saved_again(model, folder, **given):
    model.save_pretrained(folder)
    return AutoModelForImageClassification.from_pretrained(folder, **given).eval()


@pytest.mark.parametrize("kind", sorted(BACKBONES))
def test_every_backbone_keeps_its_weights_under_the_head_and_through_a_save(kind, tmp_path):
    backbone = tiny_backbone(kind)
    images = tiny_images(kind)
    with torch.no_grad():
        expected = backbone(pixel_values=images).last_hidden_state
        model = tiny_classifier(kind)
        assert torch.equal(model.backbone(pixel_values=images).last_hidden_state, expected)
        assert torch.equal(saved_again(model, tmp_path)(images).logits, model(images).logits)


@pytest.mark.parametrize("kind", sorted(BACKBONES))
def test_every_parameter_gets_a_gradient(kind):
    model = tiny_classifier(kind)
    model(tiny_images(kind)).logits.sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def fastai_head(model, hidden):
    """fastai 2.8's create_head in evaluation mode, written down from its source."""
    pooled = torch.cat([F.adaptive_max_pool2d(hidden, 1), F.adaptive_avg_pool2d(hidden, 1)], 1).flatten(1)
    first, last = model.head.blocks
    normed = F.batch_norm(
        pooled, first.norm.running_mean, first.norm.running_var, first.norm.weight, first.norm.bias, eps=1e-5
    )
    inner = F.relu(F.linear(normed, first.linear.weight))
    normed = F.batch_norm(
        inner, last.norm.running_mean, last.norm.running_var, last.norm.weight, last.norm.bias, eps=1e-5
    )
    return F.linear(normed, last.linear.weight)


def test_the_head_computes_what_fastais_head_computes():
    model = tiny_classifier("resnet")
    model.train()(tiny_images("resnet", 5))  # statistics of their own
    model.eval()
    images = tiny_images("resnet")
    hidden = model.backbone(images).last_hidden_state
    torch.testing.assert_close(model(images).logits, fastai_head(model, hidden))
    assert model.head.blocks[0].linear.weight.shape == (7, 2 * 16)
    assert [block.dropout.p for block in model.head.blocks] == [0.25, 0.5]
    assert [block.linear.bias for block in model.head.blocks] == [None, None]


def test_pooling_takes_max_and_average_over_places_only():
    hidden = torch.tensor([[[1.0, 10.0], [2.0, 0.0], [4.0, -2.0]]])  # one image, 3 tokens, 2 channels
    both = ImagePooling(concat=True, prefix_tokens=1, channels_last=False)
    assert both(hidden).tolist() == [[1, 10, 4, 0, 3, -1]]  # the class token, max and mean of the other two
    average = ImagePooling(concat=False, prefix_tokens=0, channels_last=False)
    torch.testing.assert_close(average(hidden), hidden.mean(1))


def test_pooling_takes_maps_with_their_channels_first_or_last():
    places = torch.randn(2, 3, 4, 5)  # batch, channels, height, width
    first = ImagePooling(concat=True, prefix_tokens=0, channels_last=False)(places)
    last = ImagePooling(concat=True, prefix_tokens=0, channels_last=True)(places.permute(0, 2, 3, 1))
    torch.testing.assert_close(first, last)
    torch.testing.assert_close(first, torch.cat([places.amax((2, 3)), places.mean((2, 3))], 1))


def test_the_class_token_stands_beside_max_and_average():
    model = tiny_classifier("vit")
    assert model.head.blocks[0].linear.in_features == 3 * 12
    assert tiny_classifier("vit", concat_pool=False).head.blocks[0].linear.in_features == 2 * 12


def test_the_head_has_the_layers_and_dropouts_asked_for():
    model = tiny_classifier("resnet", hidden_sizes=[9, 5], dropout=[0.1, 0.2, 0.3], final_norm=True)
    widths = [(block.linear.in_features, block.linear.out_features) for block in model.head.blocks]
    assert widths == [(32, 9), (9, 5), (5, 3)]
    assert [block.dropout.p for block in model.head.blocks] == [0.1, 0.2, 0.3]
    assert isinstance(model.head.final_norm, nn.BatchNorm1d)
    assert (model.head.final_norm.momentum, model.head.final_norm.bias.tolist()) == (0.01, [0, 0, 0])
    plain = tiny_classifier("resnet", hidden_sizes=[], dropout=0.4)
    assert [(block.linear.in_features, block.dropout.p) for block in plain.head.blocks] == [(32, 0.4)]
    assert isinstance(plain.head.final_norm, nn.Identity)


def test_one_dropout_is_the_last_layers_and_half_of_it_the_others():
    assert head_dropouts(0.5, num_layers=2) == [0.25, 0.5]
    assert head_dropouts(0.5, num_layers=1) == [0.5]
    assert head_dropouts([0.1, 0.2], num_layers=2) == [0.1, 0.2]


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("kaiming-normal", (2 / 32) ** 0.5),
        ("kaiming-uniform", (2 / 32) ** 0.5),
        ("xavier-normal", (2 / 432) ** 0.5),
        ("xavier-uniform", (2 / 432) ** 0.5),
    ],
)
def test_the_linear_layers_start_as_asked_and_the_norms_as_fastais(name, deviation):
    torch.manual_seed(0)
    model = tiny_classifier("resnet", hidden_sizes=[400], head_init=name)
    weight = model.head.blocks[0].linear.weight
    assert abs(float(weight.detach().std()) / deviation - 1) < 0.03
    norm = model.head.blocks[0].norm
    assert (norm.weight.unique().tolist(), norm.bias.unique().tolist()) == ([1.0], [pytest.approx(1e-3)])


class Linear(nn.Module):
    """A head that somebody wrote: average pooling and one layer that starts at a half."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 3)
        nn.init.constant_(self.layer.weight, 0.5)

    def forward(self, hidden):
        return self.layer(hidden.mean((2, 3)))


def test_a_custom_head_that_does_not_fit_is_refused_with_the_shape_it_gets():
    shapes = r"a last_hidden_state of shape \(2, 20, 1, 1\) for 2 images, .* logits of shape \(2, 3\), one per class"
    with pytest.raises(
        ValueError, match=shapes + r"; Linear fails on it \(mat1 and mat2 .*\): make its layers as wide"
    ):
        tiny_classifier("convnext", custom_head=Linear())
    with pytest.raises(ValueError, match=r"Linear gives \(2, 3\): make its layers as wide"):
        tiny_classifier("resnet", custom_head=Linear(), label_names=["ant", "bee"])
    head = Linear().train()
    assert tiny_classifier("resnet", custom_head=head).head is head


def test_a_custom_head_takes_the_place_of_pooling_and_head_and_is_needed_to_load(tmp_path):
    model = tiny_classifier("resnet", custom_head=Linear())
    assert model.head.layer.weight.unique().tolist() == [0.5]
    with torch.no_grad():
        model.head.layer.weight.mul_(3)
    images = tiny_images("resnet")
    expected = model.backbone(images).last_hidden_state.mean((2, 3)) @ model.head.layer.weight.T + model.head.layer.bias
    torch.testing.assert_close(model(images).logits, expected)
    assert torch.equal(saved_again(model, tmp_path, custom_head=Linear())(images).logits, model(images).logits)
    with pytest.raises(ValueError, match="has a head of its own, a Linear, which no configuration can build; give it"):
        UlmfitForImageClassification(model.config)


def test_labels_give_the_mean_cross_entropy():
    model = tiny_classifier("resnet")
    labels = torch.tensor([2, 0])
    output = model(tiny_images("resnet"), labels=labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))
    assert model(tiny_images("resnet")).loss is None


def test_a_training_batch_of_one_image_is_refused_and_one_for_evaluation_is_not():
    model = tiny_classifier("vit")
    assert model(tiny_images("vit", 1)).logits.shape == (1, 3)
    with pytest.raises(ValueError, match="batch norm in training needs at least 2 images in a batch, got 1"):
        model.train()(tiny_images("vit", 1))


def test_an_images_logits_do_not_depend_on_its_batch():
    model = tiny_classifier("resnet")
    images = tiny_images("resnet", 5)
    alone = torch.cat([model(image[None]).logits for image in images])
    torch.testing.assert_close(model(images).logits, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"head_hidden_sizes": [5, 4]}, r"inner widths \[5, 4\] has 3 linear layers, got 2 dropouts \[0.25, 0.5\]"),
        ({"head_dropouts": [0.1, 1.0]}, r"dropouts of the head must lie in \[0, 1\), got \[0.1, 1.0\]"),
        ({"head_hidden_sizes": [0]}, r"inner widths of the head must be 1 or more, got \[0\]"),
        ({"head_init": "zeros"}, "head_init must be one of kaiming-normal, .*, got 'zeros'"),
    ],
)
def test_numbers_that_make_no_head_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        UlmfitImageConfig(**settings)


def test_where_nothing_is_registered_a_loader_is_told_what_to_import(tmp_path):
    tiny_classifier("resnet").save_pretrained(tmp_path)
    assert '"import_ulmfit_pipe_stages_first.UlmfitImageConfig"' in (tmp_path / "config.json").read_text()


def test_a_backbone_that_was_already_under_a_head_can_get_another():
    first = tiny_classifier("convnext")  # its pooled norm was taken out
    second = build_image_classifier(first.backbone, label_names=["x", "y"], height=32, width=32).eval()
    images = tiny_images("convnext")
    assert second.config.unused_modules == ["layernorm"]
    assert torch.equal(
        second.backbone(images).last_hidden_state,
        first.backbone(images).last_hidden_state,
    )
