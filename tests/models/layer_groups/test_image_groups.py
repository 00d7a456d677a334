import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification

from tests.support.tiny_backbones import BACKBONES, size_of, tiny_backbone, tiny_classifier, tiny_images
from ulmfit_pipe.models.images.backbones import build_backbone
from ulmfit_pipe.models.images.classifier import build_image_classifier
from ulmfit_pipe.models.layer_groups.group_specs import layer_group_specs
from ulmfit_pipe.models.layer_groups.image_groups import backbone_stages, image_group_specs
from ulmfit_pipe.training.layer_groups import freeze_to, split_layer_groups, train_mode
from ulmfit_pipe.training.optim import build_optimizer, discriminative_lrs

EVERY_KIND = sorted(BACKBONES)
STAGES = {
    "beit": 3,
    "bit": 2,
    "clip_vision_model": 3,
    "deit": 3,
    "dinov2": 3,
    "dinov2_with_registers": 3,
    "dinov3_vit": 3,
    "efficientnet": 8,
    "focalnet": 2,
    "levit": 3,
    "mobilenet_v2": 16,
    "mobilevit": 5,
    "regnet": 2,
    "resnet": 3,
    "siglip_vision_model": 3,
    "swin": 3,
    "vit": 3,
}


def groups_of(model, **how):
    specs = image_group_specs(model, **how)
    return split_layer_groups(model, [spec.prefixes for spec in specs], names=[spec.name for spec in specs])


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_parameter_is_in_one_group_and_the_groups_follow_the_image(kind):
    model = tiny_classifier(kind)
    for stages in (False, True):
        groups = groups_of(model, stages=stages)  # raises unless they are a partition
        owner = {name: group.index for group in groups for name, _ in group.parameters}
        assert set(owner) == {name for name, _ in model.named_parameters()}
        assert groups[-1].name == "head"
        assert {name.partition(".")[0] for name, _ in groups[-1].parameters} == {"head"}
        assert order_of_execution(model, owner, tiny_images(kind)) == sorted(set(owner.values()))


def order_of_execution(model, owner, images):
    """Groups in the order in which a forward pass first reaches them, and again whenever it comes back to one."""
    reached = []

    def note(index):
        def hook(_module, _inputs):
            if not reached or reached[-1] != index:
                reached.append(index)

        return hook

    handles = []
    for name, module in model.named_modules():
        own = [owner[f"{name}.{leaf}"] for leaf, _ in module.named_parameters(recurse=False)]
        if own:
            handles.append(module.register_forward_pre_hook(note(own[0])))
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return reached


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_by_default_there_are_three_groups_and_on_request_one_a_stage(kind):
    model = tiny_classifier(kind)
    assert [group.name for group in groups_of(model)] == ["early", "late", "head"]
    by_stage = [group.name for group in groups_of(model, stages=True)]
    count = STAGES.get(kind, 4)
    stem = [] if kind in ("poolformer", "pvt", "pvt_v2") else ["stem"]  # their first stage embeds the patches
    assert by_stage == [*stem, *(f"stage{index}" for index in range(count)), "head"]


def test_a_resnets_cut_lies_where_fastais_lies():
    model = tiny_classifier("convnext")  # four stages, as a ResNet of 18 or 50 layers has
    early, late, head = image_group_specs(model)
    assert early.prefixes == ("backbone.embeddings", "backbone.encoder.stages.0", "backbone.encoder.stages.1")
    assert late.prefixes == ("backbone.encoder.stages.2", "backbone.encoder.stages.3")
    assert head.prefixes == ("head",)


def test_the_norm_after_the_last_stage_goes_with_it_and_a_norm_before_the_first_with_the_stem():
    assert image_group_specs(tiny_classifier("swin"))[1].prefixes == (
        "backbone.encoder.layers.2",
        "backbone.layernorm",
    )
    stem = image_group_specs(tiny_classifier("clip_vision_model"), stages=True)[0]
    assert stem.prefixes == ("backbone.embeddings", "backbone.pre_layrnorm")


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_parameter_gets_its_groups_learning_rate_and_no_norm_or_bias_decays(kind):
    model = tiny_classifier(kind)
    groups = groups_of(model, stages=True)
    lrs = discriminative_lrs(1e-2, len(groups), decay=2.0)
    optimizer = build_optimizer(groups, lrs, weight_decay=0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (part["lr"], part["weight_decay"])
        for part in optimizer.param_groups
        for parameter in part["params"]
    }
    norms = {name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()}
    assert len(found) == len(names)
    for group, lr in zip(groups, lrs, strict=True):
        for name, _ in group.parameters:
            owner, _, leaf = name.rpartition(".")
            assert found[name] == (lr, 0.0 if owner in norms or "bias" in leaf else 0.1), name


def lively_classifier(kind):
    """A classifier that sees more than one place of an image in its last stage, with weights that carry a signal.

    Attention to one place alone has no gradient, and the usual 0.02 of the weights lets that of deep networks vanish.
    """
    side = 2 * size_of(kind)
    backbone = tiny_backbone(kind, image_size=side, initializer_range=0.2)
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(3))
    names = ["ant", "bee", "wasp"]
    model = build_image_classifier(backbone, label_names=names, height=side, width=side, hidden_sizes=[7], dropout=0.0)
    return model, images


