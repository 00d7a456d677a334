"""What a classifier is trained on and measured by: batches of labelled texts, a loss, a metric."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ulmfit_pipe.data.splits import labels_of_rows
from ulmfit_pipe.data.text.tokenization import tokenize_dataset
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.text.families.family import family_of
from ulmfit_pipe.text.tables import label_names_of
from ulmfit_pipe.text.truncation import Reading
from ulmfit_pipe.training.metrics import ClassificationMetric, MultiLabelMetric
from ulmfit_pipe.training.objectives import ClassificationObjective
from ulmfit_pipe.training.records import Batches, Task

EVALUATION_ROWS = 256  # rows of an evaluation batch, and its tokens, padding included: memory, not result
EVALUATION_TOKENS = 16_384
LEAST_BATCH = 8  # rows; the batch is not narrowed below it
STEPS_PER_EPOCH = 25  # small data narrow the batch until an epoch has about this many steps; ours


def build_classifier_task(
    train: Dataset,
    validation: Dataset | None,
    *,
    network: Any,
    tokenizer: PreTrainedTokenizerBase,
    reading: Reading,
    settings: "ClassifierSettings",
    context: RunContext,
) -> Task:
    """Tokenize labelled texts and put them into batches, with the loss and the metric for their kind of labels.

    Args:
        train: Columns ``text`` and ``label``.
        validation: The same, held out, or None.
        network: The classifier.
        tokenizer: Its tokenizer.
        reading: How it reads documents; for a transformer, how many are truncated or read in windows is logged.
        settings: Settings of the stage.
        context: Preset, seed and log.
    """
    names, multi_label = label_names_of(train)
    wanted = settings.batch_size or max(LEAST_BATCH, min(context.recipe.batch_size, len(train) // STEPS_PER_EPOCH))

    def batches(table: Dataset, what: str, **numbers: Any) -> Batches:
        encoded = tokenize_dataset(table.select_columns(["text", "label"]), tokenizer, num_proc=settings.num_workers)
        numbers.update(num_labels=len(names) if multi_label else None, **context.shares())
        found = reading.batches(encoded, tokenizer=tokenizer, config=network.config, **numbers)
        for line in family_of(network.config.model_type).describe_long(found, reading, what=what):
            context.tell(line)
        return found

    training: dict[str, Any] = {"max_tokens": settings.max_tokens, "shuffle": True, "seed": context.seed}
    evaluation: dict[str, Any] = {"max_tokens": EVALUATION_TOKENS, "shuffle": False}
    return Task(
        train_batches=batches(train, "training texts", batch_size=wanted, **training),
        objective=ClassificationObjective(
            class_weights=_class_weights(train, settings, names, multi_label=multi_label),
            label_smoothing=settings.label_smoothing,
            multi_label=multi_label,
            alpha=context.recipe.alpha,
            beta=context.recipe.beta,
        ),
        valid_batches=None
        if validation is None
        else batches(validation, "validation texts", batch_size=EVALUATION_ROWS, **evaluation),
        new_metric=lambda: MultiLabelMetric(len(names)) if multi_label else ClassificationMetric(len(names)),
    )


def _class_weights(
    train: Dataset, settings: ClassifierSettings, names: Sequence[str], *, multi_label: bool
) -> Tensor | None:
    """Return the weights of a mapping, or of each class n / (classes * count), scikit-learn's ``balanced``.

    In multi-label the weight is torch's ``pos_weight``, of the rows with a label against those without it; balanced it
    makes both weigh the same: (n - count) / count.
    """
    settings.check_classes(names)
    if isinstance(settings.class_weights, dict):
        return torch.tensor([float(settings.class_weights.get(name, 1.0)) for name in names])
    if settings.class_weights == "none":
        return None
    counts, num_labels = Counter(label for row in labels_of_rows(train) for label in row), len(names)
    if multi_label:
        present = [max(counts[index], 1) for index in range(num_labels)]
        return torch.tensor([max(len(train) - count, 1) / count for count in present])
    return torch.tensor([len(train) / (num_labels * max(counts[index], 1)) for index in range(num_labels)])
