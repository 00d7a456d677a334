"""A recipe that fails on one of its processes in the middle of a training that keeps checkpoints; started by torchrun.

Where checkpoints are kept the processes that are left only note the launcher's SIGTERM, which must not hold them up.
"""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tests.support.processes.several_process_runs import classifier_learner
from ulmfit_pipe.program import run_recipe
from ulmfit_pipe.training.records import Checkpoints

FAIL_AT = 6  # the batch, counted from 1, over all epochs
SAVE_AT = 4


def main() -> None:
    """Train; the last process fails in the way that the command line names."""
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    parts = classifier_learner(folder, "language_model", said=print)
    learner = parts.learner
    checkpoints = Checkpoints(folder / ".failing.progress", every_seconds=None, every_steps=SAVE_AT)
    learner.options = replace(learner.options, checkpoints=checkpoints)
    batches, place = 0, learner.accelerator.process_index

    def count(_module: torch.nn.Module, _inputs: Any) -> None:
        nonlocal batches
        batches += learner.model.training
        if batches == FAIL_AT and place == learner.accelerator.num_processes - 1:
            (folder / "failed_at").write_text(str(time.time()))
            if kind == "user":
                raise ValueError("the file reviews.csv vanished from this machine")
            if kind == "program":
                raise KeyError("a fault of the program")
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does that has no memory left

    learner.model.register_forward_pre_hook(count)
    learner.fit_plan(parts.phases)
    print("never reached")


if __name__ == "__main__":
    run_recipe(main)
