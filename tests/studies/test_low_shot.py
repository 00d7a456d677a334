"""The grid of few labels, run whole on tables of a few dozen rows and a model of a few thousand weights."""

import dataclasses
import json
import shutil
from unittest import mock

import numpy as np
import pytest
import torch

from tests.support.tiny_runs import heard, reviews, write_csv
from ulmfit_pipe.data.tables.tables import TableError
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM
from ulmfit_pipe.settings.studies import LowShotSettings
from ulmfit_pipe.settings.text import ClassifierSettings, LanguageModelSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, read_stage
from ulmfit_pipe.storage.locks import held
from ulmfit_pipe.studies import low_shot
from ulmfit_pipe.studies.grid import training as grid_training
from ulmfit_pipe.studies.grid.cells import Cell, CellFolder
from ulmfit_pipe.studies.low_shot import run_low_shot
from ulmfit_pipe.text import classifier

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
LM = LanguageModelSettings(plan="full", epochs=1, batch_size=4, bptt=11)
CLASSIFIER = ClassifierSettings(plan="gradual", epochs_per_phase=1, final_epochs=1, lr=5e-3)
SMALL = {"sizes": [8, 16], "seeds": [2, 1], "test_rows": 10, "development_rows": 6}


@pytest.fixture(scope="module")
def backward_folder(tmp_path_factory, tiny_tokenizer, tiny_language_model_folder):
    """Return the folder of a random backward language model with the forward one's vocabulary."""
    folder = tmp_path_factory.mktemp("models") / "backward"
    config = AwdLstmForCausalLM.from_pretrained(tiny_language_model_folder).config
    config.direction = "backward"
    torch.manual_seed(1)
    AwdLstmForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with 40 labelled reviews, 20 test reviews and 30 unlabelled ones, 5 of them test reviews."""
    folder = tmp_path_factory.mktemp("tables")
    test = reviews(20, seed=2)
    write_csv(folder / "train.csv", reviews(40, seed=1))
    write_csv(folder / "test.csv", test)
    write_csv(folder / "more.csv", [(text,) for text, _ in [*reviews(25, seed=3), *test[:5]]], columns=("text",))
    return folder


@pytest.fixture(scope="module")
def settings_for(place, tiny_language_model_folder, backward_folder):
    """Return a function that makes a grid's settings."""

    def settings_for(output, **changes):
        return LowShotSettings(
            **{
                "train_file": [str(place / "train.csv")],
                "test_file": str(place / "test.csv"),
                "unlabelled_file": [str(place / "more.csv")],
                "output_dir": str(output),
                "model": str(tiny_language_model_folder),
                "model_backward": str(backward_folder),
                "language_model": LM,
                "classifier": CLASSIFIER,
                **SMALL,
                **changes,
            }
        )

    return settings_for


@pytest.fixture(scope="module")
def finished(settings_for, tmp_path_factory):
    """Return the folder of a grid of all methods, what was said, and its results."""
    output = tmp_path_factory.mktemp("grid") / "run"
    said, context = heard()
    methods = ["scratch", "pretrained", "ulmfit", "ensemble", "tfidf"]
    return output, said, run_low_shot(settings_for(output, methods=methods), context=context)


@pytest.fixture
def again(finished, settings_for, tmp_path):
    """Return a function that runs the finished grid once more, in a copy, with changes; it gives what was said."""
    output = shutil.copytree(finished[0], tmp_path / "run")

    def again(**changes):
        said, context = heard()
        methods = {"methods": ["scratch", "pretrained", "ulmfit", "ensemble", "tfidf"]}
        results = run_low_shot(settings_for(output, **{**methods, **changes}), context=context)
        return output, said, results

    return again


def done(said):
    return [line.split(":")[0] for line in said if "% " not in line and ": error " in line]


