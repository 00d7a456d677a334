"""Four recipes for the method, kept apart: the paper's, its authors' 2018 scripts', fastai 2.8's, and transformers'.

The first three are for the AWD-LSTM and differ on purpose (paper and code disagree on beta1, ratio, dropout and the
order of unfreezing); the fourth is for pretrained transformers. A preset gives values; stages let a user override them
one by one. Numbers are for data of IMDb's size; `scale_epochs` states how they change with less data.

Sources: `paper` Howard & Ruder 2018, sections 3 and 4.1; `scripts-2018` the authors' imdb_scripts; `fastai` fastai
2.8 nbs/38_tutorial.text and text/models/awdlstm.py; `transformer` beside its numbers. Numbers that are not
certain are marked.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.training.optim import LR_DECAY, discriminative_lrs
from ulmfit_pipe.training.phases import gradual_unfreezing
from ulmfit_pipe.training.records import Phase
from ulmfit_pipe.training.schedules import Schedule

IMDB_ROWS = 25_000  # labelled rows that the classifier's epochs are meant for
IMDB_TOKENS = 28_000_000  # tokens that the language model's epochs are meant for: 100,000 reviews
MOST_EPOCHS = 10  # small data may raise a preset's epochs up to this

AWD_LSTM = "awd_lstm"  # model type of the one architecture that is ours
AUTO = "auto"  # the preset that the model decides
TRANSFORMER = "transformer"
FASTAI = "fastai"

Number = TypeVar("Number", int, float)

# (num_groups, epochs per unfreezing phase, epochs of the last phase, lr) -> phases; None takes the preset's number
PhaseBuilder = Callable[[int, int | None, int | None, float | None], list[Phase]]


@dataclass(frozen=True)
class Dropouts:
    """The five dropouts of the AWD-LSTM."""

    output: float
    hidden: float
    input: float
    embedding: float
    weight: float


@dataclass(frozen=True)
class StageOptimizer:
    """Adam's hyperparameters for one stage.

    Attributes:
        betas: Averages' coefficients; a one-cycle schedule cycles the first.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled (AdamW) or as L2, see ``decoupled``.
        decoupled: AdamW or Adam.
        max_grad_norm: Clipping, or None.
    """

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    decoupled: bool
    max_grad_norm: float | None


@dataclass(frozen=True)
class Preset:
    """One recipe.

    Attributes:
        name: What a user writes.
        sizes: (embedding, hidden, layers) of an AWD-LSTM that is not pretrained.
        word_vocab_size: Largest vocabulary of words.
        word_min_count: Rarest word with an entry of its own.
        bptt: Window of the AWD-LSTM language model.
        batch_size: Rows of a batch, both stages.
        lm_dropouts: Of the AWD-LSTM language model.
        classifier_dropouts: Of the AWD-LSTM classifier's encoder and head.
        lm_optimizer: Of the language model stage.
        classifier_optimizer: Of the classifier stage.
        lm_phases: Builds the language model's phases.
        classifier_phases: Builds the classifier's phases.
        train_norm: Norm layers of frozen groups continue training.
        lr_decay: Ratio of neighbouring groups' rates in the plans gradual and full.
        head_factor: What the rate of the head alone is times the head's own once more trains, in these two plans.
        alpha: Weight of AR in both stages.
        beta: Weight of TAR in both stages.
    """

    name: str
    sizes: tuple[int, int, int]
    bptt: int
    batch_size: int
    lm_dropouts: Dropouts
    classifier_dropouts: Dropouts
    lm_optimizer: StageOptimizer
    classifier_optimizer: StageOptimizer
    lm_phases: PhaseBuilder
    classifier_phases: PhaseBuilder
    train_norm: bool = False
    lr_decay: float = LR_DECAY
    head_factor: float = 1.0
    word_vocab_size: int = 60_000  # in the three of the AWD-LSTM; the paper's from memory
    word_min_count: int = 3  # fastai's; the others do not name it
    alpha: float = 2.0  # AR and TAR 2 and 1 in the three recipes of the AWD-LSTM
    beta: float = 1.0


def with_dropouts(config: AwdLstmConfig, dropouts: Dropouts, drop_mult: float) -> AwdLstmConfig:
    """Return a copy of a configuration with these dropouts, multiplied by ``drop_mult``."""
    config = copy.deepcopy(config)
    for name, value in dataclasses.asdict(dropouts).items():
        setattr(config, f"{name}_dropout", value)
    return config.scaled_dropouts(drop_mult)


def scale_epochs(full_epochs: int, *, size: int, full_size: int) -> int:
    """Return epochs for a smaller data set: the number of steps falls with the square root of its size.

    An epoch of a data set n times smaller has n times fewer steps; taking sqrt(n) times fewer steps in all means
    sqrt(n) times more epochs. Bounded by `MOST_EPOCHS`, or the full number where that is larger. Ours, not the
    paper's, which tunes epochs on validation data; the best epoch is kept either way.

    Args:
        full_epochs: Epochs at the full size.
        size: Number of training rows or tokens.
        full_size: Rows or tokens the number was made for.
    """
    if size >= full_size:
        return full_epochs
    raised = math.ceil(full_epochs * math.sqrt(full_size / max(size, 1)))
    return min(raised, max(full_epochs, MOST_EPOCHS))


def _or(given: Number | None, default: Number) -> Number:
    """Return a given value (0 too, which is refused later), or the default for None."""
    return default if given is None else given


def _all(
    num_groups: int,
    epochs: int,
    lrs: Sequence[float],
    schedule: Schedule,
    *,
    first: int = 0,
    name: str = "all",
) -> Phase:
    return Phase(name, tuple(range(first, num_groups)), tuple(lrs), schedule, epochs=epochs)


# ---- paper


def _paper_lm(num_groups: int, frozen: int | None, last: int | None, lr: float | None) -> list[Phase]:
    """All layers at once, slanted triangular, ladder of 2.6 (the paper does not unfreeze the language model).

    15 epochs are uncertain: the paper tunes their number on validation data.
    """
    del frozen
    rates = discriminative_lrs(_or(lr, 4e-3), num_groups)
    return [_all(num_groups, _or(last, 15), rates, Schedule.slanted_triangular())]


def _paper_classifier(num_groups: int, frozen: int | None, last: int | None, lr: float | None) -> list[Phase]:
    """One more group each epoch, then all; 50 epochs is the paper's bound, its choice is by validation."""
    return gradual_unfreezing(
        num_groups, lr=_or(lr, 1e-2), epochs_per_phase=_or(frozen, 1), final_epochs=_or(last, 50), patience=10
    )


