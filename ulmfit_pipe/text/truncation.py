"""How a classifier reads documents: whole, truncated, or in windows; its configuration keeps it for prediction.

An AWD-LSTM reads documents whole. A transformer has a longest input; the rest is truncated (the beginning is kept, or
the beginning and the end) or read in windows whose logits are averaged.

Source: Sun et al. 2019 for the three ways; on IMDb beginning and end together did best.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ulmfit_pipe.data.streams.backbone_batches import BackboneBatches, Windows
from ulmfit_pipe.data.streams.classifier_batches import ClassifierBatches
from ulmfit_pipe.data.text.pretrained_tokenizers import (
    PROBE,
    SpecialTokens,
    encode_documents,
    longest_text,
    special_tokens_of,
)
from ulmfit_pipe.models.heads.window_classifier import WindowsForSequenceClassification, longest_input
from ulmfit_pipe.settings.choices import LongDocuments
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.config_notes import note, notes_of
from ulmfit_pipe.stages.model_folder import NOTES, shown
from ulmfit_pipe.stages.model_names import ArtifactError, ModelName
from ulmfit_pipe.stages.presets import AWD_LSTM

HEAD_SHARE = 128 / 510  # of a truncated document's text from its beginning, the rest from its end: Sun et al. 2019
OVERLAP_SHARE = 1 / 8  # of a window, shared with its neighbour; ours
ROUNDING = 1e-5  # a text's logits may differ by so much in another batch: rounding, in float32
LEAK_SHARE = 0.01  # of the difference between two texts' logits; rounding stays far below it
WINDOWS_INSTEAD = ", and long_documents 'windows' to read all of a longer text"


@dataclass(frozen=True)
class Reading:
    """How documents are read.

    Attributes:
        long_documents: Keep the beginning, beginning and end, or read all in windows.
        max_length: Most tokens of a document, special tokens included; None for no bound.
        window_length: Tokens of a window, special tokens included; None unless there are windows.
        window_overlap: Tokens that neighbouring windows share.
    """

    long_documents: LongDocuments = "truncate"
    max_length: int | None = None
    window_length: int | None = None
    window_overlap: int = 0

    @property
    def longest_pass(self) -> int | None:
        """Most tokens that the model reads at once."""
        return self.max_length if self.window_length is None else self.window_length

    def wrap(self, network: Any) -> Any:
        """Return the module that takes the batches: the network, or one that averages its windows."""
        return network if self.window_length is None else WindowsForSequenceClassification(network)

    def batches(
        self,
        encoded: Dataset | Sequence[Sequence[int]],
        *,
        tokenizer: PreTrainedTokenizerBase,
        config: Any,
        **numbers: Any,
    ) -> ClassifierBatches | BackboneBatches:
        """Make batches of tokenized documents.

        Args:
            encoded: A table with `input_ids` of whole documents, special tokens included, or lists of ids.
            tokenizer: What they were tokenized with.
            config: The network's configuration.
            **numbers: What `ClassifierBatches` takes.
        """
        numbers = {**numbers, "pad_token_id": tokenizer.pad_token_id, "max_length": self.max_length}
        if config.model_type == AWD_LSTM:
            return ClassifierBatches(encoded, **numbers)
        special = special_tokens_of(tokenizer)
        documents = ClassifierBatches(encoded, keep_end=self._kept_end(special), **numbers)
        windows = None if self.window_length is None else Windows(self.window_length, self.window_overlap)
        return BackboneBatches(documents, special, windows=windows, pad_left=pads_left(config))

    def _kept_end(self, special: SpecialTokens) -> int:
        if self.max_length is None or self.long_documents != "head-tail":
            return len(special.suffix)
        text = self.max_length - special.count
        return len(special.suffix) + text - round(text * HEAD_SHARE)


def choose_reading(
    settings: "ClassifierSettings", network: Any, tokenizer: PreTrainedTokenizerBase, *, model: ModelName
) -> Reading:
    """Return how the settings want documents read by a transformer, after a check of it.

    It is written where prediction, plain transformers, and further training will find it. Arguments and errors are
    those of `reading_for` and `refuse_leaking_padding`.
    """
    reading = reading_for(settings, network, tokenizer, model=model)
    note(network.config, **dataclasses.asdict(reading), longest=_longest(network, tokenizer))
    tokenizer.padding_side = "left" if pads_left(network.config) else "right"
    if reading.longest_pass is not None:
        tokenizer.model_max_length = reading.longest_pass  # from here on the tokenizer's bound is ours
    refuse_leaking_padding(network, tokenizer, reading, model=model)
    return reading


def reading_for(
    settings: "ClassifierSettings", network: Any, tokenizer: PreTrainedTokenizerBase, *, model: ModelName
) -> Reading:
    """Return how the settings want documents read by a network.

    Args:
        settings: Settings of the classifier stage.
        network: The classifier.
        tokenizer: Its tokenizer.
        model: What the user calls it, for messages.

    Raises:
        ValueError: More tokens are asked for than the network reads, or so few that no text fits.
    """
    longest, special = _longest(network, tokenizer), special_tokens_of(tokenizer).count
    if settings.long_documents != "windows":
        _check_length("max_length", settings.max_length, longest, special, model=model)
        return Reading(settings.long_documents, settings.max_length or _usual_length(network, longest))
    _check_length("window_length", settings.window_length, longest, special, model=model)
    length = settings.window_length or _usual_length(network, longest)
    if length is None:
        raise ValueError(f"{model} has no longest input to take for a window; set window_length, 512 is common")
    overlap = int(length * OVERLAP_SHARE) if settings.window_overlap is None else settings.window_overlap
    if overlap >= length - special:
        raise ValueError(
            f"window_overlap {overlap} leaves a window of {length} tokens, {special} of them special, no step forward; "
            f"it must be below {length - special}"
        )
    return Reading("windows", settings.max_length, length, overlap)


def _usual_length(network: Any, longest: int | None) -> int | None:
    """Return the default of the most tokens read; for a sentence encoder, the length it was trained with."""
    known = [length for length in (notes_of(network.config).get("usual_length"), longest) if isinstance(length, int)]
    return min(known, default=None)


def _check_length(name: str, given: int | None, longest: int | None, special: int, *, model: ModelName) -> None:
    if given is not None and longest is not None and given > longest:
        raise ValueError(
            f"{name} {given} is more than {model} reads, {longest} tokens; take {longest} or less"
            f"{'' if name == 'window_length' else WINDOWS_INSTEAD}"
        )
    if given is not None and given <= special:
        raise ValueError(f"{name} {given} leaves no room for text beside the {special} special tokens of {model}")


def saved_reading(network: Any, tokenizer: PreTrainedTokenizerBase) -> Reading:
    """Return a saved classifier's truncation strategy: that of training, or for other programs' the longest input."""
    notes = notes_of(network.config)
    names = [field.name for field in dataclasses.fields(Reading)]
    if names[0] in notes:
        _check_saved(notes, network)
        return Reading(**{name: notes[name] for name in names})
    return Reading(max_length=_longest(network, tokenizer))


def _check_saved(notes: dict[str, Any], network: Any) -> None:
    """Raise if a configuration's notes do not define how documents are read.

    Raises:
        ArtifactError: A value is missing, of another type, or more than the network reads.
    """
    longest = longest_input(network) or math.inf

    def is_length(value: Any, least: int = 1) -> bool:
        """Whether it is a number of tokens."""
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    way, window = notes["long_documents"], notes.get("window_length")
    bound = notes.get("max_length") if window is None else window
    right = {
        "long_documents": way in get_args(LongDocuments) and (way == "windows") == (window is not None),
        "max_length": notes.get("max_length", 0) is None or is_length(notes.get("max_length")),
        "window_length": notes.get("window_length", 0) is None or is_length(window),
        "window_overlap": is_length(notes.get("window_overlap"), 0) and (notes["window_overlap"] < (window or 1)),
        "longest": notes.get("longest") is None or is_length(notes["longest"]),
    }
    for name, fits in right.items():
        if not fits:
            raise ArtifactError(
                f"{network.config._name_or_path or 'the model'} cannot be used: {name} among its {NOTES} entries in "
                f"config.json is {shown(notes.get(name, 'missing'))}, which does not define how texts are read; take "
                "another save"
            )
    if bound is not None and bound > longest:
        raise ArtifactError(
            f"{network.config._name_or_path or 'the model'} cannot be used: by config.json texts are read to "
            f"{bound} tokens, the model reads {longest}; take another save"
        )


def _longest(network: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    notes = notes_of(network.config)
    if "longest" in notes:
        return notes["longest"]
    known = [length for length in (longest_input(network), longest_text(tokenizer)) if length is not None]
    return min(known, default=None)


def pads_left(config: Any) -> bool:
    """Whether padding comes first: XLNet's own head reads the last position, whatever is there."""
    return config.model_type == "xlnet"


