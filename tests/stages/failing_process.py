"""A recipe that fails on one of its processes in the middle of a training; started by torchrun."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from several_process_runs import classifier_learner

from ulmfit_pipe.stages.command_line import run_recipe

FAIL_AT = 6  # the batch, counted from 1, over all epochs


def main() -> None:
    """Train; the last process fails in the way that the command line names."""
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    parts = classifier_learner(folder, "language_model", said=print)
    learner = parts.learner
    batches, place = 0, learner.accelerator.process_index

    def count(_module: torch.nn.Module, _inputs: Any) -> None:
        nonlocal batches
        batches += learner.model.training
        if batches == FAIL_AT and place == learner.accelerator.num_processes - 1:
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
