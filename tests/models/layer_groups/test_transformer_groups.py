import re
from collections import Counter

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F  # noqa: N812
from transformers.trainer_pt_utils import get_parameter_names

from tests.support.small_transformers import (
    ARCHITECTURES,
    BERT_SIZES,
    BLOCKS,
    GPT_SIZES,
    HIDDEN,
    LLAMA_SIZES,
    VOCAB,
    changed,
    snapshot,
    tokens,
)
from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForSequenceClassification
from ulmfit_pipe.models.heads.pooling_classifier import PoolingClassifierConfig, PoolingForSequenceClassification
from ulmfit_pipe.models.heads.window_classifier import WindowsForSequenceClassification
from ulmfit_pipe.models.layer_groups.group_specs import fixed_parameter_names, layer_group_specs
from ulmfit_pipe.models.layer_groups.image_groups import image_group_specs
from ulmfit_pipe.models.layer_groups.transformer_groups import ARRANGEMENTS, transformer_group_specs
from ulmfit_pipe.stages.saved_learner import groups_of
from ulmfit_pipe.training.layer_groups import freeze_to, is_norm, split_layer_groups, train_mode
from ulmfit_pipe.training.optim import build_optimizer, discriminative_lrs

LR = 1e-2
# transformers' Trainer tells what not to decay by these patterns, and by type for torch's LayerNorm.
TRAINER_PATTERNS = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
# Where ours differs from it: the table's name contains "bias", but it is an embedding of positions.
DECAYED_HERE = {"mpnet": {"mpnet.encoder.relative_attention_bias.weight"}}
every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=list(ARCHITECTURES))


def group_names(model, **options):
    return [spec.name for spec in layer_group_specs(model, **options)]


def names_by_group(model, **options):
    """The names of each group's parameters; raises unless the groups are a partition."""
    specs = layer_group_specs(model, **options)
    groups = split_layer_groups(model, [spec.prefixes for spec in specs], names=[spec.name for spec in specs])
    return {group.name: [name for name, _ in group.parameters] for group in groups}


def train(model, groups, optimizer, *, steps=2):
    """Take steps; return the names of the parameters that had a gradient in the last one."""
    train_mode(model, groups)
    inputs = tokens()
    labels = inputs.pop("labels")
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(**inputs).logits, labels).backward()
        optimizer.step()
    return {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}


# ---- every architecture: partition, depth, rates, decay, freezing


@every_architecture
def test_every_parameter_is_in_the_group_of_its_layer_and_learns_at_that_groups_rate(architecture):
    model = architecture.build()
    by_group = names_by_group(model)
    blocks = [f"block{index}" for index in range(architecture.blocks)]
    assert list(by_group) == ["embeddings", *blocks, "head"]
    assert Counter(sum(by_group.values(), [])) == Counter(name for name, _ in model.named_parameters())

    groups = groups_of(model)
    optimizer = build_optimizer(groups, discriminative_lrs(LR, len(groups)))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    head = architecture.blocks + 1
    for name, parameter in model.named_parameters():
        if name in architecture.fixed:
            assert id(parameter) not in rates, name
        else:
            assert rates[id(parameter)] == pytest.approx(LR / 2.6 ** (head - architecture.depth_of(name))), name


@every_architecture
def test_modules_run_in_the_order_of_their_groups(architecture):
    model = architecture.build().eval()
    depth = {name: index for index, names in enumerate(names_by_group(model).values()) for name in names}
    order = []
    for path, module in model.named_modules():
        own = {depth[name] for name, _ in module.named_parameters(prefix=path, recurse=False)}
        if own:
            assert len(own) == 1, f"{path} is cut in two"
            (place,) = own
            module.register_forward_pre_hook(lambda _module, _inputs, place=place: order.append(place))
    model(**tokens())
    assert order == sorted(order)
    assert set(order) == set(range(architecture.blocks + 2))