def refuse_leaking_padding(
    network: Any, tokenizer: PreTrainedTokenizerBase, reading: Reading, *, model: ModelName
) -> None:
    """Raise if a transformer's logits of a text depend on the texts that it shares a batch with.

    Args:
        network: The classifier.
        tokenizer: Its tokenizer.
        reading: How it reads documents.
        model: What the user calls it, for messages.

    Raises:
        ArtifactError: Padding that a longer neighbour brings changes the logits: the architecture takes no mask.
    """
    short, long = encode_documents(tokenizer, [PROBE, " ".join([PROBE] * 4)])
    was_training = network.training
    network.eval()

    def logits_of(*documents: list[int]) -> Tensor:
        (batch,) = reading.batches(
            documents, tokenizer=tokenizer, config=network.config, batch_size=len(documents), shuffle=False
        )
        row = batch.pop("row")
        with torch.no_grad():
            return reading.wrap(network)(**batch).logits[row.argsort()]  # (documents, num_labels)

    together, alone = logits_of(short, long), logits_of(short)[0]
    network.train(was_training)
    moved, apart = (float((together[row] - alone).abs().max()) for row in (0, 1))
    if moved > max(ROUNDING, LEAK_SHARE * apart):
        raise ArtifactError(
            f"{model} is a {network.config.get_text_config().model_type!r} model, which mixes padding into a text: its "
            "scores would depend on the other texts of a batch; take a model that leaves padding out (BERT, GPT-2, ...)"
        )


