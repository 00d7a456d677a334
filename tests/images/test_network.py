import json
import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    BitImageProcessorPil,
    ConvNextImageProcessorPil,
    ViTImageProcessorPil,
)

from tests.support.tiny_images import QUICK, SIDE, save_backbone
from ulmfit_pipe.data.images.batches import ImagePixels
from ulmfit_pipe.images import network as image_network
from ulmfit_pipe.images.network import build_image_network, plain_processor, with_image_size
from ulmfit_pipe.models.layer_groups.image_groups import image_group_specs
from ulmfit_pipe.models.layer_groups.spec import LayerGroupSpec
from ulmfit_pipe.settings.images import ImageClassifierSettings, ImageHeadSettings
from ulmfit_pipe.stages.artifacts import ArtifactError

NAMES = ["dark", "light"]


def built(model, names=NAMES, *, settings=None, **given):
    said = []
    head = given.pop("head", ImageHeadSettings(hidden_sizes=[6]))
    groups, custom = given.pop("layer_groups_given", None), given.pop("custom_head", None)
    settings = settings or ImageClassifierSettings(head=head, **given)
    network, pixels = build_image_network(
        None if model is None else str(model), names, settings, layer_groups=groups, custom_head=custom, say=said.append
    )
    return network.eval(), pixels, said


def images(count=2, channels=3, side=SIDE):
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", ["resnet", "vit"])
@pytest.mark.parametrize("head", [False, True], ids=["base model", "with its own head"])
def test_the_backbones_weights_are_those_of_the_folder(kind, head, tmp_path):
    folder = save_backbone(tmp_path / "m", kind, head=head)
    network, pixels, said = built(folder)
    expected = AutoModel.from_pretrained(folder).eval()(images()).last_hidden_state
    assert torch.equal(network.backbone(images()).last_hidden_state, expected)
    assert (pixels.height, pixels.width, pixels.channels, said) == (SIDE, SIDE, 3, [])
    assert network(images()).logits.shape == (2, 2)


def test_without_pretrained_the_architecture_is_taken_with_random_weights(tmp_path):
    folder = save_backbone(tmp_path / "m")
    own, twin = built(folder)[0].state_dict(), built(folder, pretrained=False)[0].state_dict()
    assert {name: value.shape for name, value in own.items()} == {name: value.shape for name, value in twin.items()}
    name = "backbone.encoder.stages.1.layers.0.layer.0.convolution.weight"
    assert not torch.equal(own[name], twin[name])


def test_without_a_model_a_small_resnet_is_built_for_the_channels_asked_for():
    network, pixels, _ = built(None, settings=QUICK)
    assert network.config.backbone_config.hidden_sizes == [4, 6]
    assert tuple(pixels.processor.image_mean) == (0.5, 0.5, 0.5)
    grey, pixels, _ = built(None, channels=1, image_size=20)
    assert grey(images(channels=1, side=20)).logits.shape == (2, 2)
    assert (pixels.height, pixels.channels) == (20, 1)


def test_a_colour_backbone_reads_grey_images_when_asked(tmp_path):
    folder = save_backbone(tmp_path / "m")
    network, pixels, _ = built(folder, channels=1)
    grey = images(channels=1)
    expected = built(folder)[0].backbone(grey.expand(-1, 3, -1, -1)).last_hidden_state
    torch.testing.assert_close(network.backbone(grey).last_hidden_state, expected)
    assert pixels.grey


def test_stages_are_cut_off_when_asked_and_what_is_new_is_said(tmp_path):
    network, _, said = built(save_backbone(tmp_path / "m"), keep_stages=-1)
    assert network.config.backbone_config.depths == [1, 1]
    assert said == []
    with pytest.raises(ValueError, match="keep_stages must leave 2 to 3 of the 3 stages of this 'resnet' model, got 9"):
        built(tmp_path / "m", keep_stages=9)