KEY_BIAS = re.compile(r"\bk(ey|_proj)\.bias$")  # softmax undoes it, so its gradient is rounding, or nothing
UNREACHED = {
    "dinov3_vit": {"backbone.embeddings.register_tokens"},  # there are none
    "regnet": {  # the two units of one squeeze are both below zero
        f"backbone.encoder.stages.0.layers.0.layer.2.attention.{leaf}" for leaf in ("0.weight", "0.bias", "2.weight")
    },
}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_frozen_stages_stay_bit_identical_and_thawed_ones_move(kind):
    model, images = lively_classifier(kind)
    groups = groups_of(model, stages=True)
    # with a small eps a gradient of any size is a step
    optimizer = build_optimizer(groups, [1e-2] * len(groups), weight_decay=0.5, eps=1e-20)
    take_a_step(model, groups, optimizer, images)  # so that momentum and decay would move what is frozen next
    for first in (-1, -2, 0):
        freeze_to(groups, first)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        reached = take_a_step(model, groups, optimizer, images)
        moved = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
        thawed = {name for group in groups[first:] for name, _ in group.parameters}
        parameters = {name for name, _ in model.named_parameters()}
        unreached = {name for name in thawed - reached if not KEY_BIAS.search(name)}
        assert unreached == thawed & UNREACHED.get(kind, set())
        assert reached <= moved & parameters <= thawed  # decay moves what no gradient reaches
        prefixes = tuple(prefix for group in groups[first:] for prefix in group.prefixes)
        assert all(name.startswith(prefixes) for name in moved - parameters)  # running statistics


def take_a_step(model, groups, optimizer, images):
    """Take a step, and return the names of the parameters that a gradient has reached."""
    train_mode(model, groups)
    F.cross_entropy(model(images).logits, torch.tensor([0, 1, 2, 0])).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return reached


@pytest.mark.parametrize("kind", ["resnet", "vit", "swin", "mobilenet_v2"])
def test_models_of_transformers_with_their_own_head_and_without_one_are_split_too(kind):
    bare = tiny_backbone(kind)
    assert [group.name for group in groups_of(bare)] == ["early", "late"]
    config = AutoConfig.for_model(kind, **BACKBONES[kind])
    whole = AutoModelForImageClassification.from_config(config)
    specs = layer_group_specs(whole)
    assert [spec.name for spec in specs] == ["early", "late", "head"]
    assert specs[-1].prefixes == ("classifier",)
    groups_of(whole)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_of_a_bare_backbone_nothing_is_taken_for_a_head(kind):
    model = tiny_backbone(kind)
    groups = groups_of(model, stages=True)
    with_head = groups_of(tiny_classifier(kind), stages=True)[:-1]
    own = ["head"] if kind == "siglip_vision_model" else []  # its pooler goes by that name
    assert [group.name for group in groups] == [group.name for group in with_head] + own
    owner = {name: group.name for group in groups for name, _ in group.parameters}
    assert all(
        owner[name.removeprefix("backbone.")] == group.name for group in with_head for name, _ in group.parameters
    )


def test_the_last_norm_of_a_bare_dinov3_convnext_goes_with_its_last_stage():
    sizes = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1], "image_size": 32}
    specs = image_group_specs(build_backbone(AutoConfig.for_model("dinov3_convnext", **sizes)))
    assert [spec.name for spec in specs] == ["early", "late"]
    assert specs[-1].prefixes == ("model.stages.2", "model.stages.3", "layer_norm")


def test_the_groups_of_the_configuration_are_taken_unless_others_are_asked_for():
    assert [spec.name for spec in image_group_specs(tiny_classifier("resnet", layer_groups="stages"))] == [
        "stem",
        "stage0",
        "stage1",
        "stage2",
        "head",
    ]
    given = [["body", ["backbone"]], ["head", ["head"]]]
    model = tiny_classifier("resnet", layer_groups=given)
    assert [(spec.name, spec.prefixes) for spec in image_group_specs(model)] == [
        ("body", ("backbone",)),
        ("head", ("head",)),
    ]
    assert len(image_group_specs(model, stages=False)) == 3


class Numbered(nn.Module):
    """A network as timm builds its ResNets: numbered layers, a stem of a list of its own, the head inside."""

    base_model_prefix = ""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
        self.bn1 = nn.BatchNorm2d(4)
        for number in (1, 2, 3, 4):
            setattr(self, f"layer{number}", nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
        self.fc = nn.Linear(4, 2)


def test_numbered_layers_are_stages_and_a_head_inside_the_backbone_is_the_head():
    early, late, head = image_group_specs(Numbered())
    assert early.prefixes == ("conv1", "bn1", "layer1", "layer2")
    assert late.prefixes == ("layer3", "layer4")
    assert head.prefixes == ("fc",)
    assert backbone_stages(Numbered()) == [("layer1",), ("layer2",), ("layer3",), ("layer4",)]


def test_a_list_of_one_stage_is_looked_into():
    model = tiny_backbone("resnet", hidden_sizes=[8], depths=[3])
    assert backbone_stages(model) == [(f"encoder.stages.0.layers.{index}",) for index in range(3)]


def test_a_model_without_stages_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="Linear has no list of at least two stages or blocks.*give them yourself"):
        image_group_specs(nn.Linear(2, 3))
