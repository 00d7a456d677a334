"""The tokenizer class: clean-up rules, then words or subwords, then ids; saved and loaded the transformers way.

A :class:`UlmfitTokenizer` is a fast transformers tokenizer whose every way in (call, ``encode``, ``tokenize``) first
applies the rules of ``text_rules``. They put ``xxbos`` before every document; nothing else is added.

Special tokens have the ids 0-8 in every vocabulary and are never split. A text that already holds such a word
(``xxmaj``, alone between spaces or punctuation) gets the token, as in fastai; ``xxpad`` alone is read as ``xxunk``,
so that no text can be mistaken for padding.

A saved folder has its vocabulary in ``ulmfit_tokenizer.json``, not ``tokenizer.json``: a program that does not know
this class then stops instead of tokenizing without the rules.
"""

import os
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import BatchEncoding, PreTrainedTokenizerFast

from ulmfit_pipe.data.text.english_words import cut_words
from ulmfit_pipe.data.text.remembered_words import RememberedWords
from ulmfit_pipe.data.text.text_rules import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, apply_rules, undo_marks

BACKEND_FILE = "ulmfit_tokenizer.json"
KINDS = ("unigram", "bpe", "word")
_WORD_BEGINS = {"unigram": "▁", "bpe": "Ġ", "word": ""}  # how the first token of a word does, by kind
LONGEST_WORD = 1000  # characters; a longer run without a space is split, to bound time and memory
REMEMBERED_BYTES = 64 * 2**20  # of words and their ids that are kept: some 200,000 words of a language
CHARACTERS_AT_ONCE = 1_000_000  # of texts split into words before their new words go to the backend together
MARKS_AT_ONCE = 30
COMPOSED_MARKS = (0x0F73, 0x0F75, 0x0F81)  # Tibetan vowels that NFC takes apart into marks

_LITERAL_PAD = re.compile(rf"\b{PAD}\b")
_ENDLESS_WORD = re.compile(rf"\S{{{LONGEST_WORD}}}")