def test_every_method_size_and_seed_is_a_cell_and_an_ensemble_brings_its_halves(finished):
    output, _, results = finished
    names = {file.stem for file in (output / "cells").glob("*.json")}
    methods = ("scratch", "pretrained", "ulmfit", "backward", "ensemble", "tfidf")
    places = ("8_seed0", "8_seed1", "16_seed0")
    assert names == {f"{method}_{place}_test10" for method in methods for place in places}
    assert {(row["method"], row["size"], row["seeds"]) for row in results["summary"]} == {
        (method, size, seeds) for method in methods for size, seeds in ((8, 2), (16, 1))
    }
    assert {cell["n"] for cell in results["cells"]} == {10}
    assert {(cell["cell"]["size"], cell["rows"]) for cell in results["cells"]} == {(8, 8), (16, 16)}


def test_no_classifier_is_left_behind(finished):
    assert list((finished[0] / "models").iterdir()) == []


def test_the_ensemble_is_the_average_of_its_two_halves(finished, place):
    cells = CellFolder(finished[0] / "cells")
    cell = Cell("ensemble", 8, 1, 10)
    halves = [cells.probabilities(dataclasses.replace(cell, method=method)) for method in ("ulmfit", "backward")]
    assert not np.array_equal(*halves)
    assert np.array_equal(cells.probabilities(cell), (halves[0] + halves[1]) / 2)
    np.testing.assert_allclose(cells.probabilities(cell).sum(axis=1), 1)


def test_the_language_models_are_fine_tuned_once_a_direction_on_no_test_text(finished):
    output, said, _ = finished
    assert sum("language model saved in" in line for line in said) == 2
    assert "left out 5 of 70 texts of the language model that are also in the test table" in said
    directions = [
        json.loads((output / f"language_model{suffix}/config.json").read_text())["direction"]
        for suffix in ("", "_backward")
    ]
    assert directions == ["forward", "backward"]


def test_scratch_has_as_many_epochs_as_all_phases_and_the_best_of_three_rates(finished):
    output, said, results = finished
    twins = [cell for cell in results["cells"] if cell["cell"]["method"] == "scratch"]
    assert {cell["epochs"] for cell in twins} == {3 * 1 + 1}
    assert all("full" in cell["plan"] for cell in twins)
    trials = {(record["cell"]["size"], record["lr"]): record for record in CellFolder(output / "rates").records()}
    assert sorted(trials) == [(size, rate) for size in (8, 16) for rate in (1.25e-3, 2.5e-3, 5e-3)]
    assert {(record["n"], record["cell"]["seed"]) for record in trials.values()} == {(6, 0)}
    for size in (8, 16):
        errors = {rate: record["error"] for (of, rate), record in trials.items() if of == size}
        best = min(errors, key=errors.__getitem__)
        assert {cell["lr"] for cell in twins if cell["cell"]["size"] == size} == {best}
    assert sum("chosen by development error" in line for line in said) == 2


def test_the_weights_from_scratch_are_random_and_the_pretrained_ones_are_not_fine_tuned(finished, tmp_path):
    output, _, _ = finished
    identities = {
        record["cell"]["method"]: record["identity"]
        for record in CellFolder(output / "cells").records()
        if record["cell"]["method"] not in ("tfidf", "ensemble")
    }
    assert {method: identity["settings"]["from_scratch"] for method, identity in identities.items()} == {
        "scratch": True,
        "pretrained": False,
        "ulmfit": False,
        "backward": False,
    }
    assert identities["scratch"]["model"] == identities["pretrained"]["model"]
    assert len({identities[method]["model"] for method in ("pretrained", "ulmfit", "backward")}) == 3


def test_results_and_picture_are_written_and_say_what_is_generous(finished):
    output, _, results = finished
    stored = json.loads((output / "results.json").read_text())
    assert "the network from scratch has the best of several learning rates" in stored["about"]
    assert stored["about"] in (output / "results.md").read_text()
    assert results["table"].splitlines()[0].startswith("| test error %, 10 test rows ")
    assert len((output / "results.csv").read_text().splitlines()) == 1 + 18
    content = (output / "curve.png").read_bytes()
    assert content.startswith(PNG_SIGNATURE)
    assert list(stored["curves"]) == [
        "from scratch",
        "pretrained",
        "ULMFiT",
        "ULMFiT backward",
        "ULMFiT both ways",
        "TF-IDF + logistic regression",
    ]


