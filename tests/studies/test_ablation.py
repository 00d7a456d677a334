"""Ways to thaw side by side: equal budgets, equal rates, one table."""

import dataclasses
import json

import pytest

from tests.support.tiny_runs import heard, reviews, write_csv
from ulmfit_pipe.data.tables.tables import TableError
from ulmfit_pipe.settings.studies import VARIANTS, AblationSettings
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.studies.ablation import in_words, phases_of_variant, run_ablation, variant_settings
from ulmfit_pipe.studies.grid.cells import CellFolder
from ulmfit_pipe.studies.grid.training import total_epochs
from ulmfit_pipe.text import classifier

SHARED = ClassifierSettings(plan="gradual", lr=5e-3, lr_decay=2.0, epochs_per_phase=1, final_epochs=3, batch_size=8)
SHORT = dataclasses.replace(SHARED, final_epochs=2)
SHOWN = ["head", "full-one-cycle", "gradual-discriminative-slanted", "chain-thaw", "lp-ft"]


@pytest.fixture(scope="module")
def settings_for(tmp_path_factory, tiny_language_model_folder):
    """Return a function that makes the settings of a comparison on 30 labelled and 10 test reviews."""
    place = tmp_path_factory.mktemp("tables")
    write_csv(place / "train.csv", reviews(30, seed=1))
    write_csv(place / "test.csv", reviews(10, seed=2))

    def settings_for(output, **changes):
        return AblationSettings(
            **{
                "train_file": [str(place / "train.csv")],
                "test_file": str(place / "test.csv"),
                "model": str(tiny_language_model_folder),
                "output_dir": str(output),
                "classifier": SHARED,
                "development_rows": 6,
                "seeds": 1,
                **changes,
            }
        )

    return settings_for


@pytest.fixture(scope="module")
def finished(settings_for, tmp_path_factory):
    """Return the folder of a comparison, what was said, and its results."""
    output = tmp_path_factory.mktemp("ablation") / "run"
    said, context = heard()
    settings = settings_for(output, variants=SHOWN, seeds=2, size=16, title="Reviews", classifier=SHORT)
    return output, said, run_ablation(settings, context=context)


# ---- the variants, without training


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_the_same_epochs(settings_for, tmp_path, name):
    phases = phases_of_variant(settings_for(tmp_path), name, heard()[1])
    assert total_epochs(phases) == 3 * 1 + 3


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variants_name_says_its_plan_rates_and_curve(settings_for, tmp_path, name):
    phases = phases_of_variant(settings_for(tmp_path), name, heard()[1])
    plan = {"full": "full", "gradual": "last 1", "head": "head only", "chain": "only 3", "lp": "head"}
    assert phases[0].name == plan[name.split("-")[0]]
    rates = (5e-3 / 8, 5e-3 / 4, 5e-3 / 2, 5e-3)
    assert phases[-1].lrs == pytest.approx(rates if "discriminative" in name else (5e-3,) * 4)
    curve = "slanted_triangular" if name.endswith("slanted") or name in ("head", "chain-thaw", "lp-ft") else "constant"
    curve = "one_cycle" if name.endswith("one-cycle") else curve
    assert {phase.schedule.name for phase in phases[1:] or phases} == {curve}
    assert phases[-1].trainable == ((3,) if name == "head" else (0, 1, 2, 3))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("head", "head only (6)"),
        ("full", "full (6)"),
        ("gradual", "last 1 (1), last 2 (1), last 3 (1), all (3)"),
        ("chain-thaw", "only 3 (1), only 0 (1), only 1 (1), only 2 (1), all (2)"),
        ("lp-ft", "head (3), all (3)"),
    ],
)
def test_the_phases_of_each_way_to_thaw(settings_for, tmp_path, name, words):
    assert in_words(phases_of_variant(settings_for(tmp_path), name, heard()[1])) == words


def test_chain_thaw_and_lp_ft_have_the_shared_rate_in_every_phase(settings_for, tmp_path):
    for name in ("chain-thaw", "lp-ft"):
        phases = phases_of_variant(settings_for(tmp_path), name, heard()[1])
        assert {rate for phase in phases for rate in phase.lrs} == {5e-3}


def test_a_budget_too_small_for_chain_thaw_is_refused(settings_for, tmp_path):
    settings = settings_for(tmp_path, classifier=dataclasses.replace(SHARED, epochs_per_phase=2, final_epochs=2))
    words = (
        "chain-thaw needs 4 phases of 2 before its last, the budget is 8 epochs: raise classifier.final_epochs above 2"
    )
    with pytest.raises(ValueError, match=words):
        variant_settings(settings, "chain-thaw", heard()[1])


def test_the_plans_alone_are_shown_without_training(settings_for, tmp_path):
    said, context = heard()
    found = run_ablation(settings_for(tmp_path / "run", stage="plans"), context=context)
    assert list(found["plans"]) == list(VARIANTS)
    assert said[1] == "full: full (6), 6 epochs, constant"
    assert len(said) == len(VARIANTS)
    assert not (tmp_path / "run").exists()