class UlmfitTokenizer(PreTrainedTokenizerFast):
    """A fast tokenizer that applies the text rules before it splits a document into tokens.

    Made by ``tokenization.train_tokenizer`` and ``build_word_tokenizer``, or loaded with ``from_pretrained``.

    Args:
        backend_file: The saved backend; ``from_pretrained`` finds it in the folder.
        kind: ``"unigram"``, ``"bpe"`` or ``"word"``.
        tokenizer_object: A backend in memory, in place of the file.
        **kwargs: What transformers stores in ``tokenizer_config.json``.

    Raises:
        ValueError: ``kind`` is unknown, the backend is missing, or its first ids are not the special tokens.
    """

    vocab_files_names = {"backend_file": BACKEND_FILE}  # noqa: RUF012  # transformers reads it from the class
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "right"

    def __init__(
        self,
        backend_file: str | None = None,
        *,
        kind: str = "unigram",
        tokenizer_object: Tokenizer | None = None,
        **kwargs: Any,
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        self.kind = kind
        if tokenizer_object is None:
            tokenizer_object = _load_backend(backend_file, kwargs.get("name_or_path"))
        first = tuple(tokenizer_object.id_to_token(number) for number in range(len(SPECIAL_TOKENS)))
        if first != SPECIAL_TOKENS:
            raise ValueError(f"ids 0-8 must be {' '.join(SPECIAL_TOKENS)}, this vocabulary has {first}")
        kwargs.update(unk_token=UNK, pad_token=PAD, bos_token=BOS, eos_token=EOS)
        kwargs["extra_special_tokens"] = list(SPECIAL_TOKENS[4:])
        self._auto_map = {"AutoTokenizer": [None, "tokenization_ulmfit.UlmfitTokenizer"]}
        self._remembered = _no_words()
        self._remembered_size = -1
        silence_fork_warning()
        super().__init__(tokenizer_object=tokenizer_object, kind=kind, **kwargs)

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many documents, any length, without truncation or padding: the fast way in.

        No token spans a space, so each distinct word is tokenized once and its ids are cached.

        Args:
            texts: Raw documents.

        Returns:
            One list of ids per document, the same as ``self(text)["input_ids"]``.
        """
        if self._remembered_size != len(self):
            self._remembered, self._remembered_size = _no_words(), len(self)
        ids: list[list[int]] = []
        waiting: list[list[str]] = []
        characters = 0
        for text in texts:
            words = self._words(text)
            waiting.append(words)
            characters += len(text)
            if characters >= CHARACTERS_AT_ONCE:
                ids += self._encode_words(waiting)
                waiting, characters = [], 0
        return ids + self._encode_words(waiting)

    def _words(self, text: str) -> list[str]:
        prepared = prepare_text(text)
        return cut_words(prepared) if self.kind == "word" else prepared.replace("\n", " ").split(" ")

    def prepared(self, text: str) -> str:
        """Return the text as the backend splits it: with spaces between its words, as for ``_words``."""
        prepared = prepare_text(text)
        return " ".join(cut_words(prepared)) if self.kind == "word" else prepared

    def _encode_words(self, documents: list[list[str]]) -> list[list[int]]:
        known = self._remembered.known
        missing = list(set().union(*documents).difference(known))
        if missing:
            self.backend_tokenizer.no_truncation()
            self.backend_tokenizer.no_padding()
            for word, encoding in zip(missing, self.backend_tokenizer.encode_batch_fast(missing), strict=True):
                self._remembered.add(word, encoding.ids)
        ids = [list(chain.from_iterable(map(known.__getitem__, words))) for words in documents]
        self._remembered.forget_if_full()
        return ids

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or another process gets: everything but the remembered words."""
        return {**self.__dict__, "_remembered": _no_words()}

    def _encode_plus(self, *args: Any, **kwargs: Any) -> BatchEncoding:
        """Every public way in ends here: check the texts, apply the rules, and let transformers do the rest."""
        text, *rest = args or (kwargs.pop("text"),)
        if rest or kwargs.get("text_pair") is not None:
            raise ValueError("pairs of texts are not supported; join them first with text_rules.join_fields")
        if kwargs.get("is_split_into_words"):
            raise ValueError("is_split_into_words is not supported: the text rules need the whole text")
        if isinstance(text, str):
            return super()._encode_plus(text=self.prepared(text), **kwargs)
        if not isinstance(text, list | tuple):
            raise ValueError(f"the text must be a string or a list of strings, got {text!r}")
        for position, document in enumerate(text):
            if not isinstance(document, str):
                raise ValueError(f"every text must be a string, number {position} of the batch is {document!r}")
        if not text:
            return BatchEncoding({name: [] for name in self.model_input_names})
        return super()._encode_plus(text=[self.prepared(document) for document in text], **kwargs)

    def _decode(
        self,
        token_ids: int | list[int],
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Text of ids; ``skip_special_tokens=True`` also turns marks back into capitals and repeats.

        Ids that do not begin with ``xxbos`` continue a text: the space before their first word is kept, so that they
        can be put behind what came before (as transformers' text-generation pipeline does). One id alone has none.
        """
        ids = [token_ids] if isinstance(token_ids, int) else list(token_ids)
        parts: list[str] = []
        run: list[int] = []
        for number in [*ids, 0]:  # the last one only ends the last run
            if number >= len(SPECIAL_TOKENS):
                run.append(number)
                continue
            if run:
                parts.append(self.backend_tokenizer.decode(run).strip(" "))
                run = []
            parts.append(SPECIAL_TOKENS[number])
        text = " ".join(parts[:-1])
        if not isinstance(token_ids, int) and self._goes_on_with_a_word(ids):
            text = f" {text}"
        return undo_marks(text) if skip_special_tokens else text

    def _goes_on_with_a_word(self, ids: list[int]) -> bool:
        """Return whether ids come from inside a text, where a space is before the first of them."""
        if not ids or ids[0] == self.bos_token_id:
            return False
        token = self.backend_tokenizer.id_to_token(ids[0]) or ""
        return ids[0] < len(SPECIAL_TOKENS) or token.startswith(_WORD_BEGINS[self.kind])

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        name = f"{filename_prefix}-{BACKEND_FILE}" if filename_prefix else BACKEND_FILE
        path = os.path.join(save_directory, name)
        self.backend_tokenizer.save(path)
        return (*file_names, path)


def _no_words() -> RememberedWords[list[int]]:
    return RememberedWords(REMEMBERED_BYTES)


def prepare_text(text: str) -> str:
    """A document as the backend sees it: rules applied, Unicode composed (NFC), fit for UTF-8.

    Lone surrogates become U+FFFD, ``xxpad`` becomes ``xxunk``, and a run of more than 1000 characters without a
    space is cut.
    """
    text = apply_rules(text)
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        text = _compose(text)
    if PAD in text:
        text = _LITERAL_PAD.sub(UNK, text)
    if len(text) > LONGEST_WORD and max(map(len, text.split())) > LONGEST_WORD:
        text = _ENDLESS_WORD.sub(r"\g<0> ", text)
    return text


def _compose(text: str) -> str:
    """Return the text in NFC, runs of more than 30 combining marks a part at a time.

    Composing sorts the marks behind a letter, in a time that is the square of their number.

    Source: Unicode Standard Annex 15, section 13, stream-safe text format: 30 are more than any language needs.
    """
    if len(text) <= MARKS_AT_ONCE:
        return unicodedata.normalize("NFC", text)
    known = _marks()
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)  # (characters,)
    others = np.flatnonzero(~known[np.minimum(codes, len(known) - 1)])
    edges = np.concatenate([[-1], others, [len(text)]])  # a run of marks is between each and the next
    long = np.flatnonzero(np.diff(edges) > MARKS_AT_ONCE + 1)
    runs = [(int(edges[run]) + 1, int(edges[run + 1])) for run in long]
    cuts = [0, *(cut for begin, end in runs for cut in range(begin + MARKS_AT_ONCE, end, MARKS_AT_ONCE)), len(text)]
    return "".join(unicodedata.normalize("NFC", text[begin:end]) for begin, end in pairwise(cuts))


@cache
def _marks() -> NDArray[np.bool_]:
    """Return for each code point whether it is a combining mark; the last one, no mark, stands for all beyond."""
    known = np.array([unicodedata.combining(chr(code)) > 0 for code in range(0x20000)])
    known[list(COMPOSED_MARKS)] = True
    return known


def _load_backend(backend_file: str | None, folder: str | None) -> Tokenizer:
    if backend_file is None:
        raise ValueError(
            f"there is no {BACKEND_FILE} in {folder or 'the given folder'}: it is not a saved UlmfitTokenizer, "
            "or it was copied without that file"
        )
    try:
        return Tokenizer.from_str(Path(backend_file).read_text(encoding="utf-8"))
    except Exception as error:  # the backend raises bare Exception for any broken file
        raise ValueError(f"{backend_file} is cut short or is not a tokenizer: {error}") from error


_fork_warning_silenced = False


def silence_fork_warning() -> None:
    """Keep the backend's "process just got forked" warning from users, without slowing this process.

    The backend warns in a forked child unless ``TOKENIZERS_PARALLELISM`` is set. It is set to what the backend
    would do anyway (one thread in the child), during the fork only; a value that the user chose is left alone.
    """
    global _fork_warning_silenced  # noqa: PLW0603
    if _fork_warning_silenced or not hasattr(os, "register_at_fork"):
        return
    _fork_warning_silenced = True
    name, placed = "TOKENIZERS_PARALLELISM", []

    def before() -> None:
        if name not in os.environ:
            os.environ[name] = "false"
            placed.append(name)

    def after_in_parent() -> None:
        if placed:
            placed.clear()
            os.environ.pop(name, None)

    os.register_at_fork(before=before, after_in_parent=after_in_parent)
