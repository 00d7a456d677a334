"""Transformers of a few thousand random weights with tokenizers made from the words of the tiny runs."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    FNetConfig,
    FNetModel,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedTokenizerFast,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from tests.support.tiny_runs import FILLERS, WORDS

KNOWN = [*FILLERS, *(word for words in WORDS.values() for word in words), "."]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WIDE = {"initializer_range": 0.4}  # of the weights: at the usual 0.02 such small models score all texts alike
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3, "intermediate_size": 20}


def encoder_tokenizer(template: str = "[CLS] $A [SEP]", **settings: Any) -> PreTrainedTokenizerFast:
    """Return a tokenizer of whole words that puts [CLS] and [SEP] around a text, or where the template says."""
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *dict.fromkeys(KNOWN)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{**names, **settings})


def decoder_tokenizer(**settings: Any) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer that adds nothing to a text and, as GPT-2's, knows no padding."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(KNOWN)] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", **settings)


def save_bert(folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    """Write a BERT encoder of three blocks, as a pretrained one comes: without a head."""
    tokenizer = encoder_tokenizer()
    config = BertConfig(**{"vocab_size": len(tokenizer), "max_position_embeddings": 64, **SIZES, **WIDE, **settings})
    return _save(folder, BertModel, config, tokenizer, seed=seed)


def save_distilbert(folder: Path, *, seed: int = 0) -> Path:
    """Write a DistilBERT encoder of three blocks."""
    tokenizer = encoder_tokenizer()
    sizes = {"dim": 16, "n_heads": 2, "n_layers": 3, "hidden_dim": 20, "max_position_embeddings": 64}
    return _save(
        folder, DistilBertModel, DistilBertConfig(vocab_size=len(tokenizer), **sizes, **WIDE), tokenizer, seed=seed
    )


def save_gpt2(folder: Path, *, seed: int = 0) -> Path:
    """Write a GPT-2 language model of three blocks, without a padding token."""
    tokenizer = decoder_tokenizer()
    sizes = {"n_embd": 16, "n_head": 2, "n_layer": 3, "n_positions": 96}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    return _save(
        folder, GPT2LMHeadModel, GPT2Config(vocab_size=len(tokenizer), **sizes, **ends, **WIDE), tokenizer, seed=seed
    )


def save_granite(folder: Path) -> Path:
    """Write a Granite language model of two blocks: transformers has no classifier of this architecture."""
    sizes = {**SIZES, "num_hidden_layers": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    tokenizer = decoder_tokenizer()
    config = GraniteConfig(vocab_size=len(tokenizer), **sizes, **ends, **WIDE)
    return _save(folder, GraniteForCausalLM, config, tokenizer, seed=0)


def save_fnet(folder: Path) -> Path:
    """Write an FNet encoder, whose Fourier transforms take no attention mask."""
    tokenizer = encoder_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 20, "max_position_embeddings": 64}
    return _save(folder, FNetModel, FNetConfig(vocab_size=len(tokenizer), **sizes, **WIDE), tokenizer, seed=0)


def save_xlnet_classifier(folder: Path) -> Path:
    """Write a random XLNet classifier, which reads its summary at the last position and knows types of tokens."""
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = encoder_tokenizer("$A:0 [SEP]:0 [CLS]:2", model_input_names=inputs, padding_side="left")
    sizes = {"d_model": 16, "n_head": 2, "n_layer": 2, "d_inner": 20, "pad_token_id": 0}
    config = XLNetConfig(vocab_size=len(tokenizer), **sizes, **WIDE)
    return _save(folder, XLNetForSequenceClassification, config, tokenizer, seed=0)


def _save(folder: Path, kind: Any, config: Any, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> Path:
    torch.manual_seed(seed)
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SAVED = {"bert": save_bert, "distilbert": save_distilbert, "gpt2": save_gpt2}