@every_architecture
def test_norms_and_biases_are_not_decayed_and_all_else_is(architecture):
    model = architecture.build()
    optimizer = build_optimizer(groups_of(model), [LR] * (architecture.blocks + 2), weight_decay=0.1)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    decayed = {name for name, p in model.named_parameters() if decay.get(id(p)) == 0.1}
    trainers = set(get_parameter_names(model, [nn.LayerNorm], TRAINER_PATTERNS)) - set(architecture.fixed)
    assert decayed == trainers | DECAYED_HERE.get(architecture.name, set())
    for path, module in model.named_modules():
        if "norm" in type(module).__name__.lower() and next(module.children(), None) is None:
            assert not decayed & {name for name, _ in module.named_parameters(prefix=path)}, path


@every_architecture
def test_frozen_parameters_stay_bit_identical_and_thawed_ones_move(architecture):
    model = architecture.build()
    groups = groups_of(model)
    # with a small eps a gradient of any size is a step
    optimizer = build_optimizer(groups, discriminative_lrs(LR, len(groups)), weight_decay=0.1, eps=1e-20)
    train(model, groups, optimizer)  # so that momentum and decay would move what is frozen next
    for first in (-1, -2, 0):
        freeze_to(groups, first)
        before = snapshot(model)
        with_gradient = train(model, groups, optimizer)
        thawed = {name for group in groups[first:] for name, _ in group.parameters}
        moved = changed(model, before)
        assert moved <= thawed
        assert with_gradient <= moved
    never = {name for name, _ in model.named_parameters() if re.match(architecture.unreached, name)}
    assert thawed - with_gradient == never - set(architecture.fixed)


def test_the_norms_of_these_architectures_are_of_many_types():
    kinds = {type(m).__name__ for a in ARCHITECTURES.values() for m in a.build().modules() if is_norm(m)}
    assert kinds >= {"LayerNorm", "DebertaLayerNorm", "NoNorm", "LlamaRMSNorm", "Qwen2RMSNorm", "GemmaRMSNorm"}
    assert "IntLayerNorm" in kinds


# ---- heads, ties, wrappers


@pytest.mark.parametrize("name", ["bert", "roberta", "camembert", "distilbert", "albert", "electra", "deberta"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_masked_language_model_has_its_tied_embedding_in_the_last_group(name, tied):
    model = ARCHITECTURES[name].build("ForMaskedLM", tie_word_embeddings=tied)
    by_group = names_by_group(model)
    assert list(by_group)[-1] == "head"
    assert list(by_group)[0] == "embeddings"
    words = model.get_input_embeddings().weight
    assert (words is model.get_output_embeddings().weight) == tied
    holders = {group for group, names in by_group.items() for name in names if model.get_parameter(name) is words}
    assert holders == {"head" if tied else "embeddings"}
    assert any("position_embeddings" in name for name in by_group["embeddings"])
    outside = {name for name, _ in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")}
    assert outside <= set(by_group["head"])


@pytest.mark.parametrize(
    ("name", "head", "first"),
    [
        ("gpt2", "LMHeadModel", ["transformer.wpe.weight"]),
        ("opt", "ForCausalLM", ["model.decoder.embed_positions.weight", "model.decoder.project_in.weight"]),
        ("xlnet", "LMHeadModel", ["transformer.mask_emb"]),
        ("gemma", "ForCausalLM", None),
        ("llama", "ForCausalLM", None),
    ],
)
def test_a_causal_language_model_has_its_tied_embedding_in_the_last_group(name, head, first):
    model = ARCHITECTURES[name].build(head, tie_word_embeddings=True)
    by_group = names_by_group(model)
    assert by_group.get("embeddings") == first  # nothing else is an embedding where positions are rotated
    assert any(model.get_parameter(key) is model.get_output_embeddings().weight for key in by_group["head"])


def test_an_untied_language_model_has_its_input_embedding_first():
    by_group = names_by_group(ARCHITECTURES["gpt-neox"].build("ForCausalLM", tie_word_embeddings=False))
    assert by_group["embeddings"] == ["gpt_neox.embed_in.weight"]
    assert by_group["head"] == [name for name in by_group["head"] if name.startswith("embed_out") or "lm_head" in name]


@pytest.mark.parametrize("name", ["deberta", "deberta-v2"])
def test_deberta_is_handed_its_decoder_by_the_newer_head_which_counts_as_tied(name):
    by_group = names_by_group(ARCHITECTURES[name].build("ForMaskedLM", legacy=False))
    assert "deberta.embeddings.word_embeddings.weight" in by_group["head"]
    assert "deberta.embeddings.LayerNorm.weight" in by_group["embeddings"]


def test_a_model_without_a_head_has_its_pooler_for_one():
    by_group = names_by_group(ARCHITECTURES["bert"].build("Model"))
    assert by_group["head"] == ["pooler.dense.weight", "pooler.dense.bias"]
    assert group_names(ARCHITECTURES["gpt2"].build("Model")) == ["embeddings", "block0", "block1", "block2"]


def test_the_encoder_of_an_encoder_decoder_alone_has_groups():
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=HIDDEN, d_kv=4, d_ff=10, num_layers=2, num_heads=2, pad_token_id=0
    )
    by_group = names_by_group(transformers.T5EncoderModel(config))
    assert list(by_group) == ["embeddings", "block0", "block1"]
    assert by_group["embeddings"] == ["shared.weight"]
    assert "encoder.final_layer_norm.weight" in by_group["block1"]


def test_a_decoder_of_funnel_follows_its_encoder():
    by_group = names_by_group(ARCHITECTURES["funnel"].build("ForMaskedLM", num_decoder_layers=2))
    assert list(by_group) == ["embeddings", *(f"block{index}" for index in range(5)), "head"]
    assert by_group["block3"][0].startswith("funnel.decoder.layers.0.")


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "camembert"])
def test_concat_pooling_on_a_backbone_is_its_head(name):
    encoder = ARCHITECTURES[name].config()
    by_group = names_by_group(PoolingForSequenceClassification(PoolingClassifierConfig(encoder_config=encoder)))
    assert list(by_group) == ["embeddings", "block0", "block1", "block2", "head"]
    assert all(key.startswith("classifier.") for key in by_group["head"])
    assert all(key.startswith("backbone.") for group in list(by_group)[:-1] for key in by_group[group])