def test_the_layer_groups_are_remembered_in_the_configuration(tmp_path):
    folder = save_backbone(tmp_path / "m")
    assert built(folder, layer_groups="stages")[0].config.layer_groups == "stages"
    given = [LayerGroupSpec("body", ("backbone",)), LayerGroupSpec("head", ("head",))]
    network = built(folder, layer_groups_given=given)[0]
    assert network.config.layer_groups == [["body", ["backbone"]], ["head", ["head"]]]


def test_a_masked_autoencoder_gives_an_image_the_same_scores_each_time(tmp_path):
    network, _, _ = built(save_backbone(tmp_path / "m", "vit_mae"))
    assert network.config.backbone_config.mask_ratio == 0
    expected = network(images()).logits
    torch.testing.assert_close(network(images()).logits, expected)
    network.config.backbone_config.mask_ratio = 0.75  # as in a folder written before
    network.save_pretrained(tmp_path / "ours")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(again(images()).logits, expected)


# ---- resuming from a classifier of our own


@pytest.fixture
def ours(tmp_path):
    """Return a function that saves a classifier as the stage does."""

    def save(name="ours", **given):
        network, pixels, _ = built(save_backbone(tmp_path / "base", "vit"), **given)
        network.save_pretrained(tmp_path / name)
        pixels.processor.save_pretrained(tmp_path / name)
        return tmp_path / name, network

    return save


def test_a_classifier_of_the_same_classes_goes_on_with_its_head(ours):
    folder, saved = ours()
    network, _, said = built(folder)
    assert torch.equal(network(images()).logits, saved(images()).logits)
    assert said == [f"resuming from the classifier {folder}, with its head"]
    assert built(folder, layer_groups="stages")[0].config.layer_groups == "stages"


def test_a_classifier_of_other_classes_gives_its_backbone(ours):
    folder, saved = ours()
    network, _, said = built(folder, ["x", "y", "z"])
    expected = saved.backbone(images()).last_hidden_state
    assert torch.equal(network.backbone(images()).last_hidden_state, expected)
    assert network(images()).logits.shape == (2, 3)
    assert said == [f"{folder} is a classifier of dark, light: its backbone is taken, the head is new"]
    assert network.config.unused_modules == ["pooler"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"head": ImageHeadSettings(hidden_sizes=[9])},
            r"whose head_hidden_sizes is \[6\], not \[9\]; set the head as it",
        ),
        (
            {"head": ImageHeadSettings(hidden_sizes=[6], dropouts=[0.2])},
            r"head_dropouts is \[0.25, 0.5\], not \[0.1, 0.2",
        ),
        ({"head": ImageHeadSettings(hidden_sizes=[6], concat_pool=False)}, "whose concat_pool is True, not False"),
        ({"keep_stages": 2}, "to resume from as it is; keep_stages and channels cannot change it"),
        ({"channels": 1}, "to resume from as it is; keep_stages and channels cannot change it"),
    ],
)
def test_settings_that_would_change_a_classifier_to_go_on_from_are_refused(ours, given, words):
    with pytest.raises(ValueError, match=words):
        built(ours()[0], **given)


def test_stages_can_be_cut_off_a_classifiers_backbone_where_the_head_is_new(ours):
    network = built(ours()[0], ["x", "y", "z"], channels=1)[0]
    assert network(images(channels=1)).logits.shape == (2, 3)


