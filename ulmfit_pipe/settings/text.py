"""Hyperparameters of the two text stages: language model and classifier."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ulmfit_pipe.settings.checks import (
    added_setting,
    check_above_zero,
    check_types,
    check_whole,
    with_home_paths,
)
from ulmfit_pipe.settings.values import shorten

SHOWN_CLASSES = 12  # listed in a message


@dataclass(frozen=True)
@with_home_paths
class LanguageModelSettings:
    """Settings of the language-model stage; null takes the preset's.

    Attributes:
        epochs: Epochs of the phase that trains every layer group.
        frozen_epochs: Epochs of the first phase, where the preset has one that trains only embedding and decoder.
        lr: Base learning rate.
        plan: The preset's phases, all groups at once, gradual unfreezing (a transformer's blocks in three bundles), or
            (what a model from scratch gets) one cycle with one rate for all groups.
        batch_size: Rows or blocks of text read side by side, over all processes.
        bptt: Tokens of an AWD-LSTM's window.
        variable_bptt: Vary the window's length from step to step, as AWD-LSTM does.
        block_size: Most tokens of a transformer's block, special tokens included; null takes 128, or the model's
            longest input if that is shorter.
        mask_probability: Share of the tokens that a masked language model has to guess; null takes BERT's 0.15.
        whole_word_masking: Whether a masked language model has to guess whole words instead of single tokens.
        drop_mult: Multiplies the five dropouts of an AWD-LSTM; smaller for small models or much text.
        alpha: Weight of AR, an AWD-LSTM's penalty on large activations; null takes the preset's, 0 suits a model that
            underfits.
        beta: Weight of TAR, the penalty on their change over time; the same.
        tokenizer: For a pretrained model keep its subword tokenizer, or build a new vocabulary of a kind and carry
            known rows over; auto keeps subwords and rebuilds words. From scratch auto is unigram.
        tokenizer_of: Folder or name of a model whose tokenizer a model from scratch takes over as it is, such as the
            forward counterpart of a backward model; null makes one.
        vocab_size: Largest size of a new vocabulary; null takes 15,000 subwords, or the preset's number of words.
        min_count: Rarest word that a new word vocabulary keeps.
        embedding_size: Of a model from scratch.
        hidden_size: Of a model from scratch.
        num_hidden_layers: Of a model from scratch.
        direction: Read text forward or backward.
        accumulation_steps: Micro-batches an optimizer step.
        num_workers: Processes that tokenize; null decides.
    """

    epochs: int | None = None
    frozen_epochs: int | None = None
    lr: float | None = None
    plan: Literal["preset", "full", "gradual", "pretrain"] = "preset"
    batch_size: int | None = None
    bptt: int | None = None
    variable_bptt: bool = False
    block_size: int | None = added_setting(None)
    mask_probability: float | None = added_setting(None)
    whole_word_masking: bool = added_setting(False)
    drop_mult: float = 1.0
    alpha: float | None = None
    beta: float | None = None
    tokenizer: Literal["auto", "keep", "unigram", "bpe", "word"] = "auto"
    tokenizer_of: str | None = None
    vocab_size: int | None = None
    min_count: int | None = None
    embedding_size: int | None = None
    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    direction: Literal["forward", "backward"] = "forward"
    accumulation_steps: int = 1
    num_workers: int | None = None

    def __post_init__(self) -> None:
        """Refuse settings that no training can use, before it begins."""
        check_types(self)
        ones = ("epochs", "frozen_epochs", "batch_size", "bptt", "vocab_size", "min_count", "embedding_size")
        more = ("hidden_size", "num_hidden_layers", "accumulation_steps", "num_workers", "block_size")
        check_whole(self, dict.fromkeys((*ones, *more), 1))
        check_above_zero(self, "lr", "mask_probability")
        if self.mask_probability is not None and not self.mask_probability < 1:
            raise ValueError(
                f"mask_probability must lie in (0, 1), got {self.mask_probability!r}; 0.15 is BERT's value"
            )
        makes_one = [name for name in ("vocab_size", "min_count") if getattr(self, name) is not None]
        makes_one += ["tokenizer"] if self.tokenizer != "auto" else []
        if self.tokenizer_of is not None and makes_one:
            raise ValueError(
                f"tokenizer_of takes the tokenizer of {self.tokenizer_of} as it is, so {makes_one[0]} has no meaning; "
                "leave one of the two out"
            )
        if not self.drop_mult >= 0:
            raise ValueError(f"drop_mult must be 0 or more, got {self.drop_mult!r}; 1 keeps the preset's dropouts")
        for name in ("alpha", "beta"):
            if (value := getattr(self, name)) is not None and not value >= 0:
                raise ValueError(f"{name} must be 0 or more, got {value!r}; 0 takes the penalty away")


SINGLE_LABEL_METRICS = ("accuracy", "macro_f1", "loss")  # the first chooses the best epoch by default
MULTI_LABEL_METRICS = ("micro_f1", "macro_f1", "mean_average_precision", "loss")


@dataclass(frozen=True)
class ClassifierSettings:
    """Settings of the classifier stage; null takes the preset's.

    Attributes:
        plan: probe sets the head by logistic regression on the frozen network's features and stops there, a classifier
            in seconds; probe-full then trains all groups for a number of steps that follows from the rows. auto is
            probe-full for a pretrained transformer; for an AWD-LSTM with fewer than 500 rows and none held out it is
            probe-full or probe, whichever is better on held-out folds of the rows; otherwise, or where lr or
            epochs_per_phase is given, the preset's phases (preset). Other ways to unfreeze: gradual, chain-thaw, lp-ft
            (head to convergence, then all), head (the head only), full (all groups at once).
        epochs_per_phase: Epochs of each phase that leaves something frozen; for lp-ft the most of the head's.
        final_epochs: Epochs of the last phase.
        lr: Learning rate of the head; of the head alone where a preset, such as transformer, lowers it later.
        rest_lr: Learning rate of chain-thaw, and of lp-ft and preset transformer once more than the head trains; null
            takes the preset's last phase's.
        lr_decay: Ratio of neighbouring groups' rates in the plans gradual and full; 1 for equal rates, null takes the
            preset's (2.6, transformer 1.11).
        schedule: Curve of every phase; preset takes the preset's. The head of lp-ft always trains at a constant rate.
        batch_size: Documents of a step, over all processes.
        max_tokens: Bound on the tokens of a batch, padding included; null for no bound.
        drop_mult: Multiplies the five dropouts of the preset's classifier; for an AWD-LSTM.
        max_length: Truncate documents to this many tokens; null reads them whole, or up to a transformer's limit.
        gradient_window: Tokens at a document's end that keep gradients; null takes the model's. For an AWD-LSTM.
        class_weights: balanced weighs each class by the inverse of its frequency; where a text may have several labels,
            the texts with a label as much in all as those without it. Or a weight for each class by its name,
            {spam: 3}; a class that is not named weighs 1.
        label_smoothing: In [0, 1).
        monitor: Validation metric that chooses the best epoch; null takes accuracy (micro_f1 for multi-label).
        keep: End with the weights of the best epoch on validation data, or of the last epoch; auto takes the best
            where there are validation rows.
        frozen_dropout: Dropout inside frozen groups, on or off.
        train_norm: Whether norm layers of frozen groups train; null takes the preset's.
        norm_statistics: What the head's batch norms predict with: the running statistics of training, or (recomputed)
            those of one pass over the training rows without dropout, taken when training is over.
        from_scratch: Discard the pretrained weights and start from random ones: the baseline.
        accumulation_steps: Micro-batches an optimizer step.
        num_workers: Processes that tokenize; null decides.
        head: auto reads a sentence encoder's folder as it was made (its pooling and a linear layer) and gives any other
            transformer its own head, which plain transformers loads (own); concat-pooling, with ULMFiT's two blocks; or
            mean-pooling, the mean over a text's tokens and a linear layer.
        long_documents: What a transformer does with a text longer than it reads: truncate keeps the beginning,
            head-tail beginning and end, windows reads all of it and averages the windows' logits.
        window_length: Tokens of a window; null takes the longest that the model reads.
        window_overlap: Tokens that neighbouring windows share; null takes an eighth of a window.
        block_groups: Bundle a transformer's blocks into this many layer groups; null makes each block one.
        cache_frozen: Run frozen groups once per text in each phase, and train the others from what they gave, wherever
            that gives the same weights up to rounding (no dropout in them, see frozen_dropout); else the reason is
            logged.
        new_head: Put a new head on the encoder of a saved classifier, for other labels than its own; false keeps
            its head, for the same labels.
        calibrate: Divide the logits by a temperature that makes the scores as right as they look (docs/scores.md): one,
            or one a label where a text may have several. Fitted on 100 or more validation rows, or on the probe's
            held-out folds; labels stay what they are.
    """

    plan: Literal["auto", "preset", "probe", "probe-full", "gradual", "chain-thaw", "lp-ft", "head", "full"] = "auto"
    epochs_per_phase: int | None = None
    final_epochs: int | None = None
    lr: float | None = None
    rest_lr: float | None = None
    lr_decay: float | None = None
    schedule: Literal["preset", "slanted-triangular", "one-cycle", "constant"] = "preset"
    batch_size: int | None = None
    max_tokens: int | None = 65_536
    drop_mult: float = 1.0
    max_length: int | None = None
    gradient_window: int | None = None
    class_weights: Literal["none", "balanced"] | dict[str, float] = "none"
    label_smoothing: float = 0.0
    monitor: Literal["loss", "accuracy", "macro_f1", "micro_f1", "mean_average_precision"] | None = None
    keep: Literal["auto", "best", "last"] = "auto"
    frozen_dropout: Literal["on", "off"] = "on"
    train_norm: bool | None = None
    norm_statistics: Literal["running", "recomputed"] = "running"
    from_scratch: bool = False
    accumulation_steps: int = 1
    num_workers: int | None = None
    head: Literal["auto", "own", "concat-pooling", "mean-pooling"] = added_setting("auto")
    long_documents: Literal["truncate", "head-tail", "windows"] = added_setting("truncate")
    window_length: int | None = added_setting(None)
    window_overlap: int | None = added_setting(None)
    block_groups: int | None = added_setting(None)
    cache_frozen: bool = added_setting(False)
    new_head: bool = added_setting(False)
    calibrate: bool = added_setting(True)

    def __post_init__(self) -> None:
        """Refuse settings that no training can use, before it begins."""
        check_types(self)
        ones = ("epochs_per_phase", "final_epochs", "max_tokens", "accumulation_steps", "num_workers", "max_length")
        least = dict.fromkeys((*ones, "window_length", "block_groups"), 1)
        check_whole(self, {**least, "gradient_window": 0, "window_overlap": 0})
        for name in ("window_length", "window_overlap"):
            if getattr(self, name) is not None and self.long_documents != "windows":
                raise ValueError(
                    f"{name} {getattr(self, name)} has a meaning with long_documents 'windows' only, got "
                    f"{self.long_documents!r}; set it, or leave {name} out (max_length truncates documents)"
                )
        check_above_zero(self, "lr", "rest_lr", "lr_decay")
        _check_weights(self.class_weights)
        if self.batch_size == 1:
            raise ValueError(
                "batch_size must be 2 or more, got 1: the head's batch norm takes a variance over the batch"
            )
        check_whole(self, {"batch_size": 2})
        if not self.drop_mult >= 0:
            raise ValueError(f"drop_mult must be 0 or more, got {self.drop_mult!r}; 1 keeps the preset's dropouts")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing!r}; 0.1 is common")

    def check_classes(self, names: Sequence[str]) -> None:
        """Raise unless every class that has a weight is one of the training table's.

        Raises:
            ValueError: It is not; the nearest one is named.
        """
        for name in self.class_weights if isinstance(self.class_weights, dict) else ():
            if name not in names:
                folded = {each.casefold(): each for each in names}
                close = difflib.get_close_matches(name.casefold(), folded, n=1)
                advice = f"did you mean {folded[close[0]]!r}? It has" if close else "it has"
                raise ValueError(
                    f"class_weights names {shorten(name)}, and the training table has no such class; {advice} "
                    f"{', '.join(map(shorten, names[:SHOWN_CLASSES]))}{', ...' if len(names) > SHOWN_CLASSES else ''}"
                )

    def checked_monitor(self, *, multi_label: bool) -> str:
        """Return the metric that chooses the best epoch.

        Raises:
            ValueError: This kind of labels does not have the metric.
        """
        known = MULTI_LABEL_METRICS if multi_label else SINGLE_LABEL_METRICS
        monitor = self.monitor or known[0]
        if monitor not in known:
            kind = "several labels a row" if multi_label else "one label a row"
            raise ValueError(
                f"monitor {monitor!r} is not a metric of a table with {kind}; choose one of {', '.join(known)}"
            )
        return monitor


def _check_weights(weights: Any) -> None:
    if isinstance(weights, str):
        return
    if not weights:
        raise ValueError("class_weights is an empty mapping; name a class, {spam: 3}, or leave it out")
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(
                f"class_weights of {shorten(name)} must be a number above 0, got {weight!r}; 1 is what a class that is "
                "not named weighs"
            )
