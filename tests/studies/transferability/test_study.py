"""The experiment on layers that are copied: what is copied, what stands still, what is refused, what is written."""

import csv
import dataclasses
import fcntl
import gc
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.support.tiny_images import save_backbone, write_images
from tests.support.tiny_runs import FILLERS, heard, write_csv
from tests.support.tiny_transformers import save_bert
from ulmfit_pipe.data.images.files import ImageError
from ulmfit_pipe.data.tables.tables import TableError
from ulmfit_pipe.settings.images import SmallResNetSettings
from ulmfit_pipe.settings.studies import TransferabilitySettings
from ulmfit_pipe.studies.grid.cells import CellFolder
from ulmfit_pipe.studies.transferability import networks as networks_module
from ulmfit_pipe.studies.transferability.networks import (
    CURVES,
    Network,
    SeedOfNetworks,
    build_learner,
    copy_groups,
    network_phases,
    networks_of,
    rate_of,
    settle_norms,
)
from ulmfit_pipe.studies.transferability.study import (
    checked_layers,
    quick_collections,
    run_transferability,
    with_defaults,
)
from ulmfit_pipe.studies.transferability.tasks import load_examples, split_classes, tasks_of

CLASSES = ("dark", "dim", "pale", "white")
LABELS = ("bad", "fair", "good", "odd")
SMALL = SmallResNetSettings(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1])
SHORT = {"frozen_epochs": 1, "final_epochs": 1, "batch_size": 4, "progress": False}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder of four classes of eight images."""
    return write_images(tmp_path_factory.mktemp("photos"), CLASSES, count=8)


@pytest.fixture
def on_images(photos, tmp_path):
    """Return a function that makes settings of a run on them; its folder is that of the test."""

    def on_images(**changes):
        given = {"train_images": str(photos), "image_size": 16, "backbone": SMALL, "output_dir": str(tmp_path / "run")}
        return TransferabilitySettings(**{**given, **SHORT, "seeds": 1, **changes})

    return on_images


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """Return the folder of a run of two seeds on images, what was said, and its results."""
    output = tmp_path_factory.mktemp("transferability") / "run"
    said, context = heard()
    settings = TransferabilitySettings(
        train_images=str(photos),
        image_size=16,
        backbone=SMALL,
        output_dir=str(output),
        seeds=2,
        layers=[2, 3],
        title="Greys",
        **SHORT,
    )
    return settings, output, said, run_transferability(settings, context=context)


def networks_for(settings, *, seed=0):
    """Return the networks of one seed, without training any."""
    said, context = heard()
    settings = with_defaults(settings)
    train, test = load_examples(settings, say=said.append)
    a, b = tasks_of(settings, train, test, seed=seed)
    context = dataclasses.replace(context, seed=seed, preset=settings.preset)
    return SeedOfNetworks(settings, a, b, context, test_rows=len(test.table))


def learner_for(settings, *, pretrained=False, seed=0):
    networks = networks_for(settings, seed=seed)
    networks.context.start()
    quiet = dataclasses.replace(networks.context, say=lambda _line: None)
    return build_learner(networks.settings, networks.b, quiet, pretrained=pretrained)


# ---- two tasks of one table


def test_the_halves_hold_every_class_once_and_differ_between_seeds():
    names = [str(number) for number in range(10)]
    splits = [split_classes(names, seed=seed) for seed in range(4)]
    for a, b in splits:
        assert sorted(a + b) == names
        assert (len(a), len(b)) == (5, 5)
        assert a == sorted(a)
    assert len({tuple(a) for a, _ in splits}) == 4
    assert split_classes(names, seed=0) == splits[0]


def test_of_five_classes_task_a_gets_three():
    a, b = split_classes(["a", "b", "c", "d", "e"], seed=1)
    assert (len(a), len(b)) == (3, 2)


def test_the_classes_of_task_a_can_be_named():
    assert split_classes(CLASSES, seed=3, task_a=["white", "dark"]) == (["dark", "white"], ["dim", "pale"])


@pytest.mark.parametrize(
    ("task_a", "words"),
    [
        (["dark", "drak"], "task_a names 'drak', which is not a class; the classes are dark, dim, pale, white"),
        (["dark"], "task_a has 1 of 4 classes, which leaves 3 to task B; each task needs at least 2"),
        (["dark", "dark"], "task_a has 1 of 4 classes, which leaves 3 to task B"),
        (
            ["dark", "dim", "pale"],
            "which leaves 1 to task B; each task needs at least 2: name 2 to 2, or leave",
        ),
    ],
)
def test_a_task_a_that_leaves_no_two_tasks_is_refused(task_a, words):
    with pytest.raises(ValueError, match=words):
        split_classes(CLASSES, seed=0, task_a=task_a)


def test_a_task_has_its_classes_rows_with_labels_counted_anew(on_images):
    networks = networks_for(on_images(task_a=["dim", "white"]))
    assert networks.b.names == ["dark", "pale"]
    table = networks.b.train.table
    folders = [image["path"].split("/")[-2] for image in table["image"][:]]
    assert [networks.b.names[label] for label in table["label"][:]] == folders
    assert set(networks.b.train.digests) & set(networks.a.train.digests) == set()
    held_out = {image["path"] for image in networks.b.test.table["image"][:]}
    assert held_out & {image["path"] for image in table["image"][:]} == set()


def test_few_rows_are_the_same_share_of_each_class_and_depend_on_the_seed(on_images):
    settings = on_images(rows_of_b=4, task_a=["dim", "white"])
    parts = [networks_for(settings, seed=seed).b.train for seed in (0, 0, 1)]
    assert [sorted(part.table["label"][:]) for part in parts] == [[0, 0, 1, 1]] * 3
    assert parts[0].digest() == parts[1].digest() != parts[2].digest()
    assert len(networks_for(settings).a.train.table) == 12


def test_digits_are_at_hand_with_test_rows_of_their_own(tmp_path):
    networks = networks_for(TransferabilitySettings(dataset="digits", output_dir=str(tmp_path)))
    assert (len(networks.b.train.table), networks.test_rows) == (150, 360)
    assert len(networks.a.names) == len(networks.b.names) == 5


# ---- what is copied, and what stands still


def test_copied_are_the_weights_and_running_statistics_of_the_first_groups_alone(on_images):
    learner, donor = learner_for(on_images()), learner_for(on_images())
    assert learner.names == ["stem", "stage0", "stage1", "head"]
    weights = {name: torch.full_like(value, 3) for name, value in donor.model.state_dict().items()}
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    copy_groups(learner, weights, n=2)
    below = tuple(f"{prefix}." for group in learner.layer_groups[:2] for prefix in group.prefixes)
    for name, value in learner.model.state_dict().items():
        expected = weights[name] if name.startswith(below) else before[name]
        assert torch.equal(value, expected), name
    assert sum(name.startswith(below) and "running_mean" in name for name in weights) == 3


def test_a_base_of_another_architecture_is_refused(on_images):
    learner = learner_for(on_images())
    with pytest.raises(ValueError, match="the base network has no backbone.embedder.*; remove its folder"):
        copy_groups(learner, {}, n=1)


def test_random_groups_get_the_statistics_of_the_training_data_and_the_others_keep_theirs(on_images):
    learner = learner_for(on_images())
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    settle_norms(learner, n=2)
    changed = {name for name, value in learner.model.state_dict().items() if not torch.equal(value, before[name])}
    prefixes = [prefix for group in learner.layer_groups[:2] for prefix in group.prefixes]
    norms = {
        name
        for name, module in learner.model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and any(name.startswith(f"{prefix}.") for prefix in prefixes)
    }
    assert changed == {f"{norm}.{kind}" for norm in norms for kind in ("running_mean", "running_var")}


@pytest.mark.parametrize(
    ("network", "trained"),
    [
        (Network("baseB"), [("new", (0, 1, 2, 3)), ("all", (0, 1, 2, 3))]),
        (Network("new"), [("new", (0, 1, 2, 3)), ("all", (0, 1, 2, 3))]),
        (Network("BnB", 2), [("new", (2, 3)), ("on", (2, 3))]),
        (Network("AnB+", 2), [("new", (2, 3)), ("all", (0, 1, 2, 3))]),
        (Network("random", 3), [("new", (3,)), ("on", (3,))]),
    ],
)
def test_a_curve_and_its_thawed_twin_differ_by_what_trains_in_the_second_phase(on_images, network, trained):
    settings = on_images(frozen_epochs=3, final_epochs=5, lr=0.02)
    phases = network_phases(4, network, settings)
    assert [(phase.name, phase.trainable) for phase in phases] == trained
    assert [phase.epochs for phase in phases] == [3, 5]
    assert {rate for phase in phases for rate in phase.lrs} == {0.02}


def test_without_frozen_epochs_the_copied_groups_thaw_from_the_start_as_in_the_paper(on_images):
    settings = on_images(frozen_epochs=0, final_epochs=4)
    phases = network_phases(4, Network("BnB+", 1), settings)
    assert [(phase.trainable, phase.epochs) for phase in phases] == [((0, 1, 2, 3), 4)]


def test_frozen_copies_end_as_they_were_and_thawed_ones_move(on_images, monkeypatch):
    networks = networks_for(dataclasses.replace(on_images(), layers=[2]))
    learners = {}
    original = build_learner

    def remembered(settings, task, context, *, pretrained):
        learners["last"] = original(settings, task, context, pretrained=pretrained)
        return learners["last"]

    monkeypatch.setattr(networks_module, "build_learner", remembered)
    for curve in ("AnB", "AnB+", "BnB"):
        networks.run(Network(curve, 2))
        base = "baseB" if curve == "BnB" else "baseA"
        (file,) = (networks.folder.path.parent / "bases").glob(f"{base}_seed0-*.safetensors")
        weights, learner = load_file(file), learners["last"]
        below = tuple(f"{prefix}." for group in learner.layer_groups[:2] for prefix in group.prefixes)
        state = {name: value for name, value in learner.model.state_dict().items() if name.startswith(below)}
        still = [name for name, value in state.items() if torch.equal(value, weights[name])]
        assert len(state) > 10
        assert (len(still) == len(state)) == (curve != "AnB+")


def test_new_layers_are_the_same_for_every_curve_and_others_than_those_of_the_base(on_images, monkeypatch):
    networks = networks_for(dataclasses.replace(on_images(), layers=[1]))
    starts = []
    original = build_learner

    def remembered(settings, task, context, *, pretrained):
        learner = original(settings, task, context, pretrained=pretrained)
        starts.append(
            learner.model.state_dict()["backbone.encoder.stages.1.layers.0.layer.0.convolution.weight"].clone()
        )
        return learner

    monkeypatch.setattr(networks_module, "build_learner", remembered)
    for network in (Network("baseB"), Network("BnB", 1), Network("random", 1), Network("new")):
        networks.run(network)
    assert len(starts) == 4
    assert all(torch.equal(start, starts[1]) for start in starts[2:])
    assert not torch.equal(starts[0], starts[1])


# ---- whole runs


def test_every_network_of_every_seed_is_a_cell(finished):
    settings, output, said, results = finished
    records = CellFolder(output / "cells").records()
    expected = {(network.curve, network.n) for network in networks_of([2, 3])}
    assert len(expected) == 3 + 5 * 2
    for seed in (0, 1):
        assert {(r["curve"], r["copied"]) for r in records if r["cell"]["seed"] == seed} == expected
    assert {(record["steps"], record["epochs"]) for record in records} == {(6, 2)}
    assert said[1] == "layer groups: stem | stage0 | stage1 | head; 26 networks to train"
    assert said[2].startswith("seed 0: task A is ")
    assert sum(": accuracy " in line for line in said) == 26
    assert list((output / "bases").iterdir()) == []


def test_the_results_hold_curves_table_answer_and_picture(finished):
    _, output, _, results = finished
    stored = json.loads((output / "results.json").read_text())
    assert stored["title"] == "Greys"
    assert stored["groups"] == ["stem", "stage0", "stage1", "head"]
    assert {point["seeds"] for point in stored["points"]} == {2}
    assert [point["n"] for point in stored["points"] if point["curve"] == "AnB+"] == [2, 3]
    assert stored["answer"].startswith("Unfreezing after training the head ")
    assert (output / "results.md").read_text().startswith(results["table"])
    assert results["answer"] in (output / "results.md").read_text()
    rows = list(csv.DictReader((output / "results.csv").open()))
    assert len(rows) == 26
    assert {row["test_rows"] for row in rows} == {"4"}
    assert {row["curve"] for row in rows} == {*CURVES, "baseA", "baseB", "new"}
    assert (output / "transferability.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_trains_nothing_and_says_the_same(finished, monkeypatch):
    settings, _, _, results = finished
    monkeypatch.setattr(SeedOfNetworks, "_trained", None)  # training would fail
    said, context = heard()
    again = run_transferability(settings, context=context)
    assert (again["points"], again["answer"]) == (results["points"], results["answer"])
    assert not any("accuracy" in line for line in said[:-1])


def test_a_run_goes_on_with_the_networks_that_are_missing(finished, tmp_path):
    settings, output, _, results = finished
    copied = tmp_path / "cells"
    copied.mkdir()
    for file in (output / "cells").iterdir():
        if "AnB-n2" not in file.name:
            (copied / file.name).write_bytes(file.read_bytes())
    said, context = heard()
    moved = dataclasses.replace(settings, output_dir=str(tmp_path))
    again = run_transferability(moved, context=context)
    trained = [line.split(":")[0] for line in said if ": accuracy " in line]
    assert trained == ["seed 0, baseA", "seed 0, AnB-n2", "seed 1, baseA", "seed 1, AnB-n2"]  # weights, then the cell
    assert again["points"] == results["points"]


def test_other_numbers_train_anew_and_older_networks_are_left_out(finished, tmp_path):
    settings, output, _, _ = finished
    (tmp_path / "cells").mkdir()
    for file in (output / "cells").iterdir():
        (tmp_path / "cells" / file.name).write_bytes(file.read_bytes())
    said, context = heard()
    fewer = dataclasses.replace(settings, output_dir=str(tmp_path), seeds=1, layers=[3], lr=0.01)
    results = run_transferability(fewer, context=context)
    assert sum(": accuracy " in line for line in said) == 3 + 5
    assert {point["seeds"] for point in results["points"]} == {1}
    assert {point["n"] for point in results["points"]} == {0, 3}
    assert "in the only seed" in results["answer"]


def test_a_network_that_another_process_is_at_is_left_to_it(on_images):
    networks = networks_for(dataclasses.replace(on_images(), layers=[1]))
    said = []
    networks = dataclasses.replace(networks, context=dataclasses.replace(networks.context, say=said.append))
    lock = networks.folder.path / f".{networks.cell(Network('new')).training}.lock"
    lock.parent.mkdir(parents=True)
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert networks.run(Network("new")) is None
    assert said == ["seed 0, new: another process is at it, left to it"]


def test_a_model_of_ones_own_gives_its_weights_to_the_bases_alone(on_images, tmp_path):
    model = save_backbone(tmp_path / "resnet")
    settings = on_images(model=str(model), image_size=None)
    stem = "backbone.embedder.embedder.convolution.weight"
    given = load_file(model / "model.safetensors")["embedder.embedder.convolution.weight"]
    assert torch.equal(learner_for(settings, pretrained=True).model.state_dict()[stem], given)
    assert not torch.equal(learner_for(settings, pretrained=False, seed=5).model.state_dict()[stem], given)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """Return a table of 48 texts of four labels, each told by its word."""
    chance = np.random.default_rng(0)
    rows = [(" ".join([*chance.choice(FILLERS, 5), LABELS[row % 4], str(row)]), LABELS[row % 4]) for row in range(48)]
    return write_csv(tmp_path_factory.mktemp("texts") / "told.csv", rows)


@pytest.mark.parametrize("kind", ["awd_lstm", "bert"])
def test_texts_are_told_apart_by_an_awd_lstm_or_a_transformer(kind, sentences, tmp_path, request):
    folder = request.getfixturevalue("tiny_language_model_folder") if kind == "awd_lstm" else save_bert(tmp_path / kind)
    settings = TransferabilitySettings(
        train_file=[str(sentences)],
        model=str(folder),
        output_dir=str(tmp_path / "run"),
        seeds=1,
        layers=[2],
        max_length=12,
        **SHORT,
    )
    said, context = heard()
    results = run_transferability(settings, context=context)
    below = {"awd_lstm": ["embeddings", "lstm0", "lstm1"], "bert": ["embeddings", "block0", "block1", "block2"]}[kind]
    assert results["groups"] == [*below, "head"]
    assert results["title"] == "told"
    assert len(results["cells"]) == 3 + 5
    assert {point["curve"] for point in results["points"]} == {*CURVES, "baseA", "baseB", "new"}
    assert {cell["n"] for cell in results["cells"]} == {6}


def test_the_rate_is_that_of_the_kind_of_model(on_images, tiny_language_model_folder, tmp_path):
    text = {"train_file": ["x.csv"], "output_dir": "none"}
    assert rate_of(on_images()) == 4e-3
    assert rate_of(TransferabilitySettings(**text, model=str(tiny_language_model_folder))) == 5e-3
    assert rate_of(TransferabilitySettings(**text, model=str(save_bert(tmp_path / "bert")))) == 3e-4
    assert rate_of(on_images(lr=0.1)) == 0.1


def test_what_is_left_out_depends_on_the_data(builtin):
    texts = with_defaults(TransferabilitySettings(train_file=["tables/told.csv"]))
    assert (texts.model, texts.title, texts.rows_of_a, texts.frozen_epochs) == ("awd-lstm-en", "told", None, 3)
    digits = with_defaults(TransferabilitySettings(dataset="digits", rows_of_a=70, title="Mine"))
    assert (digits.model, digits.title, digits.rows_of_a, digits.rows_of_b) == (None, "Mine", 70, 150)
    samples = with_defaults(TransferabilitySettings(dataset="docstrings", test_rows=70))
    assert (samples.model, samples.rows_of_b, samples.max_length, samples.test_rows) == ("awd-lstm-en", 200, 48, 70)


def test_garbage_collections_are_as_before_after_a_run():
    frozen = gc.get_freeze_count()
    with pytest.raises(RuntimeError, match="in the block"), quick_collections():
        assert gc.get_freeze_count() > 0
        raise RuntimeError("in the block")
    assert (gc.get_freeze_count() > 0) == (frozen > 0)


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "give one of dataset, train_images, train_file to take tasks from, got none; --dataset digits needs no"),
        ({"dataset": "digits", "train_file": ["x.csv"]}, "to take tasks from, got dataset and train_file"),
        ({"dataset": "digit"}, "dataset must be one of digits, docstrings, None, got 'digit'; did you mean 'digits'"),
        (
            {"dataset": "digits", "test_images": "x"},
            "test_images 'x' has no meaning for dataset 'digits', which are",
        ),
        ({"dataset": "digits", "max_length": 3}, "max_length 3 has no meaning for dataset 'digits', which are images"),
        ({"train_file": ["x.csv"], "image_size": 8}, "image_size 8 has no meaning for train_file .*, which are texts;"),
        ({"train_images": "x", "test_file": "y"}, "test_file 'y' has no meaning for train_images 'x'"),
        ({"dataset": "digits", "seeds": 0}, "seeds must be a whole number of 1 or more, got 0"),
        ({"dataset": "digits", "frozen_epochs": -1}, "frozen_epochs must be a whole number of 0 or more, got -1"),
        ({"dataset": "digits", "lr": 0}, "lr must be a number above 0, got 0"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        TransferabilitySettings(**changes)


def test_several_processes_of_one_launch_are_refused(on_images, monkeypatch):
    _, context = heard()
    monkeypatch.setattr(type(context.accelerator), "num_processes", 2)
    with pytest.raises(ValueError, match="the comparison runs in one process, it was launched in 2; start the same"):
        run_transferability(on_images(), context=context)


def test_fewer_than_four_classes_are_refused(tmp_path):
    folder = write_images(tmp_path / "three", CLASSES[:3], count=4)
    words = r"two tasks of at least 2 classes each need 4 classes, the table has 3 \(dark, dim, pale\)"
    with pytest.raises(TableError, match=words):
        run_transferability(TransferabilitySettings(train_images=str(folder), output_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_a_task_without_a_row_of_a_class_to_train_on_is_refused(on_images):
    with pytest.raises(TableError, match="there is no row of the class '[012]' to train on; add some, or raise"):
        networks_for(on_images(rows_of_a=2, task_a=["0", "1", "2"], train_images=None, dataset="digits"))


def test_test_images_of_one_task_alone_are_refused(on_images, tmp_path):
    tested = write_images(tmp_path / "tested", ("dark", "dim"), count=2, seed=5)
    with pytest.raises(TableError, match="there is no row of pale, white to test on"):
        networks_for(on_images(test_images=str(tested), task_a=["dark", "dim"]))


def test_an_image_that_does_not_open_is_named_before_anything_is_trained(tmp_path):
    folder = write_images(tmp_path / "photos", CLASSES, count=4)
    (folder / "dim" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken.png \(row 9\)"):  # of all 17, in the order of the folders
        run_transferability(TransferabilitySettings(train_images=str(folder), output_dir=str(tmp_path / "run")))


def test_the_head_is_always_new_and_one_group_leaves_nothing_to_copy():
    groups = ["stem", "stage0", "stage1", "head"]
    assert checked_layers(groups, None) == [1, 2, 3]
    assert checked_layers(groups, [3, 1, 3]) == [1, 3]
    with pytest.raises(ValueError, match=r"the model has 1 layer group \(all\), so there is none below the head"):
        checked_layers(["all"], None)
    with pytest.raises(ValueError, match="numbers of layer groups to copy, from 1 to 3 .*, got 0, 4; the groups are"):
        checked_layers(groups, [0, 2, 4])
    with pytest.raises(ValueError, match="from 1 to 3 .*, got none"):
        checked_layers(groups, [])
