"""What every stage does around its training, written once: skip if finished, keep progress and log, save."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ulmfit_pipe.data.text.pretrained_tokenizers import vocabulary_digest
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.stages.finished import StageResult, finished_result, training_record
from ulmfit_pipe.stages.log import save_training, track_training
from ulmfit_pipe.stages.model_names import ModelName
from ulmfit_pipe.stages.progress import keep_progress
from ulmfit_pipe.training.history import History
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.logs.weight_changes import copy_weights, weight_changes
from ulmfit_pipe.training.records import Phase

MOST_COMPARED = 250_000_000  # parameters whose copy is kept while they train, 1 GB in float32; ours


@dataclass
class StageRun:
    """One run of a stage: `begin`, build, `keep` its progress, train, score, `save`.

    Attributes:
        name: The stage's name in ``stage.json``.
        output_dir: The stage's folder.
        identity: Fingerprint: everything the result depends on.
        model: What it starts from, for the record.
        context: Seed, precision, time, processes.
    """

    name: str
    output_dir: Path | str
    identity: dict[str, Any]
    model: ModelName | None
    context: RunContext
    _started: float = field(default=0.0, init=False)
    _changes: list[dict[str, Any]] | None = field(default=None, init=False)

    def begin(self) -> StageResult | None:
        """Return the result of the same stage if it is finished; otherwise seed every generator and start the clock."""
        context, identity = self.context, self.identity
        context.check_alike({**identity, "output_dir": str(self.output_dir)})
        done = finished_result(
            self.output_dir, stage=self.name, identity=identity, say=context.tell, resume=context.resume
        )
        self._started = time.perf_counter()
        if done is None:
            context.start()
        return done

    def keep(self, learner: Learner, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        """Let a learner save checkpoints and a log while it trains, or resume from its last checkpoint."""
        vocabulary = None if tokenizer is None else vocabulary_digest(tokenizer)
        keep_progress(learner, self.output_dir, identity=self.identity, vocabulary=vocabulary, context=self.context)
        track_training(learner, self.output_dir, identity=self.identity, context=self.context)

    @contextlib.contextmanager
    def comparing_weights(self, learner: Learner) -> Iterator[None]:
        """Note how far a block moves the weights of each layer group, for the record: 0 of what stayed frozen."""
        sizes = sum(group.num_parameters for group in learner.layer_groups)
        if not self.context.accelerator.is_main_process or sizes > MOST_COMPARED:
            yield
            return
        before = copy_weights(learner.model)
        yield
        with contextlib.suppress(ValueError):  # of weights that are NaN; what was trained is saved all the same
            changes = weight_changes(before, learner.model.state_dict(), learner.layer_groups)
            self._changes = changes.to_dict()["groups"]

    def seconds(self, history: History) -> float:
        """Return how long the stage has taken, with what it took before it was resumed."""
        return time.perf_counter() - self._started + history.earlier_seconds

    def save(
        self,
        learner: Learner,
        phases: Sequence[Phase],
        history: History,
        metrics: dict[str, Any],
        *,
        seconds: float,
        record: Mapping[str, Any],
        write: Callable[[Path], None],
        shown: str,
    ) -> StageResult:
        """Save what was trained and return the stage's result.

        Args:
            learner: The stage's learner.
            phases: The phases that were run.
            history: Their epochs and steps.
            metrics: Validation metrics of the weights that were kept.
            seconds: Wall time of the stage.
            record: What ``stage.json`` holds besides.
            write: Writes the stage's own files into a folder.
            shown: The metrics in words.
        """
        full = {
            "identity": self.identity,
            "model": None if self.model is None else str(self.model),
            "metrics": metrics,
            "seconds": seconds,
            **record,
            **training_record(learner, phases, history),
            **({} if self._changes is None else {"weight_changes": self._changes}),
        }
        save_training(self.output_dir, stage=self.name, record=full, write=write, context=self.context)
        self.context.tell(f"{self.name.replace('_', ' ')} saved in {self.output_dir}: {shown}")
        return StageResult(Path(self.output_dir), metrics, seconds, skipped=False)
