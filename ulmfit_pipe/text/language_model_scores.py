"""How well a language model predicts held-out text, in numbers that can be compared between vocabularies.

A masked language model has none of these: its pseudo-perplexity is of tokens whose followers it sees, and can only be
compared with that of the same vocabulary, masks and blocks.
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from ulmfit_pipe.data.streams.lm_batches import LanguageModelBatches
from ulmfit_pipe.data.streams.token_arrays import read_token_arrays
from ulmfit_pipe.data.text.text_facts import unspaced_share
from ulmfit_pipe.data.text.tokenization import UlmfitTokenizer, tokenize_dataset
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.training.compute.process_memory import keep_freed_memory
from ulmfit_pipe.training.loop import evaluate
from ulmfit_pipe.training.metrics import LanguageModelMetric
from ulmfit_pipe.training.objectives import SequenceObjective

MAX_EXPONENT = 700.0  # of what math.exp can hold
PLAIN_PERPLEXITY = 1e6  # from here on in scientific form
LONGEST_WORDS = 20.0  # characters per word: beyond, white space does not separate words (Finnish has about 8)


def compared_across_vocabularies(loss: float, *, tokens: int, texts: Dataset) -> dict[str, Any]:
    """Spread the loss over what does not depend on the vocabulary: characters, and words separated by white space.

    Args:
        loss: Mean loss per token, in nats.
        tokens: Tokens it is the mean of.
        texts: Column ``text``, what was read.

    Returns:
        ``bits_per_character`` and ``perplexity_per_word``, None where white space does not separate words.
    """
    letters: Counter[str] = Counter()
    words = 0
    for text in texts["text"]:
        letters.update(text)
        words += len(text.split())
    characters, nats = letters.total(), loss * tokens
    spaced = characters <= LONGEST_WORDS * words and unspaced_share(letters) < 0.5
    return {
        "bits_per_character": nats / (math.log(2) * characters),
        "perplexity_per_word": math.exp(min(nats / words, MAX_EXPONENT)) if spaced else None,
    }


def describe_perplexity(metrics: Mapping[str, Any]) -> str:
    """Return a language model's validation metrics in words.

    Args:
        metrics: What its stage measured: of the next token or, as a pseudo-perplexity, of masked tokens.
    """
    accuracy = f"{metrics['token_accuracy']:.3f}"
    if "pseudo_perplexity" in metrics:
        shown = f"{metrics['pseudo_perplexity']:.2f}"
        return f"validation pseudo-perplexity {shown} per masked token, masked-token accuracy {accuracy}"
    word = metrics.get("perplexity_per_word")
    per_word = "" if word is None else f", {_in_words(word, 1)} per word"
    return (
        f"validation perplexity {_in_words(metrics['perplexity'], 2)} per token{per_word}, "
        f"{metrics['bits_per_character']:.3f} bits per character, next-token accuracy {accuracy}"
    )


def _in_words(perplexity: float, digits: int) -> str:
    return f"{perplexity:.{digits}f}" if perplexity < PLAIN_PERPLEXITY else f"{perplexity:.1e}"


def fitting_batch_size(tokens: int, wanted: int, *, processes: int = 1) -> int:
    """Narrow the batch for a short text, so that a row still holds a few windows, whatever the number of processes.

    Raises:
        ValueError: More processes than rows are wanted.
    """
    if processes > wanted:
        raise ValueError(
            f"{processes} processes cannot share batch_size={wanted}: each needs one row of the stream; set batch_size "
            f"to {processes} or more, or start fewer processes"
        )
    return max(1, min(wanted, tokens // 400))  # 400: rows of at least some five windows of bptt 70-72


def score_language_model(
    model: Any, tokenizer: UlmfitTokenizer, texts: Dataset, *, batch_size: int, context: RunContext
) -> dict[str, Any]:
    """Measure a language model on texts as its stage does: one stream, with carried state.

    Args:
        model: The language model; its configuration gives direction and window.
        tokenizer: Its tokenizer.
        texts: Column ``text``.
        batch_size: Rows of text read side by side; fewer where there is little text.
        context: Device and precision.

    Returns:
        Loss, perplexity and accuracy per token, bits per character, perplexity per word.
    """
    encoded = tokenize_dataset(texts.select_columns(["text"]), tokenizer)
    batches = LanguageModelBatches(
        encoded,
        batch_size=fitting_batch_size(int(read_token_arrays(encoded).lengths.sum()), batch_size),
        bptt=model.config.bptt,
        shuffle=False,
        backward=model.config.direction == "backward",
    )
    model.to(context.accelerator.device)
    if context.accelerator.device.type == "cpu":
        keep_freed_memory()
    objective = SequenceObjective(alpha=0.0, beta=0.0)
    metrics = evaluate(model, batches, objective, LanguageModelMetric(), context.accelerator)
    return {**metrics, **compared_across_vocabularies(metrics["loss"], tokens=batches.tokens_per_epoch, texts=texts)}
