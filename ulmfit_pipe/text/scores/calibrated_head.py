"""Calibration of a trained classifier: its temperatures go into the weights of the layer that gives the scores.

Every program that reads the folder then gives the same scores, and nothing has to know of temperatures.
"""

import json
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ulmfit_pipe.stages.config_notes import note, notes_of
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.text.head_probe import HeadStart, ProbeError, last_layer
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.text.scores.calibration import (
    LEAST_ROWS,
    Calibration,
    Source,
    calibrate,
    coverage_curve,
    scaled,
)
from ulmfit_pipe.text.scores.tfidf import label_array
from ulmfit_pipe.training.distributed.processes import gather_bytes

CHECK_ROWS = 16  # that are scored before and after
TOLERANCE, ROUNDED_TOLERANCE = 1e-3, 5e-2  # of a probability; the second in half precision
TEMPERATURE = "temperature"  # among our notes in config.json; absent where the scores are as they were trained
NOT = "scores: not calibrated,"


def calibrate_classifier(
    predictor: Predictor,
    train: Dataset,
    validation: Dataset | None,
    *,
    wanted: bool,
    probe: HeadStart | None,
    context: RunContext,
) -> dict[str, Any]:
    """Calibrate the scores of a trained classifier in place, and return what its record holds of that.

    Args:
        predictor: The classifier, alone.
        train: What it was trained on.
        validation: Held-out rows, or None.
        wanted: The setting.
        probe: What was saved if that is the probe, whose folds held rows out; else None.
        context: Seed, processes and log.

    Returns:
        ``calibration`` and for one label a row ``coverage``, or nothing where nothing could be fitted.
    """
    (network,) = predictor.models
    if notes_of(network.config).get(TEMPERATURE) is not None:  # of the classifier that training started from
        note(network.config, **{TEMPERATURE: None})
    if not wanted:
        return {}
    if reason := _refused(validation, probe):
        context.tell(f"{NOT} {reason}")
        return {}
    source: Source = "validation"
    growth = 1.0
    if validation is not None:
        probabilities, labels = predictor.probabilities(predictor.tokenize(validation)), label_array(validation)
    else:
        source, growth = "out-of-fold", probe.growth  # type: ignore[union-attr]
        probabilities, labels = probe.out_of_fold  # type: ignore[union-attr, misc]
    found = calibrate(probabilities, labels, source=source, seed=context.seed, growth=growth)
    found = Calibration(**json.loads(gather_bytes(json.dumps(vars(found)).encode(), context.accelerator)[0]))
    temperatures = np.atleast_1d(np.asarray(found.temperature, dtype=np.float64))
    if found.changes_scores:
        sample = train if validation is None else validation
        if line := _divide_logits(predictor, temperatures, sample.select(range(min(CHECK_ROWS, len(sample))))):
            context.tell(line)
            return {}
        note(network.config, **{TEMPERATURE: found.temperature})
    context.tell(found.describe())
    record: dict[str, Any] = {"calibration": found.record()}
    if labels.ndim == 1:
        after = scaled(probabilities, temperatures / growth)
        record["coverage"] = coverage_curve(after.max(1), after.argmax(1) == labels)
    return record


def _refused(validation: Dataset | None, probe: HeadStart | None) -> str:
    """Return why there is nothing to fit temperatures on, or an empty text."""
    if validation is not None:
        rows = len(validation)
    elif probe is None or probe.out_of_fold is None:
        return "no validation rows are held out"
    else:
        rows = len(probe.out_of_fold[1])
    return "" if rows >= LEAST_ROWS else f"{LEAST_ROWS} held-out rows are needed, here are {rows}"


def _divide_logits(predictor: Predictor, temperatures: np.ndarray, sample: Dataset) -> str:
    """Divide the weights of the layer that gives the logits; return why not, and change nothing, where that fails.

    Args:
        predictor: The classifier, alone.
        temperatures: float64 (1,) or (num_labels,).
        sample: Rows whose scores show whether they become what they should.
    """
    try:
        layer = last_layer(predictor.models[0], len(predictor.label_names))
    except ProbeError as error:
        return f"{NOT} {error}"
    encoded = predictor.tokenize(sample)
    expected = scaled(predictor.probabilities(encoded), temperatures)
    kept = {name: value.detach().clone() for name, value in layer.named_parameters()}
    divisor = torch.from_numpy(temperatures).expand(len(predictor.label_names))
    with torch.no_grad():
        for value in layer.parameters():  # (num_labels, width), (num_labels,)
            value.div_(divisor.to(value).view(-1, *[1] * (value.ndim - 1)))
        found = predictor.probabilities(encoded)
        exact = predictor.accelerator.mixed_precision == "no" and layer.weight.dtype == torch.float32
        if np.abs(found - expected).max() <= (TOLERANCE if exact else ROUNDED_TOLERANCE):
            return ""
        for name, value in layer.named_parameters():
            value.copy_(kept[name])
    return f"{NOT} they are not the output of the network's last layer"