# ---- scripts-2018


def _scripts_lm(num_groups: int, frozen: int | None, last: int | None, lr: float | None) -> list[Phase]:
    """All layers at once with lr/6, lr/3, lr, lr/2 (finetune_lm.py, where a frozen first epoch is commented out).

    25 is the scripts' own number of epochs; their read-me gives up to 50. A model of another depth than three layers
    gets the paper's ladder.
    """
    del frozen
    base = _or(lr, 4e-3)
    ladder = discriminative_lrs(base, num_groups)
    rates = [base / divisor for divisor in (6.0, 3.0, 1.0, 2.0)] if num_groups == 4 else ladder
    return [_all(num_groups, _or(last, 25), rates, Schedule.slanted_triangular(cut_frac=0.1, ratio=32))]


def _scripts_classifier(num_groups: int, frozen: int | None, last: int | None, lr: float | None) -> list[Phase]:
    """The head, the last two groups, then all (train_clas.py)."""
    rates = discriminative_lrs(_or(lr, 1e-2), num_groups)
    thaw = Schedule.slanted_triangular(cut_frac=1 / 3, ratio=8)
    final = Schedule.slanted_triangular(cut_frac=1 / 8, ratio=8)
    return [
        _all(num_groups, _or(frozen, 1), rates, thaw, first=num_groups - 1, name="last 1"),
        _all(num_groups, _or(frozen, 1), rates, thaw, first=max(0, num_groups - 2), name="last 2"),
        _all(num_groups, _or(last, 50), rates, final),
    ]


