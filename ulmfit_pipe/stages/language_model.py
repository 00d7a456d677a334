"""The language-model stage: train one from scratch, or fine-tune a pretrained one on the target's text.

The first two steps of ULMFiT. Validation text is never trained on; the stage ends in a folder that the classifier
stage starts from.

Source: Howard & Ruder 2018, sections 3.1 and 3.2.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets import Dataset
from transformers import AutoModelForCausalLM

from ulmfit_pipe.data.lm_batches import LanguageModelBatches
from ulmfit_pipe.data.token_arrays import read_token_arrays
from ulmfit_pipe.data.tokenization import (
    UlmfitTokenizer,
    tokenize_dataset,
    tokens_in_order,
    train_tokenizer,
    vocab_hash,
)
from ulmfit_pipe.models.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.modeling_awd_lstm import AwdLstmForCausalLM
from ulmfit_pipe.models.vocab_transfer import transfer_vocabulary
from ulmfit_pipe.stages.artifacts import ArtifactError, load_config, load_model, load_tokenizer, save_stage
from ulmfit_pipe.stages.finished import StageResult, digest_of, finished_result, training_record
from ulmfit_pipe.stages.language_model_scores import compared_across_vocabularies, fitting_batch_size
from ulmfit_pipe.stages.lineage import lineage_after
from ulmfit_pipe.stages.presets import IMDB_TOKENS, Preset, scale_epochs, with_dropouts
from ulmfit_pipe.stages.run_context import RunContext
from ulmfit_pipe.stages.saved import groups_of
from ulmfit_pipe.stages.setting_checks import check_above_zero, check_choices, check_whole
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.metrics import LanguageModelMetric
from ulmfit_pipe.training.objectives import SequenceObjective
from ulmfit_pipe.training.phases import History, full, gradual_unfreezing
from ulmfit_pipe.training.records import Phase, Task
from ulmfit_pipe.training.schedules import Schedule

SUBWORD_VOCAB_SIZE = 15_000  # about MultiFiT's (Eisenschlos et al. 2019)
SCRATCH_EPOCHS = 10
SCRATCH_LR = 5e-3  # peak of one cycle for a model with no pretrained weights; ours, see `find_learning_rate.py`


@dataclass(frozen=True)
class LanguageModelSettings:
    """Numbers of the language-model stage; null takes the preset's.

    Attributes:
        epochs: Epochs of the phase that trains every layer group.
        frozen_epochs: Epochs of the first phase, where the preset has one that trains only embedding and decoder.
        lr: Base learning rate.
        plan: The preset's phases, all groups at once, gradual unfreezing, or (what a model from scratch gets) one cycle
            with one rate for all groups.
        batch_size: Rows of text read side by side, over all processes.
        bptt: Tokens of a window.
        variable_bptt: Vary the window's length from step to step, as AWD-LSTM does.
        drop_mult: Multiplies the five dropouts; smaller for small models or much text.
        alpha: Weight of AR, the penalty on large activations; null takes the preset's, 0 suits a model that underfits.
        beta: Weight of TAR, the penalty on their change over time; the same.
        tokenizer: For a pretrained model keep its subword tokenizer, or build a new vocabulary of a kind and carry
            known rows over; auto keeps subwords and rebuilds words. From scratch auto is unigram.
        tokenizer_of: Folder or name of a model whose tokenizer a model from scratch takes over as it is, such as the
            forward twin of a backward model; null makes one.
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
        """Refuse numbers that no training could use, before any is begun."""
        check_choices(self)
        ones = ("epochs", "frozen_epochs", "batch_size", "bptt", "vocab_size", "min_count", "embedding_size")
        more = ("hidden_size", "num_hidden_layers", "accumulation_steps", "num_workers")
        check_whole(self, dict.fromkeys((*ones, *more), 1))
        check_above_zero(self, "lr")
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


@dataclass(frozen=True)
class LanguageModelParts:
    """A language model ready to train, with what belongs to it."""

    learner: Learner
    tokenizer: UlmfitTokenizer
    phases: list[Phase]
    pretrained: bool
    tokens: int