def test_a_model_inside_a_module_of_ones_own_keeps_its_groups():
    inner = ARCHITECTURES["roberta"].build()
    wrapped = names_by_group(WindowsForSequenceClassification(inner))
    assert wrapped == {group: [f"model.{name}" for name in names] for group, names in names_by_group(inner).items()}

    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Linear(HIDDEN, 1)
            self.encoder = ARCHITECTURES["mpnet"].build("Model")

    assert {"scale.weight", "scale.bias"} <= set(names_by_group(Siamese())["head"])


def test_a_language_model_whose_class_names_no_backbone_is_opened():
    config = transformers.Llama4TextConfig(**{**LLAMA_SIZES, "intermediate_size_mlp": 12, "num_local_experts": 2})
    config.vocab_size, config.pad_token_id = VOCAB, 0
    model = transformers.Llama4ForCausalLM(config)
    assert model.base_model is model
    by_group = names_by_group(model)
    assert by_group["embeddings"] == ["model.embed_tokens.weight"]
    assert by_group["head"] == ["lm_head.weight"]


def test_a_final_norm_by_a_misleading_name_goes_with_the_last_block():
    sizes = {**LLAMA_SIZES, "layer_types": ["conv", "full_attention", "conv"]}
    sizes.pop("head_dim")
    model = transformers.Lfm2ForCausalLM(transformers.Lfm2Config(vocab_size=VOCAB, pad_token_id=0, **sizes))
    by_group = names_by_group(model)
    assert by_group["block2"][-1] == "model.embedding_norm.weight"


def test_blocks_that_share_all_weights_are_one_group():
    model = ARCHITECTURES["bert"].build()
    layers = model.bert.encoder.layer
    layers[2] = layers[1]
    by_group = names_by_group(model)
    assert list(by_group) == ["embeddings", "block0", "block1", "head"]