def test_a_second_run_trains_nothing_and_gives_the_same_results(again, finished, monkeypatch):
    monkeypatch.setattr(classifier, "build_classifier_learner", None)  # training would fail
    monkeypatch.setattr(grid_training, "fit_tfidf", None)
    output, said, results = again()
    assert done(said) == []
    assert sum("language_model: already finished" in line for line in said) == 2
    assert results["summary"] == finished[2]["summary"]


def test_a_cell_that_is_gone_or_cut_short_is_done_again_and_no_other(again, finished):
    output, _, _ = again(stage="results")
    (output / "cells/ulmfit_8_seed1_test10.npy").unlink()
    cut = output / "cells/tfidf_16_seed0_test10.json"
    cut.write_bytes(cut.read_bytes()[:100])
    _, said, results = again()
    assert done(said) == ["ulmfit, 8 labels, seed 1, 10 test rows", "tfidf, 16 labels, seed 0, 10 test rows"]
    assert results["summary"] == [{**row, "seconds": mock.ANY} for row in finished[2]["summary"]]


def test_changed_settings_do_again_what_they_change(again):
    _, said, results = again(classifier=dataclasses.replace(CLASSIFIER, lr_decay=1.3))
    assert {line.split(",")[0] for line in done(said)} == {"pretrained", "ulmfit", "backward", "ensemble"}
    assert results["left_out"] == []


def test_seeds_of_an_earlier_setting_are_left_out_of_the_mean(again):
    changed = dataclasses.replace(CLASSIFIER, lr_decay=1.3)
    _, said, results = again(classifier=changed, methods=["pretrained"], sizes=[8], seeds=[1])
    assert [cell["cell"]["seed"] for cell in results["left_out"]] == [1]
    assert any(line.startswith("left out: pretrained, 8 labels, seed 1: made with other settings") for line in said)
    row = next(row for row in results["summary"] if (row["method"], row["size"]) == ("pretrained", 8))
    assert row["seeds"] == 1


def test_another_number_of_test_rows_is_another_cell(again):
    output, said, results = again(methods=["tfidf"], test_rows=None, seeds=[1])
    assert done(said) == ["tfidf, 8 labels, seed 0, 20 test rows", "tfidf, 16 labels, seed 0, 20 test rows"]
    assert (output / "cells/tfidf_8_seed0_test10.json").is_file()
    assert results["table"].count("test error %") == 2
    assert len(results["curves"]) == 6


def test_epochs_may_differ_by_size(again):
    _, said, results = again(methods=["pretrained", "scratch"], final_epochs=[1, 3], scratch_epochs=[4, 2])
    epochs = {
        (cell["cell"]["method"], cell["cell"]["size"]): cell["epochs"]
        for cell in results["cells"]
        if cell["cell"]["method"] in ("pretrained", "scratch")
    }
    assert epochs == {("pretrained", 8): 4, ("pretrained", 16): 6, ("scratch", 8): 4, ("scratch", 16): 2}
    assert set(done(said)) == {
        "pretrained, 16 labels, seed 0, 10 test rows",
        "scratch, 16 labels, seed 0, 10 test rows",
        *(f"scratch-lr{rate}, 16 labels, seed 0, 6 test rows" for rate in ("0.00125", "0.0025", "0.005")),
    }


def test_a_cell_that_another_process_is_at_is_left_to_it_and_its_ensemble_waits(again):
    output, _, _ = again(stage="results")
    for method in ("ulmfit", "ensemble"):
        (output / f"cells/{method}_8_seed1_test10.json").unlink()
    with held(output / "cells/.ulmfit_8_seed1.lock", wait=False):
        _, said, results = again()
    assert "ulmfit, 8 labels, seed 1, 10 test rows: another process is at it, left to it" in said
    words = (
        "ensemble, 8 labels, seed 1, 10 test rows: waits for its halves; run the command again when they are finished"
    )
    assert words in said
    assert len(results["cells"]) == 16
    assert len(done(again()[1])) == 2


