"""New rows in a classifier's last layer for labels that it did not have; the rows of its own labels stay as they are.

The new rows are found by regression on what goes into that layer, beside the old rows, which do not move: the scores
of old and new labels are on one scale before anything else is trained.
"""

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ulmfit_pipe.stages.artifacts import ArtifactError
from ulmfit_pipe.stages.classifier_labels import NEW_HEAD
from ulmfit_pipe.stages.config_notes import set_thresholds, thresholds_of
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.text.head_probe import (
    HeadStart,
    ProbeError,
    last_layer,
    same_everywhere,
    starting_epoch,
    training_features,
)
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.linear_probe import USUAL_STRENGTH, Features, LinearProbe, fit_new_rows


@torch.no_grad()
def grow_head(network: Any, names: list[str]) -> None:
    """Give a classifier's last layer a row for each further label, at the mean of its rows, and its configuration too.

    Args:
        network: A classifier of the first of the labels.
        names: The labels, its own ones first.

    Raises:
        ArtifactError: Its head is not one that rows can be added to.
    """
    config, old = network.config, len(network.config.id2label)
    if len(names) == old:
        return
    try:
        layer = last_layer(network, old)
    except ProbeError as error:
        raise ArtifactError(f"the head cannot take new classes: {error}; train a new one with {NEW_HEAD}") from error
    wider = nn.Linear(layer.in_features, len(names), bias=layer.bias is not None, dtype=layer.weight.dtype)
    for now, before in ((wider.weight, layer.weight), (wider.bias, layer.bias)):
        if now is not None:
            now[:old] = before
            now[old:] = before.mean(0)
    name = next(name for name, module in network.named_modules() if module is layer)
    network.set_submodule(name, wider)
    for module in network.modules():
        if getattr(module, "num_labels", None) == old:
            module.num_labels = len(names)
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}
    if (thresholds := thresholds_of(config)) is not None:
        set_thresholds(config, [*thresholds, *[0.5] * (len(names) - old)])


def start_new_rows(
    learner: Learner, network: nn.Module, *, context: RunContext, num_labels: int, rows: int, old: int
) -> HeadStart:
    """Find the head's rows of new labels on frozen features, and report what the classifier is worth before training.

    Args:
        learner: The classifier's learner; its training batches are read once.
        network: The classifier, without what averages its windows.
        context: Seed, time and processes.
        num_labels: Labels.
        rows: Training rows.
        old: The first labels, which it had before.

    Raises:
        ProbeError: Nothing tells old labels from new ones, or the layer's inputs do not explain the scores.
    """
    started, layer = time.perf_counter(), last_layer(network, num_labels)
    features = training_features(learner, layer, context)
    read, record = len(features.labels), {"rows": len(features.labels), "new_labels": num_labels - old}
    if num_labels > old:
        _check_labels(features, old)
        _set_rows(layer, features, context, old=old)
        context.tell(
            f"head: {old} rows are kept, {num_labels - old} new ones start from regression on the frozen network's "
            f"features of {read:,} texts"
        )
    seconds = time.perf_counter() - started
    start, whole = starting_epoch(learner, features, loss=_loss(layer, features), seconds=seconds, rows=rows)
    return HeadStart(start, whole, record, partial(_keep_rows, layer), name="the classifier before it")


def _check_labels(features: Features, old: int) -> None:
    if features.labels.ndim == 1 and not (features.labels < old).any():
        raise ProbeError("there is no row of an old class to tell the new ones from")


@torch.no_grad()
def _set_rows(layer: nn.Linear, features: Features, context: RunContext, *, old: int) -> None:
    weight, bias = _as_arrays(layer)
    new = fit_new_rows(features, weight=weight[:old], bias=None if bias is None else bias[:old], num_labels=len(weight))
    probe = same_everywhere(LinearProbe(*new, USUAL_STRENGTH, None), context.accelerator)
    layer.weight[old:] = torch.from_numpy(probe.weight).to(layer.weight)
    if layer.bias is not None:
        layer.bias[old:] = torch.from_numpy(probe.bias).to(layer.bias)


def _as_arrays(layer: nn.Linear) -> tuple[np.ndarray, np.ndarray | None]:
    bias = None if layer.bias is None else layer.bias.detach().float().cpu().numpy()
    return layer.weight.detach().float().cpu().numpy(), bias


def _loss(layer: nn.Linear, features: Features) -> float:
    weight, bias = _as_arrays(layer)
    return LinearProbe(weight, np.zeros(len(weight)) if bias is None else bias, 0.0, None).loss(features)


def _keep_rows(_layer: nn.Linear, _scale: float) -> None:
    """Leave a trained head at its scale, which a probe's is not taken at."""