# ---- fastai


def _fastai_lm(num_groups: int, frozen: int | None, last: int | None, lr: float | None) -> list[Phase]:
    """One epoch of embedding and decoder at 2e-2, then 10 of everything at a tenth of it, one-cycle."""
    base, curve, first = _or(lr, 2e-2), Schedule.one_cycle(), num_groups - 1
    return [
        _all(num_groups, _or(frozen, 1), [base] * num_groups, curve, first=first, name="embeddings"),
        _all(num_groups, _or(last, 10), [base / 10] * num_groups, curve),
    ]


def _fastai_classifier(num_groups: int, frozen: int | None, last: int | None, lr: float | None) -> list[Phase]:
    """Head at 2e-2; last two at up to 1e-2; last three at up to 5e-3; all at up to 1e-3, one-cycle each."""
    base = _or(lr, 2e-2)
    peaks = [
        (num_groups - 1, base, "last 1"),
        (num_groups - 2, base / 2, "last 2"),
        (num_groups - 3, base / 4, "last 3"),
    ]
    phases = [
        _all(
            num_groups,
            _or(frozen, 1),
            discriminative_lrs(peak, num_groups),  # slice(peak / 2.6**4, peak) over 5 groups is this ladder
            Schedule.one_cycle(),
            first=first,
            name=name,
        )
        for first, peak, name in peaks
        if first > 0
    ]
    rest = discriminative_lrs(base / 20, num_groups)
    return [*phases, _all(num_groups, _or(last, 2), rest, Schedule.one_cycle())]


# ---- transformer

HEAD_FACTOR = 20.0  # head alone at 1e-3, then 5e-5: ours; a linear probe wants far more than Devlin's 5e-5 to 2e-5
LAYER_DECAY = 1 / 0.9  # between the 0.95 of Sun et al. 2019 (BERT) and the 0.8 of Clark et al. 2020 (ELECTRA)
WARM_UP = Schedule.slanted_triangular()  # linear up for a tenth, then down: BERT's run_classifier.py


def _transformer_lm(num_groups: int, frozen: int | None, last: int | None, lr: float | None) -> list[Phase]:
    """All layers at once at one rate, 3 epochs at 5e-5.

    Sources: rate and warm-up of further pretraining, Sun et al. 2019 (5e-5, a tenth). 3 epochs are ours.
    """
    del frozen
    return [_all(num_groups, _or(last, 3), [_or(lr, 5e-5)] * num_groups, WARM_UP)]


def _transformer_classifier(num_groups: int, frozen: int | None, last: int | None, lr: float | None) -> list[Phase]:
    """The head alone, then the upper half of the groups, then all: rates that fall from block to block.

    Sources: 5e-5 and 3 epochs of everything, Devlin et al. 2019, appendix A.3 (5e-5, 3e-5 or 2e-5; 2, 3 or 4); a rate
    a block, Sun et al. 2019 and Clark et al. 2020; the head first, Howard & Ruder 2018, section 3.3, and Kumar et al.
    2022. That the middle phase unfreezes half of the groups is ours.
    """
    head = _or(lr, 1e-3)
    rates = discriminative_lrs(head / HEAD_FACTOR, num_groups, decay=LAYER_DECAY)
    half = num_groups // 2
    phases = [_all(num_groups, _or(frozen, 1), [head] * num_groups, WARM_UP, first=num_groups - 1, name="head")]
    if 0 < half < num_groups - 1:
        phases.append(_all(num_groups, _or(frozen, 1), rates, WARM_UP, first=half, name="upper half"))
    return [*phases, _all(num_groups, _or(last, 3), rates, WARM_UP)]


# Devlin et al. 2019 and BERT's optimization.py, with the bias correction that it lacks and torch's AdamW has: without
# it and without warm-up fine-tuning is unstable (Mosbach et al. 2021)
_TRANSFORMER_OPTIMIZER = StageOptimizer((0.9, 0.999), 1e-6, 0.01, True, 1.0)
_NO_DROPOUTS = Dropouts(output=0.0, hidden=0.0, input=0.0, embedding=0.0, weight=0.0)  # a transformer has its own

