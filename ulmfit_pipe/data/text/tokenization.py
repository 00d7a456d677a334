"""Train a tokenizer, name its vocabulary, and turn a table of texts into a table of token ids.

The tokenizer class is in ``ulmfit_tokenizer``; :func:`register_tokenizer` makes ``AutoTokenizer`` know it.
"""

import hashlib
import json
import logging
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import datasets
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from ulmfit_pipe.console import Work, working
from ulmfit_pipe.data.progress_bars import bars_on_a_terminal_only
from ulmfit_pipe.data.tables.column_names import shown_names
from ulmfit_pipe.data.text.english_words import cut_words
from ulmfit_pipe.data.text.pretrained_tokenizers import encode_documents, tokenizer_key
from ulmfit_pipe.data.text.text_facts import unspaced_share
from ulmfit_pipe.data.text.text_rules import SPECIAL_TOKENS, UNK
from ulmfit_pipe.data.text.token_cache import cached_tokens
from ulmfit_pipe.data.text.ulmfit_tokenizer import KINDS, UlmfitTokenizer, prepare_text
from ulmfit_pipe.data.text.unigram_training import MAX_WORD_LENGTH, train_unigram

# Punctuation is listed, not asked from Unicode, so that Python and the backend split words alike.
_PUNCTUATION = r"!-/:-@\[-`{-~¡-©«-±´¶-¸»¿×÷‐-‧‰-⁞、-〃〈-〟！-／：-＠"
_LETTER = rf"[^{_PUNCTUATION}▁\s]"
# A word after its space mark is split into: an English ending, a run of letters, a run of punctuation.
_SUBWORD_PATTERN = rf"['’](?:s|t|re|ve|m|ll|d)(?!{_LETTER})|▁?{_LETTER}+|▁?[{_PUNCTUATION}]+|▁"
_SPECIAL_WORD = re.compile(rf"\b(?:{'|'.join(SPECIAL_TOKENS)})\b")
_ALPHABET = string.ascii_lowercase + string.digits + "▁"  # pieces of every subword vocabulary
MIN_CHARACTER_COUNT = 5  # a rarer character gets no piece of its own and becomes xxunk (unigram)
UNSPACED_TEXT = 0.1  # share of the letters in scripts without spaces from which runs between spaces are split
UNSPACED_CHARACTER_COUNT = 2  # there, where characters are thousands and each is much of a word's meaning
NEVER_CHOSEN = -1000.0  # log probability of a special token as a piece: only its whole word gives it
MAX_COUNTED_WORDS = 2_000_000  # words seen once are forgotten beyond this, to bound memory
TABLE_ROWS = 256  # rows tokenized and written at once

logger = logging.getLogger(__name__)


def train_tokenizer(
    texts: Iterable[str], *, kind: str = "unigram", vocab_size: int = 15_000, min_count: int = 3
) -> UlmfitTokenizer:
    """Learn a vocabulary from documents; the same documents give the same vocabulary, in any process.

    Args:
        texts: Raw documents, read once and not kept: memory holds the distinct words only.
        kind: ``"unigram"`` (subwords; a character never seen in training is ``xxunk``), ``"bpe"`` (subwords over
            bytes; nothing is unknown) or ``"word"`` (words and punctuation; a rare word is ``xxunk``).
        vocab_size: Most entries, the nine special tokens among them. A small text may give fewer.
        min_count: A word seen less often gets no entry (``"word"`` only; 3 is fastai's value).

    Raises:
        ValueError: A setting is out of range, a text is not a string, or there is nothing to learn from.

    Source: vocabulary rules of fastai 2.8.12 ``make_vocab`` for words; about 15,000 subwords as MultiFiT
    (Eisenschlos et al. 2019).
    """
    smallest = {"unigram": 100, "bpe": len(SPECIAL_TOKENS) + 256, "word": len(SPECIAL_TOKENS) + 1}
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if vocab_size < smallest[kind]:
        raise ValueError(f"vocab_size must be at least {smallest[kind]} for kind {kind!r}, got {vocab_size}")
    if min_count < 1:
        raise ValueError(f"min_count must be at least 1, got {min_count}")
    segments = _training_segments(texts, words=kind == "word")
    first = next(segments, None)
    if first is None:
        raise ValueError("there is no word to train a vocabulary on: the texts are empty")
    segments = chain([first], segments)
    with working("learning a vocabulary"):
        if kind == "unigram":
            backend = _train_unigram_backend(segments, vocab_size)
        elif kind == "bpe":
            backend = _train_bpe_backend(segments, vocab_size)
        else:
            return build_word_tokenizer([*SPECIAL_TOKENS, *_frequent_words(segments, vocab_size, min_count)])
    return _wrap(backend, kind)