# ---- whole runs


def test_every_variant_and_seed_is_a_cell_with_its_epochs_steps_and_plan(finished):
    output, said, results = finished
    records = CellFolder(output / "cells").records()
    assert {(r["cell"]["method"], r["cell"]["seed"]) for r in records} == {(v, s) for v in SHOWN for s in (0, 1)}
    assert {(record["epochs"], record["steps"], record["rows"]) for record in records} == {(5, 5 * 2, 16)}
    assert {record["lr"] for record in records} == {5e-3}
    assert said[0] == "head: head only (5), 5 epochs, slanted triangular, cut_frac 0.1, ratio 32"
    assert list((output / "models").iterdir()) == []
    assert not (output / "rates").exists()


def test_the_table_shows_phases_error_seconds_and_steps_in_the_variants_order(finished):
    output, _, results = finished
    lines = results["table"].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == ["variant", "phases (epochs)", "labels", "test error %", "seconds", "steps"]
    assert [row[0] for row in cells[2:]] == SHOWN
    assert [row[1] for row in cells[2:4]] == ["head only (5)", "full (5)"]
    assert {row[5] for row in cells[2:]} == {"10"}
    assert all(row[3].endswith(", 2 seeds)") for row in cells[2:])
    stored = json.loads((output / "results.json").read_text())
    assert stored["title"] == "Reviews"
    assert "the same number of epochs" in (output / "results.md").read_text()


def test_a_second_run_trains_nothing(finished, settings_for, monkeypatch):
    monkeypatch.setattr(classifier, "build_classifier_learner", None)  # training would fail
    settings = settings_for(finished[0], variants=SHOWN, seeds=2, size=16, title="Reviews", classifier=SHORT)
    assert run_ablation(settings, context=heard()[1])["summary"] == finished[2]["summary"]
    results = dataclasses.replace(settings, stage="results")
    assert run_ablation(results, context=heard()[1])["summary"] == finished[2]["summary"]


def test_rates_are_tried_for_each_variant_alike_on_development_rows(settings_for, tmp_path):
    settings = settings_for(tmp_path / "run", variants=["full", "lp-ft"], rates=[1e-3, 4e-3], size=16, seeds=2)
    said, context = heard()
    run_ablation(settings, context=context)
    trials = CellFolder(tmp_path / "run/rates").records()
    assert [(record["cell"]["method"], record["n"], record["cell"]["seed"]) for record in trials] == [
        (f"{variant}-lr{rate}", 6, 0) for variant in ("full", "lp-ft") for rate in (0.001, 0.004)
    ]
    chosen = {}
    for variant in ("full", "lp-ft"):
        errors = {record["lr"]: record["error"] for record in trials if record["cell"]["method"].startswith(variant)}
        chosen[variant] = min(errors, key=errors.__getitem__)
    for record in CellFolder(tmp_path / "run/cells").records():
        rate = chosen[record["cell"]["method"]]
        assert record["lr"] == rate
        rest = record["identity"]["settings"]["rest_lr"]
        assert rest == (rate if record["cell"]["method"] == "lp-ft" else None)


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variants": ["full", "fool"]}, "variants must be some of head, full, .*, lp-ft, got fool"),
        ({"variants": []}, "variants must be some of head, .*, got none"),
        ({"rates": []}, r"rates must be numbers above 0, got \[\]; leave it out for classifier.lr"),
        ({"rates": [1e-2, -1.0]}, r"rates must be numbers above 0, got \[0.01, -1.0\]"),
        ({"seeds": 0}, "seeds must be a whole number of 1 or more, got 0"),
        ({"size": -1}, "size must be a whole number of 0 or more, got -1"),
        (
            {"classifier": ClassifierSettings(lr=1e-2, epochs_per_phase=1)},
            "all variants share one budget and one rate: set classifier.final_epochs",
        ),
        (
            {"classifier": ClassifierSettings()},
            "set classifier.lr, classifier.epochs_per_phase, classifier.final_epochs",
        ),
    ],
)
def test_settings_that_compare_nothing_are_refused(settings_for, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        settings_for(tmp_path / "run", **changes)


def test_several_processes_of_one_launch_are_refused(settings_for, tmp_path, monkeypatch):
    _, context = heard()
    monkeypatch.setattr(type(context.accelerator), "num_processes", 2)
    with pytest.raises(ValueError, match="the comparison runs in one process, it was launched in 2; start the same"):
        run_ablation(settings_for(tmp_path / "run"), context=context)


def test_a_size_that_cannot_be_drawn_is_refused(settings_for, tmp_path):
    with pytest.raises(TableError, match="a subset of 25 rows is asked for, 30 labelled rows less 6 for development"):
        run_ablation(settings_for(tmp_path / "run", size=25), context=heard()[1])
