"""How a sentence encoder was made to be read: the files that sentence-transformers writes beside a model's weights.

Source: sentence-transformers' layout, ``modules.json`` with a folder a module (``1_Pooling/config.json``, ...),
``sentence_bert_config.json`` and ``config_sentence_transformers.json``.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ulmfit_pipe.errors import UlmfitError

Pooling: TypeAlias = Literal["mean", "max", "cls", "last"]

MODULES_FILE = "modules.json"
# What sentence-transformers calls a pooling, in files up to version 5 (a flag each) and since (one name).
POOLINGS: dict[str, Pooling] = {
    "mean_tokens": "mean",
    "max_tokens": "max",
    "cls_token": "cls",
    "mean": "mean",
    "max": "max",
    "cls": "cls",
    "lasttoken": "last",
}


class SentenceEncoderError(UlmfitError, ValueError):
    """A sentence encoder's files cannot be read, or ask for what a classifier here does not have."""


@dataclass(frozen=True)
class SentenceEncoder:
    """How a sentence encoder reads a text.

    Attributes:
        pooling: Which of the last layer's outputs become the text's vector.
        normalize: Whether the vector is divided by its length.
        max_length: Most tokens that it was trained on, special tokens included; None where the files do not say.
        prompt: Text put before every text; empty for none.
        lowercase: Whether texts are turned to lower case first.
    """

    pooling: Pooling
    normalize: bool
    max_length: int | None = None
    prompt: str = ""
    lowercase: bool = False

    def describe(self) -> str:
        """Return the encoder's parts in words, for a log line."""
        vector = {"mean": "mean of", "max": "maximum over", "cls": "first of", "last": "last of"}[self.pooling]
        parts = [f"{vector} its tokens", *(["normalized"] if self.normalize else [])]
        if self.max_length is not None:
            parts.append(f"texts up to {self.max_length} tokens")
        if self.prompt:
            parts.append(f"with the prompt {self.prompt!r}")
        return ", ".join(parts)


def read_sentence_encoder(find: Callable[[str], Path | None]) -> SentenceEncoder | None:
    """Read how a model is meant to be read, or return None where it is not a sentence encoder.

    Args:
        find: Returns where a file of the model is, by its path in the model's folder, or None where it has none.

    Raises:
        SentenceEncoderError: A file is not JSON of the kind expected, or names a module or a pooling that a classifier
            here does not have.
    """
    modules = _read(find(MODULES_FILE), list)
    if modules is None:
        return None
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in modules if isinstance(module, dict)]
    paths = {kind: module.get("path", "") for kind, module in zip(kinds, modules, strict=False)}
    if "Pooling" not in kinds or kinds[0] != "Transformer" or set(kinds) - {"Transformer", "Pooling", "Normalize"}:
        raise SentenceEncoderError(f"{MODULES_FILE} names the modules {', '.join(kinds)}")
    own = _read(find("sentence_bert_config.json"), dict) or {}
    prompts = _read(find("config_sentence_transformers.json"), dict) or {}
    length = own.get("max_seq_length")
    is_length = isinstance(length, int) and not isinstance(length, bool) and length > 0
    prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"))
    return SentenceEncoder(
        pooling=_pooling(_read(find(f"{paths['Pooling']}/config.json"), dict) or {}),
        normalize="Normalize" in kinds,
        max_length=length if is_length else None,
        prompt=prompt if isinstance(prompt, str) else "",
        lowercase=own.get("do_lower_case") is True,
    )


def _pooling(config: dict[str, Any]) -> Pooling:
    """Return the pooling that a pooling module's configuration names."""
    named = config.get("pooling_mode")
    if named is not None:
        wanted = [named] if isinstance(named, str) else list(named)
    else:
        wanted = [
            name.removeprefix("pooling_mode_") for name, on in config.items() if name.startswith("pooling_mode_") and on
        ]
    found = [POOLINGS.get(name) for name in wanted]
    if len(found) != 1 or found[0] is None:
        raise SentenceEncoderError(f"it pools by {' and '.join(map(str, wanted)) or 'nothing named'}")
    return found[0]


def _read(path: Path | None, kind: type) -> Any:
    """Return what a JSON file holds, or None where there is no file.

    Raises:
        SentenceEncoderError: It is not JSON, or holds something else than a value of this kind.
    """
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise SentenceEncoderError(f"{path.name} cannot be read ({type(error).__name__})") from error
    if not isinstance(content, kind):
        raise SentenceEncoderError(f"{path.name} does not hold a {kind.__name__}")
    return content
