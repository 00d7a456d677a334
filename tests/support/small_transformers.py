"""Random classifiers of many architectures, small enough to train in a test, and where each parameter belongs.

Sizes all differ: vocabulary 29, hidden 8, inner 10, 3 blocks, 2 heads, 17 positions.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

VOCAB, HIDDEN, INNER, BLOCKS, HEADS, POSITIONS, LABELS = 29, 8, 10, 3, 2, 17, 4

BERT_SIZES = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
}
LLAMA_SIZES = {**BERT_SIZES, "num_key_value_heads": 1, "head_dim": 4}
GPT_SIZES = {"n_embd": HIDDEN, "n_layer": BLOCKS, "n_head": HEADS, "n_positions": POSITIONS, "n_inner": INNER}


@dataclass(frozen=True)
class Architecture:
    """A class of transformers, its sizes, and regular expressions that say which group a parameter is in.

    Attributes:
        name: Its name here.
        prefix: Of transformers' class names: ``Bert`` of ``BertConfig``.
        sizes: Settings of the configuration.
        embeddings: Matches the start of the first group's parameters.
        block: Matches the start of a block's parameters, with the block's number as its group; or one pattern a block.
        head: Matches the start of the last group's parameters.
        last: Matches the start of what goes with the last block.
        first: Matches the start of what goes with the first block.
        fixed: Parameters that no training may move.
        unreached: Matches the start of parameters that `tokens` give no gradient.
        blocks: Number of blocks.
        config_prefix: Of the configuration's class name, where it is another.
    """

    name: str
    prefix: str
    sizes: dict[str, Any]
    embeddings: str
    block: str | tuple[str, ...]
    head: str
    last: str = "(?!)"
    first: str = "(?!)"
    fixed: tuple[str, ...] = ()
    unreached: str = "(?!)"
    blocks: int = BLOCKS
    config_prefix: str = ""

    def config(self, **changes: Any) -> Any:
        kind = getattr(transformers, f"{self.config_prefix or self.prefix}Config")
        return kind(**{"vocab_size": VOCAB, "pad_token_id": 0, "num_labels": LABELS, **self.sizes, **changes})

    def build(self, head: str = "ForSequenceClassification", *, seed: int = 0, **changes: Any) -> nn.Module:
        torch.manual_seed(seed)
        return getattr(transformers, self.prefix + head)(self.config(**changes))

    def depth_of(self, name: str) -> int:
        """Return the group of a parameter of the classifier: 0 the embeddings, ``blocks + 1`` the head."""
        last = self.blocks
        patterns = [(self.embeddings, 0), (self.first, 1), (self.last, last), (self.head, last + 1)]
        if isinstance(self.block, str):
            match = re.match(self.block, name)
            patterns += [(self.block, 1 + int(match[1]))] if match else []
        else:
            patterns += [(pattern, depth) for depth, pattern in enumerate(self.block, 1)]
        found = [depth for pattern, depth in patterns if re.match(pattern, name)]
        assert len(found) == 1, f"{name} matches {len(found)} of the expected groups"
        return found[0]


def bert_like(name: str, prefix: str, base: str, head: str = "classifier", **more: Any) -> Architecture:
    sizes = {**BERT_SIZES, **more.pop("sizes", {})}
    more = {"embeddings": rf"{base}\.embeddings\.", "block": rf"{base}\.encoder\.layer\.(\d+)\.", **more}
    return Architecture(name, prefix, sizes, head=head, **more)


def llama_like(name: str, prefix: str, **more: Any) -> Architecture:
    sizes = {**LLAMA_SIZES, **more.pop("sizes", {})}
    more = {"last": r"model\.norm\.", **more}
    return Architecture(name, prefix, sizes, r"model\.embed_tokens\.", r"model\.layers\.(\d+)\.", r"score\.", **more)


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        bert_like("bert", "Bert", "bert", r"classifier|bert\.pooler"),
        bert_like("roberta", "Roberta", "roberta"),
        bert_like("ibert", "IBert", "ibert"),  # norms that hold a module without parameters
        bert_like("xlm-roberta", "XLMRoberta", "roberta"),  # registers its classifier first
        bert_like("camembert", "Camembert", "roberta"),  # registers its classifier first
        bert_like("megatron-bert", "MegatronBert", "bert", r"classifier|bert\.pooler", last=r"bert\.encoder\.ln\."),
        bert_like(
            "electra", "Electra", "electra", sizes={"embedding_size": 6}, embeddings=r"electra\.embeddings(_project)?\."
        ),
        Architecture(
            "distilbert",
            "DistilBert",
            {"dim": HIDDEN, "hidden_dim": INNER, "n_layers": BLOCKS, "n_heads": HEADS, "max_position_embeddings": 17},
            r"distilbert\.embeddings\.",
            r"distilbert\.transformer\.layer\.(\d+)\.",
            r"(pre_)?classifier\.",
        ),
        bert_like(
            "albert",  # three passes through one and the same block
            "Albert",
            "albert",
            r"classifier|albert\.pooler",
            sizes={"embedding_size": 6},
            embeddings=r"albert\.(embeddings|encoder\.embedding_hidden_mapping_in)\.",
            block=r"albert\.encoder\.albert_layer_groups\.(\d+)\.",
            blocks=1,
        ),
        bert_like(
            "deberta",
            "Deberta",
            "deberta",
            "pooler|classifier",
            sizes={"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
            embeddings=r"deberta\.(embeddings|encoder\.rel_embeddings)\.",
        ),
        bert_like(
            "deberta-v2",
            "DebertaV2",
            "deberta",
            "pooler|classifier",
            sizes={
                "relative_attention": True,
                "pos_att_type": ["c2p", "p2c"],
                "norm_rel_ebd": "layer_norm",
                "position_buckets": 4,
                "conv_kernel_size": 3,
            },
            embeddings=r"deberta\.(embeddings|encoder\.rel_embeddings|encoder\.LayerNorm)\.",
            first=r"deberta\.encoder\.conv\.",
        ),
        bert_like("mpnet", "MPNet", "mpnet", embeddings=r"mpnet\.(embeddings|encoder\.relative_attention_bias)\."),
        bert_like(
            "mobilebert",
            "MobileBert",
            "mobilebert",
            r"classifier|mobilebert\.pooler",
            sizes={"embedding_size": 6, "intra_bottleneck_size": 8, "true_hidden_size": 8},
        ),
        bert_like(
            "roformer",
            "RoFormer",
            "roformer",
            embeddings=r"roformer\.(embeddings|encoder\.embed_positions)\.",
            fixed=("roformer.encoder.embed_positions.weight",),
        ),
        bert_like(
            "layoutlmv3",
            "LayoutLMv3",
            "layoutlmv3",
            sizes={
                "coordinate_size": 1,
                "shape_size": 2,
                "max_2d_position_embeddings": 5,
                "input_size": 4,
                "patch_size": 4,
                "has_relative_attention_bias": False,
                "has_spatial_attention_bias": False,
            },
            embeddings=r"layoutlmv3\.(cls_token|pos_embed|patch_embed\.|embeddings\.|LayerNorm\.|norm\.)",
            unreached=r"layoutlmv3\.(cls_token|pos_embed|patch_embed|LayerNorm|norm)",  # there is no picture
        ),
        Architecture(
            "modernbert",
            "ModernBert",
            {**BERT_SIZES, "global_attn_every_n_layers": 2},
            r"model\.embeddings\.",
            r"model\.layers\.(\d+)\.",
            r"head\.|classifier\.",
            last=r"model\.final_norm\.",
        ),
        Architecture(
            "funnel",
            "Funnel",
            {"d_model": HIDDEN, "d_inner": INNER, "n_head": HEADS, "d_head": 4, "block_sizes": [2, 1]},
            r"funnel\.embeddings\.",
            tuple(rf"funnel\.encoder\.blocks\.{place}\." for place in (r"0\.0", r"0\.1", r"1\.0")),
            r"classifier\.",
            unreached=r"funnel\.encoder\.blocks\.1\.0\.attention\.(r_[rsk]|seg_embed)",  # [CLS] has no position
        ),
        Architecture(
            "xlnet",
            "XLNet",
            {"d_model": HIDDEN, "d_inner": INNER, "n_layer": BLOCKS, "n_head": HEADS},
            r"transformer\.(word_embedding|mask_emb)",
            r"transformer\.layer\.(\d+)\.",
            r"sequence_summary|logits_proj",
            fixed=("transformer.mask_emb",),
            unreached=r".*\.(r_s_bias|seg_embed)",  # there is one segment
        ),
        Architecture(
            "xlm",
            "XLM",
            {"emb_dim": HIDDEN, "n_layers": BLOCKS, "n_heads": HEADS, "max_position_embeddings": POSITIONS},
            r"transformer\.(position_embeddings|embeddings|lang_embeddings|layer_norm_emb)\.",
            r"transformer\.(?:attentions|layer_norm1|ffns|layer_norm2)\.(\d+)\.",
            r"sequence_summary\.",
        ),
        Architecture(
            "perceiver",
            "Perceiver",
            {
                "d_model": HIDDEN,
                "d_latents": 6,
                "num_latents": 5,
                "num_self_attends_per_block": BLOCKS,
                "num_blocks": 1,
                "num_self_attention_heads": 2,
                "num_cross_attention_heads": 2,
                "max_position_embeddings": POSITIONS,
            },
            r"perceiver\.(input_preprocessor|embeddings|encoder\.cross_attention)\.",
            r"perceiver\.encoder\.self_attends\.(\d+)\.",
            r"perceiver\.decoder\.",
        ),
        Architecture(
            "gpt2",
            "GPT2",
            GPT_SIZES,
            r"transformer\.w[tp]e\.",
            r"transformer\.h\.(\d+)\.",
            r"score\.",
            last=r"transformer\.ln_f\.",
        ),
        Architecture(
            "openai-gpt",
            "OpenAIGPT",
            GPT_SIZES,
            r"transformer\.(tokens|positions)_embed\.",
            r"transformer\.h\.(\d+)\.",
            r"score\.",
        ),
        Architecture(
            "gpt-neo",
            "GPTNeo",
            {
                "hidden_size": HIDDEN,
                "intermediate_size": INNER,
                "num_layers": BLOCKS,
                "num_heads": HEADS,
                "attention_types": [[["global"], BLOCKS]],
                "max_position_embeddings": POSITIONS,
            },
            r"transformer\.w[tp]e\.",
            r"transformer\.h\.(\d+)\.",
            r"score\.",
            last=r"transformer\.ln_f\.",
        ),
        Architecture(
            "gpt-neox",
            "GPTNeoX",
            BERT_SIZES,
            r"gpt_neox\.embed_in\.",
            r"gpt_neox\.layers\.(\d+)\.",
            r"score\.",
            last=r"gpt_neox\.final_layer_norm\.",
        ),
        Architecture(
            "opt",
            "OPT",
            {
                "hidden_size": HIDDEN,
                "ffn_dim": INNER,
                "num_hidden_layers": BLOCKS,
                "num_attention_heads": HEADS,
                "word_embed_proj_dim": 6,
                "max_position_embeddings": POSITIONS,
            },
            r"model\.decoder\.(embed_tokens|embed_positions|project_in)\.",
            r"model\.decoder\.layers\.(\d+)\.",
            r"score\.",
            last=r"model\.decoder\.(final_layer_norm|project_out)\.",
        ),
        Architecture(
            "bloom",
            "Bloom",
            {"hidden_size": HIDDEN, "n_layer": BLOCKS, "n_head": HEADS},
            r"transformer\.word_embeddings(_layernorm)?\.",
            r"transformer\.h\.(\d+)\.",
            r"score\.",
            last=r"transformer\.ln_f\.",
        ),
        Architecture(
            "falcon",
            "Falcon",
            {
                "hidden_size": HIDDEN,
                "num_hidden_layers": BLOCKS,
                "num_attention_heads": HEADS,
                "ffn_hidden_size": INNER,
            },
            r"transformer\.word_embeddings\.",
            r"transformer\.h\.(\d+)\.",
            r"score\.",
            last=r"transformer\.ln_f\.",
        ),
        llama_like("llama", "Llama"),
        llama_like("mistral", "Mistral"),
        llama_like("qwen2", "Qwen2"),
        llama_like("qwen3", "Qwen3"),
        llama_like("gemma", "Gemma"),
        llama_like("gemma3", "Gemma3Text", config_prefix="Gemma3Text"),
        llama_like("phi", "Phi", last=r"model\.final_layernorm\."),
        llama_like("stablelm", "StableLm"),
    )
}


def tokens(batch: int = 2, seq_len: int = 5) -> dict[str, torch.Tensor]:
    """Ids without padding, and labels."""
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCAB, (batch, seq_len), generator=random)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(batch) % LABELS}


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of a model's parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """Names of the parameters that are not bit for bit what they were."""
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
