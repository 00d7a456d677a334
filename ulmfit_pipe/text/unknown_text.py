"""Texts in a language or script that a pretrained model does not know are refused before anything is trained on them.

Without a word the training would end in a classifier that gives every text the largest class.
"""

import math
from typing import Any

from datasets import Dataset

from ulmfit_pipe.data.splits import some_rows
from ulmfit_pipe.data.text.text_coverage import TextCoverage, measure_coverage
from ulmfit_pipe.data.text.text_facts import script_shares
from ulmfit_pipe.data.text.ulmfit_tokenizer import UlmfitTokenizer
from ulmfit_pipe.settings.choices import UnknownText
from ulmfit_pipe.stages.artifacts import (
    ArtifactError,
    ModelName,
    find_model,
    load_text_tokenizer,
    location_of,
    read_stage,
    refuse_image_model,
)
from ulmfit_pipe.stages.context import RunContext

SAMPLED_TEXTS = 500
SAMPLED_CHARACTERS = 300  # of each text, from its beginning
# Measured with awd-lstm-en and a BERT of English: 0.2 % and less of AG News, TREC, IMDb and Wikipedia, 8 % of tweets
# full of emoji; 65 to 100 % of Chinese, Japanese, Korean, Russian, Greek, Arabic, Hindi and Thai texts, and 30 to 42 %
# of texts half in Chinese, half in English. Latin languages have 0 to 8 %, only Vietnamese 36 % with awd-lstm-en.
MOST_LOST = 0.2
NOTED_LOST = 0.05
# Tokens of a character, as a multiple of what a language model has on texts of its own: 0.95 to 1.07 on English tables,
# 1.5 to 2.2 on Spanish, French, German, Portuguese and Turkish ones.
NOTED_RATIO = 1.45
MULTILINGUAL = "bert-base-multilingual-cased or sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"


def check_known_texts(
    texts: Dataset,
    *,
    model: ModelName | None,
    unknown_text: UnknownText,
    context: RunContext,
    vocabulary: str = "keep",
    from_scratch: str = "--model null trains one from scratch on these texts",
) -> None:
    """Raise where a model's vocabulary does not know the texts that it is to be trained on; report what looks odd.

    Args:
        texts: Column ``text``; a sample of it is measured.
        model: The model whose tokenizer is taken; None, a new tokenizer, knows its texts.
        unknown_text: What becomes of a run on unknown texts: error stops it, allow reports it and continues.
        context: Seed, and where the lines go.
        vocabulary: The language model's setting ``tokenizer``: what is made anew from the texts knows them.
        from_scratch: How to train a model without a pretrained one, for the message.

    Raises:
        ValueError: They are unknown, and not allowed.
    """
    tokenizer = None if model is None else _tokenizer_of(model)
    if tokenizer is None or _is_made_anew(tokenizer, vocabulary):
        return
    sample = some_rows(texts.select_columns(["text"]), SAMPLED_TEXTS, seed=context.seed)
    found = measure_coverage(tokenizer, [text[:SAMPLED_CHARACTERS] for text in sample["text"]])
    share = found.lost_share
    if share >= MOST_LOST and unknown_text == "error":
        raise ValueError(
            f"{_describe(found, tokenizer, model)}; take a model of their language or a multilingual one, such as "
            f"--model {MULTILINGUAL}; {from_scratch}; --unknown_text allow continues anyway"
        )
    if share >= NOTED_LOST:
        context.tell(f"note: {_describe(found, tokenizer, model)}")
    elif (own := _own_tokens_per_character(model)) and found.tokens_per_character >= NOTED_RATIO * own:
        context.tell(
            f"note: the training texts have {found.tokens_per_character / own:.1f} times the tokens per character of "
            f"the texts that {model} was trained on; if they are in another language, take a model of that language or "
            f"a multilingual one, such as {MULTILINGUAL}"
        )


def _tokenizer_of(model: ModelName) -> Any:
    """Return a model's tokenizer; None where it cannot be used, which the stage reports in its own words."""
    try:
        found = find_model(model)
        refuse_image_model(found, found.loaded)
        return load_text_tokenizer(found, found.config, say=lambda line: None)
    except ArtifactError:
        return None


def _is_made_anew(tokenizer: Any, vocabulary: str) -> bool:
    """Whether the language-model stage will build a new vocabulary from the texts in place of a tokenizer's."""
    words = isinstance(tokenizer, UlmfitTokenizer) and tokenizer.kind == "word"
    return vocabulary not in ("auto", "keep") or (vocabulary == "auto" and words)


def _describe(found: TextCoverage, tokenizer: Any, model: ModelName | None) -> str:
    scripts = script_shares(found.lost)
    of_script = f", most of them {scripts[0][0]} letters" if scripts else ", none of them letters"
    unknown = f" ({_percent(found.unknown_share)} of the tokens are {tokenizer.unk_token})"
    return (
        f"{_percent(found.lost_share)} of the characters of the training texts are unknown to {model} or are in "
        f"words that it can only spell letter by letter{of_script}{unknown if found.unknown_tokens else ''}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _own_tokens_per_character(model: ModelName | None) -> float | None:
    """Return a language model's tokens per character on its validation texts, by what its stage measured, or None."""
    record = None if model is None else read_stage(location_of(model))
    metrics = (record or {}).get("metrics") or {}
    bits, loss = metrics.get("bits_per_character"), metrics.get("loss")
    return bits * math.log(2) / loss if bits and loss else None