def build_word_tokenizer(tokens: Sequence[str]) -> UlmfitTokenizer:
    """A word tokenizer over a given vocabulary, for example that of a fastai language model.

    Args:
        tokens: The tokens; position = id. The first nine are the special tokens. fastai's repeated filler
            ``xxfake`` is allowed and never comes out of a text.

    Raises:
        ValueError: A token other than ``xxfake`` occurs twice, or the first nine are not the special tokens.
    """
    vocabulary: dict[str, int] = {}
    for number, token in enumerate(tokens):
        name = f"xxfake {number}" if token == "xxfake" else token  # no word of a text holds a space
        if name in vocabulary:
            raise ValueError(f"token {token!r} is there twice in the vocabulary, at {vocabulary[name]} and {number}")
        vocabulary[name] = number
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")  # UlmfitTokenizer puts a space between words
    return _wrap(backend, "word")


def tokenize_dataset(
    dataset: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    num_proc: int | None = None,
    cache_dir: str | Path | None = None,
) -> datasets.Dataset:
    """Token ids of every text, in a cached file that is found again when the same texts come back.

    Args:
        dataset: A table with a column ``text``, and perhaps ``label``.
        tokenizer: Ours or a pretrained transformer's; applied without truncation or padding.
        num_proc: Processes to use; None is one, in which the backend has a thread per core.
        cache_dir: Where the file is kept; None is `token_cache_folder`.

    Returns:
        ``input_ids`` (list of int32 per row), and ``label`` as it was. Other columns are dropped.

    Raises:
        ValueError: There is no column ``text``, or ``num_proc`` is below 1.
    """
    if "text" not in dataset.column_names:
        raise ValueError(f"the table needs a column 'text', it has {shown_names(dataset.column_names)}")
    if num_proc is not None and num_proc < 1:
        raise ValueError(f"num_proc must be at least 1, got {num_proc}")
    kept = [name for name in ("text", "label") if name in dataset.column_names]
    dataset = dataset.select_columns(kept)
    key = _content_key(dataset, tokenizer)
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
    if "label" in kept:
        features["label"] = dataset.features["label"]

    def encode(folder: Path) -> datasets.Dataset:
        """Tokenize every row; the ids go to files in the folder."""
        several = num_proc is not None and num_proc > 1 and len(dataset) > 1
        with bars_on_a_terminal_only(), working("tokenizing", total=len(dataset), unit="texts") as work:
            return dataset.map(
                _encode_rows if several else _counting(work),
                fn_kwargs={"tokenizer": tokenizer},
                batched=True,
                batch_size=TABLE_ROWS,
                writer_batch_size=TABLE_ROWS,
                remove_columns=["text"],
                features=features,
                num_proc=min(num_proc or 1, len(dataset)) if several else None,
                cache_file_name=str(folder / "tokens.arrow"),
                load_from_cache_file=False,
                new_fingerprint=key,
                desc="Tokenizing",
            )

    folder = None if cache_dir is None else Path(cache_dir)
    return cached_tokens(key, rows=len(dataset), make=encode, folder=folder)


class _TokenizerOnlyConfig(PreTrainedConfig):
    """Placeholder for a model: AutoTokenizer registers a tokenizer class only together with a configuration."""

    model_type = "ulmfit_tokenizer_only"


def register_tokenizer() -> None:
    """Make ``AutoTokenizer.from_pretrained`` know :class:`UlmfitTokenizer`; doing it twice does no harm."""
    AutoTokenizer.register(_TokenizerOnlyConfig, tokenizer_class=UlmfitTokenizer, exist_ok=True)