def test_two_processes_share_the_work_by_methods(settings_for, tmp_path):
    first = run_low_shot(settings_for(tmp_path / "run", methods=["tfidf"]), context=heard()[1])
    second = run_low_shot(settings_for(tmp_path / "run", methods=["pretrained"]), context=heard()[1])
    assert {row["method"] for row in first["summary"]} == {"tfidf"}
    assert {row["method"] for row in second["summary"]} == {"pretrained", "tfidf"}


def test_the_language_model_alone_can_be_run_first(settings_for, tmp_path):
    found = run_low_shot(settings_for(tmp_path / "run", methods=["ulmfit"], stage="language_model"), context=heard()[1])
    assert found["language_models"] == {"ulmfit": str(tmp_path / "run" / "language_model")}
    assert read_stage(tmp_path / "run/language_model")["metrics"]["perplexity"] > 1
    assert not (tmp_path / "run" / "cells").exists()


@pytest.mark.parametrize(("choice", "expected"), [("training", 40), ("unlabelled", 25), ("both", 65)])
def test_the_texts_of_the_language_model_are_those_asked_for(settings_for, tmp_path, monkeypatch, choice, expected):
    given = []
    monkeypatch.setattr(low_shot, "train_language_model", lambda *texts, **_settings: given.extend(texts))
    settings = settings_for(tmp_path, methods=["ulmfit"], language_model_text=choice, stage="language_model")
    run_low_shot(settings, context=heard()[1])
    assert [part.column_names for part in given] == [["text"], ["text"]]
    assert sum(len(part) for part in given) == expected


def test_settings_can_be_chosen_by_development_rows_apart_from_the_tests(again):
    changed = dataclasses.replace(CLASSIFIER, lr_decay=1.3)
    output, said, results = again(score="development", methods=["tfidf", "ulmfit"], seeds=[1], classifier=changed)
    assert {file.stem for file in (output / "development/cells").glob("*.json")} == {
        f"{method}_{size}_seed0_test6" for method in ("tfidf", "ulmfit") for size in (8, 16)
    }
    assert results["title"] == "run, development rows"
    assert results["about"].startswith("The rows scored here are development rows, not test rows. ")
    assert (output / "development/curve.png").is_file()
    assert sum("language_model: already finished" in line for line in said) == 1
    assert len(list((output / "cells").glob("*.json"))) == 18


@pytest.mark.parametrize("changes", [{"sizes": [8, 0]}, {"development_rows": 0}])
def test_development_rows_cannot_be_scored_where_there_are_none_or_cells_train_on_them(settings_for, tmp_path, changes):
    with pytest.raises(ValueError, match=r"score development needs development_rows of 1 or more, got \d, and sizes"):
        run_low_shot(settings_for(tmp_path / "run", score="development", **changes), context=heard()[1])


def test_another_language_model_does_not_take_the_place_of_one_that_cells_were_made_with(again):
    with pytest.raises(ArtifactError, match=r"language_model stage of another run; it differs in settings.epochs \(1"):
        again(language_model=dataclasses.replace(LM, epochs=2))


def test_grids_are_drawn_side_by_side(finished, settings_for, tmp_path):
    files = [str(finished[0] / "results.json")] * 2
    results = run_low_shot(settings_for(tmp_path, combine=files, figure=str(tmp_path / "both.png")))
    assert (tmp_path / "both.png").read_bytes().startswith(PNG_SIGNATURE)
    assert results["table"].count("run\n\n") == 2
    with pytest.raises(
        ValueError, match="combine draws several results.json into one picture: give its path with --figure"
    ):
        run_low_shot(settings_for(tmp_path, combine=files))