def test_what_a_text_does_not_reach_and_what_is_computed_may_not_move():
    roformer = ARCHITECTURES["roformer"].build()
    assert fixed_parameter_names(roformer) == {"roformer.encoder.embed_positions.weight"}
    wrapped = WindowsForSequenceClassification(roformer)
    assert fixed_parameter_names(wrapped) == {"model.roformer.encoder.embed_positions.weight"}
    assert fixed_parameter_names(ARCHITECTURES["bert"].build()) == frozenset()
    assert fixed_parameter_names(nn.Linear(2, 3)) == frozenset()


def test_a_fixed_parameter_is_in_no_group_and_frozen():
    model = ARCHITECTURES["roformer"].build()
    table = model.roformer.encoder.embed_positions.weight
    table.requires_grad_(True)  # as a loaded model has it
    groups = groups_of(model)
    assert [group.index for group in groups] == [0, 1, 2, 3, 4]
    assert all(parameter is not table for group in groups for _, parameter in group.parameters)
    freeze_to(groups, 0)
    assert not table.requires_grad


@pytest.mark.parametrize("model_type", sorted(ARRANGEMENTS))
def test_every_name_in_the_table_is_one_of_the_architecture(model_type):
    settings = {
        "deberta-v2": {"relative_attention": True, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3},
        "lfm2_moe": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
        "opt": {"word_embed_proj_dim": 6},
    }.get(model_type, {})
    kinds = {"bigbird_pegasus": "BigBirdPegasusForCausalLM", "funnel": "FunnelModel"}
    kinds |= {"perceiver": "PerceiverForSequenceClassification"}  # its decoder is put in by the class with the head
    config = transformers.CONFIG_MAPPING[model_type](**settings)
    with torch.device("meta"):
        kind = kinds.get(model_type)
        model = getattr(transformers, kind)(config) if kind else transformers.AutoModel.from_config(config)
    names = {name for name, _ in [*model.base_model.named_modules(), *model.base_model.named_parameters()]}
    arrangement = ARRANGEMENTS[model_type]
    listed = {name for stack in arrangement.stacks for name in stack}
    for place in ("embeddings", "first_block", "last_block", "head", "fixed"):
        listed |= set(getattr(arrangement, place))
    assert listed <= names
    if arrangement.decoder is not None:
        with torch.device("meta"):
            language_model = transformers.AutoModelForMaskedLM.from_config(type(config)(legacy=False))
        assert hasattr(language_model, arrangement.decoder[0])


# ---- bundles


@pytest.mark.parametrize(
    ("max_blocks", "names"),
    [
        (None, [f"block{index}" for index in range(7)]),
        (9, [f"block{index}" for index in range(7)]),
        (7, [f"block{index}" for index in range(7)]),
        (3, ["blocks0-2", "blocks3-4", "blocks5-6"]),
        (5, ["blocks0-1", "blocks2-3", "block4", "block5", "block6"]),
        (1, ["blocks0-6"]),
    ],
)
def test_neighbouring_blocks_are_bundled_the_larger_bundles_nearer_the_input(max_blocks, names):
    model = ARCHITECTURES["bert"].build(num_hidden_layers=7)
    assert group_names(model, max_blocks=max_blocks) == ["embeddings", *names, "head"]
    single = names_by_group(model)
    for name, members in names_by_group(model, max_blocks=max_blocks).items():
        first, _, last = name.removeprefix("blocks").removeprefix("block").partition("-")
        if first.isdigit():
            indices = range(int(first), int(last or first) + 1)
            assert members == sum((single[f"block{index}"] for index in indices), [])


def test_groups_of_bundles_too():
    groups = groups_of(ARCHITECTURES["gpt2"].build(), max_blocks=2)
    assert [group.name for group in groups] == ["embeddings", "blocks0-1", "block2", "head"]


# ---- refusals


@pytest.mark.parametrize("max_blocks", [0, -1, 2.0, True, "3"])
def test_max_blocks_is_a_whole_number_of_1_or_more(max_blocks):
    with pytest.raises(ValueError, match=f"max_blocks must be a whole number of 1 or more, got {max_blocks!r}; None"):
        transformer_group_specs(ARCHITECTURES["bert"].build(), max_blocks=max_blocks)