def tokens_in_order(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """All tokens of a vocabulary; position = id.

    Raises:
        ValueError: The ids have a gap, so that positions would not be ids.
    """
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    for position, token in enumerate(tokens):
        if vocabulary[token] != position:
            raise ValueError(f"the vocabulary has no token with id {position}, the next one has {vocabulary[token]}")
    return tokens


def vocab_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hexadecimal) over the tokens in id order: the fingerprint of a vocabulary."""
    return hash_tokens(tokens_in_order(tokenizer))


def hash_tokens(tokens: Sequence[str]) -> str:
    """SHA-256 (hexadecimal) of a list of tokens in id order, as :func:`vocab_hash` gives it."""
    return hashlib.sha256(json.dumps(list(tokens)).encode()).hexdigest()


def _training_segments(texts: Iterable[str], *, words: bool) -> Iterator[str]:
    """Yield prepared texts, split into words if asked, without special tokens and without blank parts."""
    if isinstance(texts, str):
        raise ValueError("texts must be many documents, got one string; put it in a list")
    for number, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise ValueError(f"every text must be a string, number {number} is {text!r}")
        prepared = prepare_text(text)
        for segment in _SPECIAL_WORD.split(" ".join(cut_words(prepared)) if words else prepared):
            if segment and not segment.isspace():
                yield segment


def _train_unigram_backend(segments: Iterable[str], vocab_size: int) -> Tokenizer:
    counts = _count_subwords(segments)
    characters: Counter[str] = Counter()
    for word, count in counts.items():
        for character in word:
            characters[character] += count
    num_pieces = vocab_size - len(SPECIAL_TOKENS)
    unspaced = unspaced_share(characters) >= UNSPACED_TEXT
    least = UNSPACED_CHARACTER_COUNT if unspaced else MIN_CHARACTER_COUNT
    frequent = [c for c in sorted(characters, key=lambda c: (-characters[c], c)) if characters[c] >= least]
    alphabet = {*_ALPHABET, *frequent[: num_pieces // 2]}
    if unspaced:
        counts = _cut_runs(counts, alphabet)
    pieces = train_unigram(counts, num_pieces=num_pieces, alphabet=alphabet)
    vocabulary = [(token, NEVER_CHOSEN) for token in SPECIAL_TOKENS]
    vocabulary += [(piece, score) for piece, score in pieces if piece not in SPECIAL_TOKENS]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(prepend_scheme="always", split=False),
            pre_tokenizers.Split(Regex(_SUBWORD_PATTERN), "isolated"),
        ]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    return backend


def _count_subwords(segments: Iterable[str]) -> Counter[str]:
    words: Counter[str] = Counter()
    for segment in segments:
        words.update(segment.split())
        if len(words) > MAX_COUNTED_WORDS:
            words = Counter({word: count for word, count in words.items() if count > 1})
    counts: Counter[str] = Counter()
    cut = re.compile(_SUBWORD_PATTERN)
    for word, count in words.items():
        for part in cut.findall(f"▁{word}"):
            counts[part] += count
    return counts


def _cut_runs(counts: Counter[str], alphabet: set[str]) -> Counter[str]:
    """Split overlong words where a character is not in the alphabet, and at the greatest length trained on."""
    parts: Counter[str] = Counter()
    for word, count in counts.items():
        for known, run in groupby(word, key=alphabet.__contains__):
            text = "".join(run) if known else ""
            for start in range(0, len(text), MAX_WORD_LENGTH):
                parts[text[start : start + MAX_WORD_LENGTH]] += count
    return parts


def _train_bpe_backend(segments: Iterable[str], vocab_size: int) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(segments, trainer)
    return backend


def _frequent_words(segments: Iterable[str], vocab_size: int, min_count: int) -> list[str]:
    """Words seen often enough, most frequent first, equal ones in alphabetical order."""
    backend = Tokenizer(models.WordLevel(unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, min_frequency=min_count, show_progress=False)
    backend.train_from_iterator(segments, trainer)
    vocabulary = backend.get_vocab()
    words = [word for word in sorted(vocabulary, key=vocabulary.__getitem__) if word not in SPECIAL_TOKENS]
    if not words:
        raise ValueError(f"no word occurs min_count={min_count} times; give more text or a smaller min_count")
    return words[: vocab_size - len(SPECIAL_TOKENS)]


def _wrap(backend: Tokenizer, kind: str) -> UlmfitTokenizer:
    backend.add_special_tokens(
        [AddedToken(token, single_word=True, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    tokenizer = UlmfitTokenizer(tokenizer_object=backend, kind=kind)
    logger.info("%s tokenizer with %d tokens", kind, len(tokenizer))
    return tokenizer


def _encode_rows(rows: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
    return {"input_ids": encode_documents(tokenizer, rows["text"])}


def _counting(work: Work) -> Callable[..., dict[str, list[Any]]]:
    """Return `_encode_rows` that notes how far it is, for this process."""

    def encode(rows: dict[str, list[Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
        """Tokenize rows."""
        encoded = _encode_rows(rows, tokenizer)
        work.advance(len(rows["text"]))
        return encoded

    return encode


def _content_key(dataset: datasets.Dataset, tokenizer: PreTrainedTokenizerBase) -> str:
    digest = hashlib.sha256(tokenizer_key(tokenizer).encode())
    digest.update(repr(dataset.features).encode())
    for table in dataset.with_format("arrow").iter(batch_size=TABLE_ROWS):
        digest.update(json.dumps(table.to_pydict()).encode())
    return digest.hexdigest()[:32]