def train_language_model(
    train: Dataset,
    validation: Dataset,
    *,
    output_dir: Path | str,
    model: str | None = None,
    settings: LanguageModelSettings | None = None,
    context: RunContext | None = None,
    train_files: Sequence[str | Path] = (),
) -> StageResult:
    """Train or fine-tune a language model on texts and save it with its tokenizer.

    Args:
        train: Column ``text``; what to train on.
        validation: Column ``text``; what to measure perplexity on, never trained on.
        output_dir: Folder to write; a finished stage with the same settings and data is not run again.
        model: Pretrained language model: a folder, a built-in name or a hub id; None trains from scratch.
        settings: Numbers of the stage.
        context: Preset, seed, precision, time.
        train_files: Where the texts came from, for the record: base names are kept.

    Returns:
        The folder, its metrics (loss, perplexity, token accuracy) and seconds.
    """
    settings, context = settings or LanguageModelSettings(), context or RunContext()
    identity = context.identity(settings, model=model, data=digest_of(train["text"], validation["text"]))
    done = finished_result(output_dir, stage="language_model", identity=identity, say=context.tell)
    if done is not None:
        return done
    started = time.perf_counter()
    context.start()
    parts = build_language_model_learner(train, validation, model=model, settings=settings, context=context)
    history = parts.learner.fit_plan(parts.phases)
    if not history.steps:
        left = "as the pretrained one was" if parts.pretrained else "random"
        context.tell(f"language model: max_seconds were over before the first step, so it stays {left}")
    metrics = _final_metrics(parts, history, validation)
    seconds = time.perf_counter() - started

    def write(folder: Path) -> None:
        parts.learner.model.save_pretrained(folder)  # type: ignore[operator]
        parts.tokenizer.save_pretrained(folder)

    record = {
        "identity": identity,
        "model": model,
        "metrics": metrics,
        "seconds": seconds,
        "tokens": parts.tokens,
        "lineage": lineage_after(
            parts.learner, history, metrics, model, context, seconds=seconds, tokens=parts.tokens, files=train_files
        ),
        **training_record(parts.learner, parts.phases, history),
    }
    if context.accelerator.is_main_process:
        save_stage(output_dir, stage="language_model", record=record, write=write)
    context.accelerator.wait_for_everyone()
    context.tell(f"language model saved in {output_dir}: validation perplexity {metrics['perplexity']:.2f}")
    return StageResult(Path(output_dir), metrics, seconds, skipped=False)


def _final_metrics(parts: LanguageModelParts, history: History, validation: Dataset) -> dict[str, float]:
    """Return what validation says of the weights that were kept; it was measured when their epoch ended."""
    metrics = dict(history.best.metrics) if history.best is not None else parts.learner.validate()
    tokens = parts.learner.task.valid_batches.tokens_per_epoch  # type: ignore[union-attr]
    return {**metrics, **compared_across_vocabularies(metrics["loss"], tokens=tokens, texts=validation)}


def build_language_model_learner(
    train: Dataset,
    validation: Dataset,
    *,
    model: str | None = None,
    settings: LanguageModelSettings | None = None,
    context: RunContext | None = None,
) -> LanguageModelParts:
    """Prepare tokenizer, batches, model and phases, without training anything.

    Raises:
        ArtifactError: The model is no AWD-LSTM language model, or its tokenizer is another's.
        ValueError: There is too little text for one batch.
    """
    settings, context = settings or LanguageModelSettings(), context or RunContext()
    recipe = context.recipe
    network, tokenizer = _model_and_tokenizer(train, model, settings, context)
    bptt = settings.bptt or recipe.bptt
    encoded = {
        name: tokenize_dataset(dataset.select_columns(["text"]), tokenizer, num_proc=settings.num_workers)
        for name, dataset in (("train", train), ("validation", validation))
    }
    tokens = _count_tokens(encoded["train"])
    batches = {
        name: LanguageModelBatches(
            dataset,
            batch_size=fitting_batch_size(
                _count_tokens(dataset),
                settings.batch_size or recipe.batch_size,
                processes=context.accelerator.num_processes,
            ),
            bptt=bptt,
            seed=context.seed,
            shuffle=name == "train",
            backward=settings.direction == "backward",
            variable_bptt=settings.variable_bptt and name == "train",
            **context.shares(),
        )
        for name, dataset in encoded.items()
    }
    context.tell(f"language model: {tokens:,} tokens to train on, vocabulary of {len(tokenizer):,}")
    task = Task(
        train_batches=batches["train"],
        objective=_objective(settings, recipe),
        valid_batches=batches["validation"],
        new_metric=LanguageModelMetric,
    )
    groups = groups_of(network)
    learner = Learner(
        network,
        groups,
        task,
        options=context.options(recipe.lm_optimizer, accumulation_steps=settings.accumulation_steps),
        accelerator=context.accelerator,
        monitor="loss",
        pretrained=model is not None,
        say=context.say,
    )
    phases = _phases(len(groups), settings, context, pretrained=model is not None, tokens=tokens)
    return LanguageModelParts(learner, tokenizer, phases, model is not None, tokens)


def _objective(settings: LanguageModelSettings, recipe: Preset) -> SequenceObjective:
    return SequenceObjective(
        alpha=recipe.alpha if settings.alpha is None else settings.alpha,
        beta=recipe.beta if settings.beta is None else settings.beta,
    )


def _count_tokens(encoded: Dataset) -> int:
    return int(read_token_arrays(encoded).lengths.sum())


