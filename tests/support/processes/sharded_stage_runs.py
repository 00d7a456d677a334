"""A transformer's thawing with its weights in pieces, which must be that of a whole one.

test_large_models.py runs it in one process and in two.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from tests.support.processes.several_process_runs import HELD_OUT, HELD_OUT_TEXTS, ROWS, TEXTS, in_double, quiet
from tests.support.tiny_runs import table, texts_of
from ulmfit_pipe.settings.text import ClassifierSettings, LanguageModelSettings
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.text.classifier import build_classifier_learner
from ulmfit_pipe.text.language_model import build_language_model_learner

GRADUAL: dict[str, Any] = {"plan": "gradual", "lr": 1e-2, "num_workers": 1}


def trained_in_pieces(parts: Any) -> dict[str, Any]:
    learner = parts.learner
    learner.options = dataclasses.replace(learner.options, shard=True)
    learner.model.requires_grad_(False)
    found = in_double(learner, parts.phases)
    return {"losses": found["losses"], "metrics": found["metrics"][-1], "weights": found["weights"]}


def in_pieces(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    classifier = build_classifier_learner(
        table(ROWS),
        table(HELD_OUT),
        model=str(folder / "bert"),
        settings=ClassifierSettings(**GRADUAL, epochs_per_phase=1, final_epochs=1, batch_size=8),
        context=RunContext(say=quiet),
    )
    torch.manual_seed(0)
    language_model = build_language_model_learner(
        texts_of(*TEXTS),
        texts_of(*HELD_OUT_TEXTS),
        model=str(folder / "gpt2"),
        settings=LanguageModelSettings(**GRADUAL, frozen_epochs=1, epochs=1, batch_size=4, block_size=40),
        context=RunContext(say=quiet),
    )
    return {"classifier": trained_in_pieces(classifier), "language model": trained_in_pieces(language_model)}