_FASTAI_DROPOUTS = Dropouts(output=0.1, hidden=0.15, input=0.25, embedding=0.02, weight=0.2)

PRESETS: dict[str, Preset] = {
    "paper": Preset(
        name="paper",
        sizes=(400, 1150, 3),
        bptt=70,
        batch_size=64,
        lm_dropouts=Dropouts(output=0.4, hidden=0.3, input=0.4, embedding=0.05, weight=0.5),
        classifier_dropouts=Dropouts(output=0.4, hidden=0.3, input=0.4, embedding=0.05, weight=0.5),
        lm_optimizer=StageOptimizer((0.7, 0.99), 1e-8, 0.0, False, None),  # eps: torch's, the paper names none
        classifier_optimizer=StageOptimizer((0.7, 0.99), 1e-8, 0.0, False, None),
        lm_phases=_paper_lm,
        classifier_phases=_paper_classifier,
    ),
    "scripts-2018": Preset(
        name="scripts-2018",
        sizes=(400, 1150, 3),
        bptt=70,
        batch_size=64,
        lm_dropouts=_FASTAI_DROPOUTS,
        classifier_dropouts=Dropouts(output=0.4, hidden=0.3, input=0.4, embedding=0.05, weight=0.5),
        lm_optimizer=StageOptimizer((0.8, 0.99), 1e-8, 1e-7, False, 0.3),
        classifier_optimizer=StageOptimizer((0.8, 0.99), 1e-8, 1e-7, False, 25.0),
        lm_phases=_scripts_lm,
        classifier_phases=_scripts_classifier,
    ),
    "fastai": Preset(
        name="fastai",
        sizes=(400, 1152, 3),
        bptt=72,
        batch_size=64,
        lm_dropouts=_FASTAI_DROPOUTS,
        # the classifier's are .4 .3 .4 .05 .5 times drop_mult .5; the head's second dropout .1 is not scaled
        classifier_dropouts=Dropouts(output=0.2, hidden=0.15, input=0.2, embedding=0.025, weight=0.25),
        lm_optimizer=StageOptimizer((0.8, 0.99), 1e-5, 0.1, True, None),
        classifier_optimizer=StageOptimizer((0.8, 0.99), 1e-5, 0.01, True, None),
        lm_phases=_fastai_lm,
        classifier_phases=_fastai_classifier,
        train_norm=True,
    ),
    TRANSFORMER: Preset(
        name=TRANSFORMER,
        sizes=(0, 0, 0),  # these, bptt and dropouts belong to the AWD-LSTM and are not read
        bptt=0,
        batch_size=32,  # Devlin et al. 2019: 16 or 32
        lm_dropouts=_NO_DROPOUTS,
        classifier_dropouts=_NO_DROPOUTS,
        lm_optimizer=_TRANSFORMER_OPTIMIZER,
        classifier_optimizer=_TRANSFORMER_OPTIMIZER,
        lm_phases=_transformer_lm,
        classifier_phases=_transformer_classifier,
        lr_decay=LAYER_DECAY,
        head_factor=HEAD_FACTOR,
        alpha=0.0,  # AR and TAR are the AWD-LSTM's
        beta=0.0,
    ),
}


def resolve_preset(name: str, model_type: str) -> str:
    """Return the preset that a name stands for with a model: what ``auto`` means is decided here.

    Args:
        name: What a user wrote.
        model_type: transformers' name of the architecture.

    Raises:
        ValueError: No preset has this name, or it has no hyperparameters for this architecture.
    """
    if name == AUTO:
        return "fastai" if model_type == AWD_LSTM else TRANSFORMER
    if name == TRANSFORMER and model_type == AWD_LSTM:
        raise ValueError(
            "preset 'transformer' has no dropouts and windows for an AWD-LSTM; take 'auto', 'fastai', 'paper' or "
            "'scripts-2018', or give a transformers model"
        )
    return load_preset(name).name


def load_preset(name: str) -> Preset:
    """Return a preset by name.

    Raises:
        ValueError: No preset has this name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    return PRESETS[name]