def test_an_lstm_has_no_blocks_to_bundle():
    config = AwdLstmConfig(vocab_size=11, embedding_size=5, hidden_size=7, num_hidden_layers=2, num_labels=4)
    with pytest.raises(
        ValueError, match="max_blocks=2 bundles the blocks of a text transformer, not of AwdLstmForSequ"
    ):
        layer_group_specs(AwdLstmForSequenceClassification(config), max_blocks=2)


def test_an_image_model_has_the_groups_of_image_models_and_no_bundles():
    config = transformers.ViTConfig(**{**BERT_SIZES, "image_size": 4, "patch_size": 2})
    model = transformers.ViTForImageClassification(config)
    assert group_names(model) == [spec.name for spec in image_group_specs(model)]
    with pytest.raises(ValueError, match="max_blocks=2 bundles .*, not of ViTForImageClassification; leave it"):
        layer_group_specs(model, max_blocks=2)


@pytest.mark.parametrize("kind", ["T5", "Bart"])
def test_an_encoder_decoder_is_refused_with_the_reason_and_what_to_do(kind):
    sizes = {
        "T5": {"d_model": HIDDEN, "d_kv": 4, "d_ff": 10, "num_layers": 2, "num_heads": 2, "eos_token_id": 1},
        "Bart": {
            "d_model": HIDDEN,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 10,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "decoder_ffn_dim": 10,
        },
    }[kind]
    config = getattr(transformers, f"{kind}Config")(vocab_size=VOCAB, **sizes)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    words = f"{kind}ForSequenceClassification is an encoder-decoder: .*encoder.*decoder.*different inputs.*"
    with pytest.raises(ValueError, match=words + "Take an encoder .* or the encoder alone .* LayerGroupSpec"):
        layer_group_specs(model)


def test_a_model_of_text_and_pictures_is_refused_as_its_stacks_have_no_order():
    vision = {**BERT_SIZES, "image_size": 4, "patch_size": 2}
    config = transformers.Gemma3Config(text_config={**LLAMA_SIZES, "vocab_size": VOCAB}, vision_config=vision)
    with torch.device("meta"):
        model = transformers.Gemma3ForSequenceClassification(config)
    with pytest.raises(
        ValueError, match=r"has 2 stacks of blocks \(vision_tower\S*, language_model\S*\), and their order"
    ):
        layer_group_specs(model)


def test_several_models_side_by_side_are_refused():
    pair = nn.ModuleList([ARCHITECTURES["bert"].build("Model"), ARCHITECTURES["gpt2"].build("Model")])
    with pytest.raises(ValueError, match=r"ModuleList holds 2 models side by side \(BertModel, GPT2Model\), so no one"):
        layer_group_specs(pair)


class Blockless(transformers.PreTrainedModel):
    config_class = transformers.BertConfig

    def __init__(self, config, *, blocks=0, words=True):
        super().__init__(config)
        self.words = nn.Embedding(VOCAB, HIDDEN) if words else None
        if blocks:
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(HIDDEN, HIDDEN)) for _ in range(blocks))
        self.post_init()


def test_a_model_without_blocks_is_refused():
    with pytest.raises(ValueError, match="Blockless has no list of blocks, so its layer groups cannot be found; give"):
        layer_group_specs(Blockless(transformers.BertConfig()))


def test_a_model_of_one_group_is_refused():
    with pytest.raises(
        ValueError, match=r"Blockless has 1 layer group \(block0\), and unfreezing needs two: something"
    ):
        layer_group_specs(Blockless(transformers.BertConfig(), blocks=1, words=False))


def test_the_blocks_are_counted_as_the_configuration_counts_them():
    for name, sizes in (("bert", {"num_hidden_layers": 1}), ("gpt2", {"n_layer": 1})):
        assert group_names(ARCHITECTURES[name].build(**sizes)) == ["embeddings", "block0", "head"]
    assert BLOCKS == GPT_SIZES["n_layer"] == LLAMA_SIZES["num_hidden_layers"] == 3