def describe_long(batches: ClassifierBatches | BackboneBatches, reading: Reading, *, what: str) -> list[str]:
    """Return a line on how many texts are truncated, and one on how many are read in windows, if any.

    Args:
        batches: The batches of the texts.
        reading: How they are read.
        what: Which texts they are.
    """
    documents = _documents(batches)
    lines = [describe_cut(count_cut(batches, reading), documents.documents, reading, what=what)]
    if reading.window_length is not None and (long := documents.longer_than(reading.window_length)):
        share = _share(long, documents.documents, what)
        lines.append(f"{share} are longer than {reading.window_length} tokens and are read in windows")
    return [line for line in lines if line]


def count_cut(batches: ClassifierBatches | BackboneBatches, reading: Reading) -> int:
    """Return how many texts of some batches are truncated."""
    return 0 if reading.max_length is None else _documents(batches).longer_than(reading.max_length)


def describe_cut(cut: int, total: int, reading: Reading, *, what: str) -> str:
    """Return a line on how many texts are truncated, or an empty one if none is."""
    if not cut:
        return ""
    kept = "beginning and end are" if reading.long_documents == "head-tail" else "the beginning is"
    more = "" if reading.long_documents == "windows" else "; long_documents windows reads all of a text"
    share = _share(cut, total, what)
    return f"{share} are longer than {reading.max_length} tokens and are truncated, {kept} kept{more}"


def _share(count: int, total: int, what: str) -> str:
    return f"{count:,} of {total:,} {what} ({100 * count / total:.1f} %)"


def _documents(batches: ClassifierBatches | BackboneBatches) -> ClassifierBatches:
    return batches.documents if isinstance(batches, BackboneBatches) else batches
