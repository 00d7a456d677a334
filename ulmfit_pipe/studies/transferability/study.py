"""How transferable are the layers? The experiment of Yosinski et al. 2014 (arXiv 1411.1792, figure 2) on own data.

The classes of a labelled table are split in two halves, tasks A and B. Layer groups 1..n of a network trained on one of
them are put into a new network, which is trained on task B with these groups frozen, or unfrozen later.
`networks.py` defines the five curves; `results.py` explains what they mean.
"""

import contextlib
import dataclasses
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ulmfit_pipe.data.labels import list_labels
from ulmfit_pipe.settings.choices import DEFAULT_MODEL
from ulmfit_pipe.settings.studies import TransferabilitySettings
from ulmfit_pipe.stages.context import RunContext, context_of, exclusive_run
from ulmfit_pipe.studies.transferability.networks import SeedOfNetworks, build_learner, networks_of
from ulmfit_pipe.studies.transferability.results import write_transferability
from ulmfit_pipe.studies.transferability.tasks import Examples, load_examples, tasks_of

# Where they are left out: so few rows of a sample that tasks are not learned to perfection, within minutes.
SAMPLES: dict[str, dict[str, int]] = {
    "digits": {"rows_of_a": 150, "rows_of_b": 150, "test_rows": 1000, "frozen_epochs": 4, "final_epochs": 8},
    "docstrings": {
        "rows_of_a": 200,
        "rows_of_b": 200,
        "test_rows": 400,
        "max_length": 48,
        "frozen_epochs": 2,
        "final_epochs": 4,
    },
}
PLAIN = {"test_rows": 1000, "frozen_epochs": 3, "final_epochs": 5}  # where the tables are one's own


@exclusive_run()
def run_transferability(settings: TransferabilitySettings, *, context: RunContext | None = None) -> dict[str, Any]:
    """Train the networks that are missing, write results.json, results.csv, results.md and the picture.

    Args:
        settings: Settings of the experiment.
        context: Environment; made from the settings by default.

    Returns:
        What ``results.json`` holds: among others ``points`` (the curves), ``table`` in Markdown, and ``answer``, the
        sentence on what the figures show.

    Raises:
        ValueError: A setting, table, image or model cannot be used.
    """
    context = context or context_of(settings)
    context.refuse_several_processes("the comparison")
    train, test = load_examples(settings, say=context.tell)
    settings = with_defaults(settings)
    tasks_of(settings, train, test, seed=0)  # refused before anything is trained
    groups = group_names(settings, train, test, context)
    settings = dataclasses.replace(settings, layers=checked_layers(groups, settings.layers))
    total = settings.seeds * len(list(networks_of(settings.layers or ())))
    context.tell(f"layer groups: {' | '.join(groups)}; {total} networks to train")
    with quick_collections():
        for seed in range(settings.seeds):
            a, b = tasks_of(settings, train, test, seed=seed)
            context.tell(f"seed {seed}: task A is {list_labels(a.names)}; task B is {list_labels(b.names)}")
            seeded = dataclasses.replace(context, seed=seed)
            networks = SeedOfNetworks(settings, a, b, seeded, test_rows=len(test.table))
            for network in networks_of(settings.layers or ()):
                networks.run(network)
            networks.drop_weights()
    return write_transferability(settings, groups=groups, say=context.tell)


@contextlib.contextmanager
def quick_collections() -> Iterator[None]:
    """Keep what there is out of Python's garbage collections in the block: every training phase ends with one.

    With many small trainings, searching the libraries' own objects each time is a good part of the whole.
    """
    mine = gc.get_freeze_count() == 0
    if mine:
        gc.collect()
        gc.freeze()
    try:
        yield
    finally:
        if mine:
            gc.unfreeze()


def with_defaults(settings: TransferabilitySettings) -> TransferabilitySettings:
    """Return the settings with the model and the sample's sizes filled in where they were left out."""
    changes: dict[str, Any] = {}
    if not settings.on_images and settings.model is None:
        changes["model"] = DEFAULT_MODEL
    sizes = SAMPLES.get(str(settings.dataset), PLAIN)
    changes |= {name: size for name, size in sizes.items() if getattr(settings, name) is None}
    if settings.title is None:
        source = settings.dataset or settings.train_images or (settings.train_file or [""])[0]
        changes["title"] = Path(source).stem
    return dataclasses.replace(settings, **changes)


def group_names(settings: TransferabilitySettings, train: Examples, test: Examples, context: RunContext) -> list[str]:
    """Return the names of the layer groups, input side first."""
    quiet = dataclasses.replace(context, say=lambda _line: None)
    learner = build_learner(settings, tasks_of(settings, train, test, seed=0)[1], quiet, pretrained=False)
    return learner.names


def checked_layers(groups: Sequence[str], layers: Sequence[int] | None) -> list[int]:
    """Return the numbers n of layer groups to copy, in increasing order.

    Args:
        groups: Names of the layer groups; the last is the head, which is always new.
        layers: The numbers to use; None takes all.

    Raises:
        ValueError: There is one layer group only, or a number is out of range.
    """
    if len(groups) < 2:
        raise ValueError(
            f"the model has {len(groups)} layer group ({', '.join(groups)}), so there is none below the head that "
            "could be copied; give a model with at least two"
        )
    every = list(range(1, len(groups)))
    if layers is None:
        return every
    wrong = [n for n in layers if n not in every]
    if wrong or not layers:
        raise ValueError(
            f"layers must be numbers of layer groups to copy, from 1 to {every[-1]} (the head is always new, n = 0 is "
            f"always run), got {', '.join(map(str, wrong)) or 'none'}; the groups are {', '.join(groups)}"
        )
    return sorted(set(layers))