# ---- what is refused


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["ulmfit", "magic"]}, "methods must be some of scratch, pretrained, .*, tfidf, got magic"),
        ({"methods": []}, "methods must be some of scratch, .*, got none"),
        ({"seeds": [1, 2, 3]}, r"seeds needs one number of 1 or more for each of sizes \[8, 16\], got \[1, 2, 3\]"),
        ({"seeds": [0]}, r"seeds needs one number of 1 or more .* got \[0\]"),
        ({"final_epochs": [3]}, r"final_epochs needs one number of 1 or more for each of sizes \[8, 16\], got \[3\]"),
        ({"scratch_epochs": [3, 0]}, r"scratch_epochs needs one number of 1 or more for each .* got \[3, 0\]"),
        ({"sizes": [8, 8], "seeds": [1]}, r"sizes must be different numbers of rows, 0 for all, got \[8, 8\]"),
        ({"sizes": [], "seeds": [1]}, r"sizes must be different numbers of rows, 0 for all, got \[\]"),
        ({"sizes": [-1], "seeds": [1]}, r"sizes must be different numbers of rows, 0 for all, got \[-1\]"),
        ({"scratch_factors": []}, r"scratch_factors must be numbers above 0, 1 for the rate itself, got \[\]"),
        ({"scratch_factors": [0.5, 0]}, r"scratch_factors must be numbers above 0, .* got \[0.5, 0\]"),
        ({"test_rows": 0}, "test_rows must be a whole number of 1 or more, got 0"),
        ({"methods": ["ensemble"], "model_backward": None}, "give --model_backward, such as awd-lstm-en-backward"),
    ],
)
def test_settings_that_make_no_grid_are_refused(settings_for, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        settings_for(tmp_path / "run", **changes)


def test_unlabelled_text_has_to_be_given_where_the_language_model_reads_nothing_else(settings_for, tmp_path):
    settings = settings_for(tmp_path / "run", language_model_text="unlabelled", unlabelled_file=None)
    with pytest.raises(ValueError, match="language_model_text is unlabelled, and there is no unlabelled_file; give on"):
        run_low_shot(settings, context=heard()[1])


def test_a_grid_without_tables_is_refused(settings_for, tmp_path):
    for missing in ({"train_file": []}, {"test_file": None}):
        with pytest.raises(ValueError, match="give --train_file and --test_file"):
            run_low_shot(settings_for(tmp_path / "run", **missing))
    assert not (tmp_path / "run").exists()


def test_a_language_model_without_texts_is_refused_and_cells_that_need_none_are_not(settings_for, tmp_path):
    changes = {"language_model_text": "unlabelled", "unlabelled_file": None}
    with pytest.raises(
        ValueError, match="language_model_text is unlabelled, and there is no unlabelled_file; give one"
    ):
        run_low_shot(settings_for(tmp_path / "run", **changes), context=heard()[1])
    assert run_low_shot(settings_for(tmp_path / "run", methods=["tfidf"], **changes), context=heard()[1])["summary"]


def test_a_size_that_cannot_be_drawn_is_refused_before_anything_is_trained(settings_for, tmp_path):
    with pytest.raises(TableError, match="a subset of 35 rows is asked for, 40 labelled rows less 6 for development"):
        run_low_shot(settings_for(tmp_path / "run", sizes=[8, 35], seeds=[1]), context=heard()[1])
    assert not (tmp_path / "run").exists()


def test_several_processes_of_one_launch_are_refused(settings_for, tmp_path, monkeypatch):
    _, context = heard()
    monkeypatch.setattr(type(context.accelerator), "num_processes", 2)
    with pytest.raises(ValueError, match="it was launched in 2; start the same command twice instead"):
        run_low_shot(settings_for(tmp_path / "run"), context=context)


def test_results_of_an_empty_grid_are_refused(settings_for, tmp_path):
    with pytest.raises(ValueError, match="holds no finished cell; run the grid first"):
        run_low_shot(settings_for(tmp_path / "run", stage="results"), context=heard()[1])