def _model_and_tokenizer(
    train: Dataset, model: str | None, settings: LanguageModelSettings, context: RunContext
) -> tuple[AwdLstmForCausalLM, UlmfitTokenizer]:
    recipe = context.recipe
    if model is not None and settings.tokenizer_of is not None:
        raise ValueError(
            f"{model} has a tokenizer of its own; leave tokenizer_of ({settings.tokenizer_of}) out, or give model "
            "null to train one from scratch"
        )
    if model is None:
        if settings.tokenizer == "keep":
            raise ValueError("tokenizer 'keep' needs a pretrained model; give one, or a kind: unigram, bpe, word")
        kind = "unigram" if settings.tokenizer == "auto" else settings.tokenizer
        if settings.tokenizer_of is not None:
            tokenizer = load_tokenizer(settings.tokenizer_of)
        else:
            tokenizer = _new_tokenizer(train, kind, settings, context.recipe)
        embedding, hidden, layers = recipe.sizes
        config = AwdLstmConfig(
            vocab_size=len(tokenizer),
            embedding_size=settings.embedding_size or embedding,
            hidden_size=settings.hidden_size or hidden,
            num_hidden_layers=settings.num_hidden_layers or layers,
            pad_token_id=tokenizer.pad_token_id,
            bptt=settings.bptt or recipe.bptt,
            direction=settings.direction,
            vocab_hash=vocab_hash(tokenizer),
        )
        return AwdLstmForCausalLM(with_dropouts(config, recipe.lm_dropouts, settings.drop_mult)), tokenizer
    return _pretrained(train, model, settings, context)


def _pretrained(
    train: Dataset, model: str, settings: LanguageModelSettings, context: RunContext
) -> tuple[AwdLstmForCausalLM, UlmfitTokenizer]:
    config = load_config(model)
    if getattr(config, "model_type", None) != "awd_lstm":
        raise ArtifactError(
            f"{model} is a {getattr(config, 'model_type', 'model of unknown type')!r} model; the language-model stage "
            "trains 'awd_lstm' models; give a folder written by recipes/pretrain_language_model.py"
        )
    if config.direction != settings.direction:
        raise ArtifactError(
            f"{model} reads text {config.direction}, the settings ask for {settings.direction}; "
            f"set direction to {config.direction!r} or give another model"
        )
    sizes = ("embedding_size", "hidden_size", "num_hidden_layers")
    ignored = [name for name in sizes if getattr(settings, name) not in (None, getattr(config, name))]
    if ignored:
        kept = ", ".join(f"{name} {getattr(config, name)}" for name in ignored)
        context.tell(f"note: {model} keeps its sizes ({kept}); the settings' are for a model from scratch, model null")
    old = load_tokenizer(model, config=config)
    config = with_dropouts(config, context.recipe.lm_dropouts, settings.drop_mult)
    network = load_model(model, AutoModelForCausalLM, config=config)
    kind = settings.tokenizer
    if kind == "auto":
        kind = "word" if old.kind == "word" else "keep"
    if kind == "keep":
        return network, old
    new = _new_tokenizer(train, kind, settings, context.recipe)
    transfer = transfer_vocabulary(
        network, tokens_in_order(old), tokens_in_order(new), vocab_hash=vocab_hash(new), old_vocab_hash=vocab_hash(old)
    )
    context.tell(f"vocabulary: {transfer.kept:,} tokens kept their rows, {transfer.new:,} start at the mean")
    return network, new


def _new_tokenizer(train: Dataset, kind: str, settings: LanguageModelSettings, recipe: Preset) -> UlmfitTokenizer:
    def texts() -> Iterator[str]:
        for start in range(0, len(train), 1000):
            yield from train[start : start + 1000]["text"]

    words = kind == "word"
    return train_tokenizer(
        texts(),
        kind=kind,
        vocab_size=settings.vocab_size or (recipe.word_vocab_size if words else SUBWORD_VOCAB_SIZE),
        min_count=settings.min_count or recipe.word_min_count,
    )


def _phases(
    num_groups: int, settings: LanguageModelSettings, context: RunContext, *, pretrained: bool, tokens: int
) -> list[Phase]:
    if settings.plan == "pretrain" or (settings.plan == "preset" and not pretrained):
        return full(
            num_groups,
            lr=settings.lr or SCRATCH_LR,
            epochs=settings.epochs or SCRATCH_EPOCHS,
            decay=1.0,
            schedule=Schedule.one_cycle(),
        )
    phases = context.recipe.lm_phases(num_groups, settings.frozen_epochs, settings.epochs, settings.lr)
    if settings.plan != "preset":
        last = phases[-1]
        lr, curve = settings.lr or max(last.lrs), last.schedule
        if settings.plan == "full":
            phases = full(num_groups, lr=lr, epochs=last.epochs, schedule=curve)
        else:
            frozen = settings.frozen_epochs or 1
            phases = gradual_unfreezing(
                num_groups, lr=lr, epochs_per_phase=frozen, final_epochs=last.epochs, schedule=curve
            )
    if settings.epochs is None:
        scaled = scale_epochs(phases[-1].epochs, size=tokens, full_size=IMDB_TOKENS)
        phases[-1] = dataclasses.replace(phases[-1], epochs=scaled)
    return phases