class Average(nn.Module):
    """A head that somebody wrote."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, hidden):
        return self.layer(hidden.mean(1))


def test_the_backbone_under_a_custom_head_can_be_taken(ours):
    folder, saved = ours("custom", custom_head=Average())
    assert saved.config.custom_head_class == "Average"
    network, _, said = built(folder)
    assert torch.equal(network.backbone(images()).last_hidden_state, saved.backbone(images()).last_hidden_state)
    assert "its backbone is taken, the head is new" in said[0]


# ---- what cannot be used


def test_a_model_that_reads_text_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2})
    )
    with pytest.raises(ArtifactError, match=r"BertModel \(bert\) reads 'input_ids', not images"):
        built(tmp_path, image_size=SIDE, pretrained=False)


def test_weights_that_are_not_whole_are_refused_unless_nothing_needs_them(tmp_path):
    folder = save_backbone(tmp_path / "m", "vit")
    weights = load_file(folder / "model.safetensors")

    def without(part):
        kept = {name: value for name, value in weights.items() if part not in name}
        assert len(kept) < len(weights)
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})

    without("pooler")
    built(folder)  # the pooler is left out anyway
    without(".1.intermediate")
    with pytest.raises(
        ArtifactError, match=r"lack layers.1.mlp.fc1.bias \(2 in all\), so they are not a complete ViTModel"
    ):
        built(folder)


def test_a_classifier_of_ours_whose_backbone_is_not_whole_is_refused(ours):
    folder, _ = ours()
    weights = load_file(folder / "model.safetensors")
    weights.pop("backbone.layernorm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ArtifactError, match=r"lack backbone.layernorm.weight \(1 in all\), so they are not a whole backbo"
    ):
        built(folder, ["x", "y", "z"])


def test_a_model_without_a_processor_needs_an_image_size(tmp_path):
    folder = save_backbone(tmp_path / "m", processor=False)
    with pytest.raises(ArtifactError, match="comes without an image processor .*or set image_size for a plain one"):
        built(folder)
    _, pixels, _ = built(folder, image_size=20)
    assert (pixels.height, pixels.width) == (20, 20)


def test_images_of_a_size_that_the_backbone_cannot_read_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ViTModel cannot read images of 3 x 24 x 24"):
        built(save_backbone(tmp_path / "m", "vit"), image_size=24)


def test_a_model_of_timm_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(image_network.importlib.util, "find_spec", lambda _name: None)
    config = {"model_type": "timm_wrapper", "architecture": "resnet18", "label_names": ["a"], "num_classes": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="is a model of timm, which is not installed: pip install timm"):
        built(tmp_path)

    def refuse(_name, *, images):
        raise ArtifactError("cannot be loaded") from ImportError("TimmWrapperConfig requires the timm library")

    monkeypatch.setattr(image_network, "load_config", refuse)
    with pytest.raises(ArtifactError, match="is a model of timm, which is not installed: pip install timm"):
        built(tmp_path)


@pytest.mark.parametrize(("architecture", "prefix_tokens"), [("test_resnet", 0), ("test_vit", 1), ("test_mambaout", 0)])
def test_a_model_of_timm_is_a_backbone_like_any_other(architecture, prefix_tokens, tmp_path):
    pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    numbers = {"input_size": [3, 160, 160], "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.4] * 3}
    config = AutoConfig.for_model(
        "timm_wrapper", architecture=architecture, num_labels=0, label_names=[], pretrained_cfg=numbers
    )
    base = AutoModel.from_config(config).eval()
    base.save_pretrained(tmp_path / "base")
    network, pixels, _ = built(tmp_path / "base")
    assert (pixels.height, pixels.resample, network.config.prefix_tokens) == (160, 3, prefix_tokens)
    expected = base(pixel_values=images(side=160)).last_hidden_state
    assert torch.equal(network.backbone(images(side=160)).last_hidden_state, expected)
    assert network.config.channels_last == (architecture == "test_mambaout")
    assert [spec.name for spec in image_group_specs(network)] == ["early", "late", "head"]
    network.train()(images(side=160), labels=torch.tensor([0, 1])).loss.backward()
    assert not [name for name, parameter in network.named_parameters() if parameter.grad is None]
    assert built(tmp_path / "base", channels=1)[0](images(channels=1, side=160)).logits.shape == (2, 2)


def test_other_reasons_why_a_configuration_cannot_be_loaded_are_kept(tmp_path):
    with pytest.raises(ArtifactError, match=re.escape(f"{tmp_path} holds no model (no config.json)")):
        built(tmp_path)


# ---- processors


def test_the_numbers_of_a_timm_model_make_a_processor_of_pillow(tmp_path, monkeypatch):
    monkeypatch.setattr(image_network.importlib.util, "find_spec", lambda _name: object())

    class Config:
        pretrained_cfg = {
            "input_size": [3, 28, 28],
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
        }

    processor = image_network._timm_processor("timm/net", Config())
    assert (processor.size["shortest_edge"], processor.crop_size["height"], processor.resample) == (32, 28, 3)
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    Config.pretrained_cfg = None
    with pytest.raises(ArtifactError, match="timm/net has no pretrained_cfg in its configuration"):
        image_network._timm_processor("timm/net", Config())


@pytest.mark.parametrize(
    ("processor", "size", "crop"),
    [
        (ViTImageProcessorPil(size={"height": 8, "width": 8}), {"height": 20, "width": 20}, None),
        (ConvNextImageProcessorPil(size={"shortest_edge": 224}), {"shortest_edge": 20}, None),
        (
            BitImageProcessorPil(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}),
            {"shortest_edge": 23},
            {"height": 20, "width": 20},
        ),
        (
            ViTImageProcessorPil(
                size={"height": 256, "width": 256}, do_center_crop=True, crop_size={"height": 224, "width": 224}
            ),
            {"height": 23, "width": 23},
            {"height": 20, "width": 20},
        ),
    ],
    ids=["exact", "crop share", "edge and crop", "exact and crop"],
)
def test_another_image_size_keeps_the_share_that_is_cropped(processor, size, crop):
    changed = with_image_size(processor, 20)
    values = changed.to_dict()
    assert dict(values["size"]) == size
    assert values.get("crop_size") == crop if crop else True
    assert changed.image_mean == processor.image_mean


def test_a_processor_that_did_not_crop_crops_as_usual_at_a_smaller_size():
    processor = ConvNextImageProcessorPil(size={"shortest_edge": 384}, crop_pct=None)
    pixels = ImagePixels(with_image_size(processor, 20))
    assert (pixels.height, pixels.processor.crop_pct) == (20, 0.875)
    assert with_image_size(processor, 400).crop_pct is None


DINOV3 = {
    "image_processor_type": "DINOv3ViTImageProcessorFast",
    "size": {"height": SIDE, "width": SIDE},
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.4, 0.5, 0.6],
    "resample": 2,
    "do_center_crop": None,
}


def test_a_processor_that_needs_torchvision_is_made_by_pillow_of_the_same_numbers(tmp_path, monkeypatch):
    def needs_torchvision(_folder, **_settings):
        raise ImportError("DINOv3ViTImageProcessor requires the Torchvision library")

    monkeypatch.setattr(AutoImageProcessor, "from_pretrained", needs_torchvision)
    folder = save_backbone(tmp_path / "m", processor=False)
    (folder / "preprocessor_config.json").write_text(json.dumps(DINOV3))
    _, pixels, _ = built(folder)
    white = pixels.plain([Image.new("RGB", (30, 10), "white")])
    assert white.shape == (1, 3, SIDE, SIDE)
    torch.testing.assert_close(white[0, :, 0, 0], torch.tensor([0.9 / 0.4, 0.8 / 0.5, 0.7 / 0.6]))
    assert built(folder, image_size=20)[1].height == 20
    (folder / "preprocessor_config.json").write_text(json.dumps({**DINOV3, "size": {"longest_edge": SIDE}}))
    words = "a DINOv3ViTImageProcessorFast, needs a library that is not installed: pip install torchvision; or .*image_"
    with pytest.raises(ArtifactError, match=words):
        built(folder)


def test_the_plain_processor_takes_the_middle_square_to_minus_one_and_one():
    image = Image.new("RGB", (30, 10))
    image.paste("white", (10, 0, 20, 10))
    values = plain_processor(10)(images=[image], return_tensors="pt")["pixel_values"]
    assert values.shape == (1, 3, 10, 10)
    assert values.unique().tolist() == [1.0]
