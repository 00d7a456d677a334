"""A saved classifier continues on new rows: its head's rows stay, new classes get theirs, old rows are read again."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from tests.support.tiny_runs import heard, reviews, table, write_csv
from tests.support.tiny_transformers import save_bert
from ulmfit_pipe import TextPipeline, update_table
from ulmfit_pipe.data.tables.tables import TableError
from ulmfit_pipe.settings.parsing import load_settings
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.settings.text_runs import ClassifierJob, PipelineSettings, UpdateSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, read_stage
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.text.classifier import build_classifier_learner, train_classifier
from ulmfit_pipe.text.head_probe import last_layer
from ulmfit_pipe.text.jobs import run_classifier
from ulmfit_pipe.text.pipeline import run_pipeline
from ulmfit_pipe.text.updating.update import run_update
from ulmfit_pipe.training.linear_probe import Features, fit_new_rows

PROBE = ClassifierSettings(plan="probe", batch_size=8)
SHORT = ClassifierSettings(final_epochs=1, batch_size=8)
THREE = ("bad", "good", "fair")  # in the order of an update: old ones first


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_language_model_folder):
    """Return a folder with tables and, in `old`, a classifier of bad and good."""
    folder = tmp_path_factory.mktemp("update")
    write_csv(folder / "old.csv", reviews(40))
    write_csv(folder / "new.csv", reviews(24, seed=5, labels=("fair", "fair", "good")))
    write_csv(folder / "test.csv", reviews(30, seed=9, labels=("bad", "fair", "good")))
    job = ClassifierJob(
        [str(folder / "old.csv")], str(folder / "old"), str(tiny_language_model_folder), classifier=PROBE
    )
    run_classifier(job)
    return folder


@pytest.fixture(scope="module")
def updated(place):
    """Return settings, metrics and log of an update that trains."""
    settings = settings_for(place, "updated", classifier=SHORT, test_file=str(place / "test.csv"))
    said, context = heard()
    return settings, run_update(settings, context=context), said


def settings_for(place, output, **changes):
    given = {
        "model": str(place / "old"),
        "train_file": [str(place / "new.csv")],
        "output_dir": str(place / output),
        "classifier": PROBE,
        **changes,
    }
    return UpdateSettings(**given)


def test_a_probe_update_keeps_the_network_and_the_old_rows_of_the_head_bit_for_bit(place):
    run_update(settings_for(place, "probed"))
    before, after = (load_file(place / name / "model.safetensors") for name in ("old", "probed"))
    head = "classifier.blocks.1.linear.weight"
    assert after.keys() == before.keys()
    assert after[head].shape == (3, before[head].shape[1])
    assert torch.equal(after[head][:2], before[head])
    assert not torch.equal(after[head][2], before[head].mean(0))
    assert all(torch.equal(after[name], before[name]) for name in before if name != head)


def test_labels_come_old_ones_first_and_the_folder_predicts_and_explains(updated):
    settings, metrics, said = updated
    config = json.loads(open(f"{settings.output_dir}/config.json").read())
    assert config["id2label"] == {"0": "bad", "1": "good", "2": "fair"}
    assert config["label2id"] == {"bad": 0, "good": 1, "fair": 2}
    pipeline = TextPipeline.load(settings.output_dir)
    assert list(pipeline.predict(["a plain film"])[0]["scores"]) == list(THREE)
    assert pipeline.explain("a plain film", label="fair").label == "fair"
    assert "new classes: fair; 2 old ones are kept" in said
    assert any(line.startswith("head: 2 rows are kept, 1 new ones start from regression") for line in said)


def test_old_rows_are_read_again_and_trained_on(updated, place):
    settings, metrics, said = updated
    assert "replay: 40 old rows from the tables of the classifier's run, beside 24 new ones" in said
    assert metrics["update"]["rows"] == {"old": 40, "new": 24}
    assert load_settings(UpdateSettings, f"{settings.output_dir}/settings.yaml") == settings
    record = read_stage(settings.output_dir)
    (rates,) = {tuple(epoch["lrs"]) for epoch in record["epochs"][-1:]}
    assert len(rates) == 4 and min(rates) > 0  # all groups train
    assert rates == tuple(sorted(rates))


def test_metrics_hold_accuracy_before_and_after_on_old_and_new_classes(updated):
    settings, metrics, _ = updated
    assert json.loads(open(f"{settings.output_dir}/metrics.json").read()) == metrics
    found = metrics["update"]["test"]
    assert [found[name]["rows"] for name in ("all", "old_classes", "new_classes")] == [30, 20, 10]
    assert found["new_classes"]["before"] == 0
    for name in ("before", "after"):
        right = 20 * found["old_classes"][name] + 10 * found["new_classes"][name]
        assert found["all"][name] == pytest.approx(right / 30)
    assert found["all"]["after"] == metrics["test"]["accuracy"]
    assert found["per_class"]["fair"]["after"] == pytest.approx(metrics["test"]["per_class"]["fair"]["recall"])
    shown = update_table(metrics).splitlines()
    assert shown[0].split() == ["accuracy", "rows", "before", "after"]
    assert [line.split()[2:] for line in shown if line.startswith("test, new classes")][0][1:3] == ["10", "0.0000"]


def test_an_update_again_is_known_and_an_update_of_an_update_has_all_rows(updated, place):
    settings, metrics, _ = updated
    said, context = heard()
    assert run_update(settings, context=context)["update"] == metrics["update"]
    assert any("already finished" in line for line in said)
    write_csv(place / "third.csv", [(f"{text} so odd and strange", "odd") for text, _ in reviews(10, seed=7)])
    again = settings_for(place, "third", model=settings.output_dir, train_file=[str(place / "third.csv")])
    found = run_update(again)["update"]
    assert found["rows"] == {"old": 64, "new": 10}
    assert (found["old_labels"], found["new_labels"]) == (list(THREE), ["odd"])


def test_without_old_rows_it_is_told_what_may_be_forgotten(place, tmp_path):
    said, context = heard()
    found = run_update(settings_for(place, "none", replay="none"), context=context)
    assert found["update"]["rows"] == {"old": 0, "new": 24}
    assert not any("will not know when to give such a label" in line for line in said)
    assert "note: no old rows are trained on; the classes without new rows may be forgotten: bad" in said
    shutil.copytree(place / "old", tmp_path / "copied")
    (tmp_path / "copied/settings.yaml").write_text("a: [")
    run_update(settings_for(place, "torn", model=str(tmp_path / "copied")), context=context)
    assert any("settings.yaml is not YAML; give them with --replay_file" in line for line in said)
    (tmp_path / "copied/settings.yaml").unlink()
    run_update(settings_for(place, "moved", model=str(tmp_path / "copied")), context=context)
    assert any(
        "copied does not tell where its training rows are; give them with --replay_file" in line for line in said
    )


def test_only_rows_of_new_classes_and_no_old_ones_start_at_the_mean_of_the_head(place, tmp_path):
    only = write_csv(tmp_path / "only.csv", reviews(8, labels=("fair",)))
    said, context = heard()
    settings = settings_for(place, "mean", train_file=[str(only)], replay="none", classifier=SHORT)
    run_update(settings, context=context)
    line = (
        "the head's new rows start at the mean of its others: there is no row of an old class to tell the new ones from"
    )
    assert line in said


def test_old_rows_that_have_changed_are_not_taken_for_those_of_the_run(place, tmp_path):
    table_file = write_csv(tmp_path / "old.csv", reviews(40))
    text = (place / "old/settings.yaml").read_text().replace(str(place / "old.csv"), str(table_file))
    shutil.copytree(place / "old", tmp_path / "classifier")
    (tmp_path / "classifier/settings.yaml").write_text(text)
    for changed, rows in ((False, 40), (True, 0)):
        if changed:
            write_csv(table_file, reviews(39))
        said, context = heard()
        name = f"changed-{changed}"
        found = run_update(settings_for(place, name, model=str(tmp_path / "classifier")), context=context)
        assert found["update"]["rows"]["old"] == rows
    assert any(
        f"{table_file} no longer hold the rows that the classifier was trained on; give them with" in line
        for line in said
    )


def test_a_replay_file_takes_the_place_of_the_run_s_rows(place, tmp_path):
    some = write_csv(tmp_path / "some.csv", reviews(6, seed=3))
    found = run_update(settings_for(place, "some", replay_file=[str(some)]))["update"]
    assert (found["rows"], found["replay"]) == ({"old": 6, "new": 24}, "replay_file")
    with pytest.raises(ValueError, match="replay none trains on no old rows, so replay_file has no meaning"):
        settings_for(place, "some", replay_file=[str(some)], replay="none")


def test_held_out_new_rows_are_measured_before_and_after(place):
    found = run_update(settings_for(place, "held", validation_fraction=0.25))
    new = found["update"]["new"]
    assert (new["all"]["rows"], found["update"]["rows"]) == (6, {"old": 40, "new": 18})
    assert found["validation"]["n"] == 6
    assert read_stage(place / "held")["identity"]["settings"]["keep"] == "last"  # by new rows alone old ones would go


def test_the_same_labels_continue_too_and_known_rows_are_left_out(place, tmp_path):
    rows = [*reviews(10, seed=8), *reviews(40)[:4]]
    more = write_csv(tmp_path / "more.csv", rows)
    said, context = heard()
    found = run_update(settings_for(place, "same", train_file=[str(more)], classifier=SHORT), context=context)
    assert found["update"]["new_labels"] == []
    assert "left out 4 of 14 new rows that are among the old ones, text and label" in said
    again = write_csv(tmp_path / "again.csv", reviews(40)[:4])
    with pytest.raises(TableError, match=r"all 4 rows of the new table are among the old rows, text and label; there"):
        run_update(settings_for(place, "again", train_file=[str(again)]))


def test_python_updates_from_tables_in_memory(place):
    pipeline = TextPipeline.load(place / "old")
    texts, labels = zip(*reviews(24, seed=5, labels=("fair", "fair", "good")), strict=True)
    old = Dataset.from_list([{"text": text, "label": label} for text, label in reviews(20)])
    given = {"output_dir": place / "memory", "classifier": {"plan": "probe"}}
    metrics = pipeline.update((list(texts), list(labels)), old=old, **given)
    assert metrics["update"]["rows"] == {"old": 20, "new": 24}
    assert pipeline.predictor.label_names == list(THREE)
    with pytest.raises(ValueError, match=r"update has no setting 'replay_fil'; did you mean 'replay"):
        pipeline.update((["a"], ["b"]), output_dir=place / "x", replay_fil="none")


def test_a_whole_run_s_folder_is_updated_and_its_held_out_rows_stay_held_out(place, tiny_language_model_folder):
    run = PipelineSettings(
        [str(place / "old.csv")],
        str(place / "run"),
        str(tiny_language_model_folder),
        fine_tune_language_model=False,
        validation_fraction=0.2,
        classifier=PROBE,
        baseline="none",
    )
    run_pipeline(run, report=False)
    settings = settings_for(place, "run2", model=str(place / "run"), validation_fraction=0.25, classifier=SHORT)
    found = run_update(settings)
    assert found["update"]["rows"] == {"old": 32, "new": 18}
    assert (found["validation"]["n"], found["update"]["new"]["all"]["rows"]) == (14, 6)
    assert read_stage(place / "run2")["identity"]["settings"]["keep"] == "best"


def test_a_new_class_of_few_rows_can_be_left_out(place, tmp_path):
    rows = [*reviews(6, seed=5, labels=("fair", "good")), ("an odd film", "odd")]
    rare = [str(write_csv(tmp_path / "rare.csv", rows))]
    said, context = heard()
    found = run_update(settings_for(place, "rare", train_file=rare, min_rows_per_class=2), context=context)
    assert found["update"]["new_labels"] == ["fair"]
    assert "left out new classes with fewer than 2 rows (min_rows_per_class): odd (1)" in said
    write_csv(tmp_path / "rare.csv", rows[-1:])
    with pytest.raises(TableError, match="min_rows_per_class 2 leaves no class of the new table; take a lower one"):
        run_update(settings_for(place, "rarer", train_file=rare, min_rows_per_class=2))


# What cannot be used


def test_a_language_model_is_refused(place, tiny_language_model_folder):
    with pytest.raises(ArtifactError, match="is not a classifier of texts, so it has no labels to continue with; give"):
        run_update(settings_for(place, "lm", model=str(tiny_language_model_folder)))


def test_folders_that_are_taken_are_refused(place, updated):
    with pytest.raises(ArtifactError, match="is the classifier to update; choose another output folder, such as"):
        run_update(settings_for(place, "old"))
    with pytest.raises(ArtifactError, match="holds a finished classifier stage of another run; it differs in"):
        run_update(settings_for(place, "updated", seed=3))


def test_an_ensemble_is_refused(place, tmp_path):
    shutil.copytree(place / "old", tmp_path / "both")
    shutil.copytree(place / "old", tmp_path / "both/backward")
    with pytest.raises(ArtifactError, match="is an ensemble with a backward classifier, which cannot be updated"):
        run_update(settings_for(place, "ensemble", model=str(tmp_path / "both")))


def test_labels_of_another_type_are_refused(place, tmp_path):
    numbers = write_csv(
        tmp_path / "numbers.csv", [(text, str(number % 2)) for number, (text, _) in enumerate(reviews(6))]
    )
    words = (
        r"the labels of the new table are integers \(0, 1\), those of .*old are text \(bad, good\); write the new ones"
    )
    with pytest.raises(TableError, match=words):
        run_update(settings_for(place, "numbers", train_file=[str(numbers)]))
    named = settings_for(place, "named", train_file=[str(numbers)], label_names='{"0": "bad", "1": "fair"}')
    assert run_update(named)["update"]["new_labels"] == ["fair"]


def test_a_table_of_several_labels_is_refused_for_a_classifier_of_one(place):
    with pytest.raises(TableError, match=r"gives a text one label, the new table several; give the new rows as the"):
        run_update(settings_for(place, "several", label_separator="|"))


def test_a_new_class_without_a_row_is_refused(tmp_path, tiny_language_model_folder):
    rows = [(text, str(int(label == "bad")), str(row % 2)) for row, (text, label) in enumerate(reviews(20))]
    old = write_csv(tmp_path / "old.csv", rows, columns=("text", "bad", "long"))
    columns = ["bad", "long"]
    job = ClassifierJob([str(old)], str(tmp_path / "old"), str(tiny_language_model_folder), label_column=columns)
    run_classifier(ClassifierJob(**{**vars(job), "classifier": PROBE}))
    new = write_csv(
        tmp_path / "new.csv", [("odd film", "1", "0"), ("calm film", "0", "0")], columns=("text", "bad", "odd")
    )
    given = {"model": str(tmp_path / "old"), "train_file": [str(new)], "label_column": ["bad", "odd"]}
    with pytest.raises(TableError, match="the new table has no row of the class odd, which the classifier does not"):
        run_update(UpdateSettings(**given, output_dir=str(tmp_path / "out"), classifier=PROBE))
    write_csv(tmp_path / "new.csv", [("odd film", "1", "1"), ("calm film", "0", "0")], columns=("text", "bad", "odd"))
    metrics = run_update(UpdateSettings(**given, output_dir=str(tmp_path / "out"), classifier=PROBE))
    assert metrics["update"]["rows"] == {"old": 20, "new": 2}
    assert list(metrics["thresholds"]) == ["bad", "long", "odd"]


def test_settings_that_would_discard_the_head_are_refused(place):
    for name in ("new_head", "from_scratch"):
        with pytest.raises(ValueError, match=f"classifier.{name} true would discard what an update keeps"):
            settings_for(place, "x", classifier=ClassifierSettings(**{name: True}))


# The head


@pytest.mark.parametrize("head", ["own", "concat-pooling", "mean-pooling"])
def test_a_transformer_s_last_layer_gets_rows_and_reads_as_before(tmp_path, head):
    context = RunContext(say=lambda _line: None)
    settings = ClassifierSettings(plan="probe", head=head, batch_size=8, max_length=20)
    first = table(reviews(24))
    train_classifier(
        first, None, model=save_bert(tmp_path / "bert"), output_dir=tmp_path / "old", settings=settings, context=context
    )
    new = table(reviews(24, labels=THREE), names=THREE)
    parts = build_classifier_learner(
        new, None, model=tmp_path / "old", settings=ClassifierSettings(plan="probe-full"), context=context, update=True
    )
    layer = last_layer(parts.network, 3)
    old = last_layer(AutoModelForSequenceClassification.from_pretrained(tmp_path / "old"), 2)
    assert torch.equal(layer.weight[:2], old.weight) and torch.equal(layer.weight[2], old.weight.mean(0))
    if old.bias is not None:
        assert torch.equal(layer.bias[:2], old.bias)
    assert parts.network.config.num_labels == 3
    write_csv(tmp_path / "new.csv", reviews(24, labels=THREE))
    write_csv(tmp_path / "some.csv", reviews(24))
    run = UpdateSettings(
        str(tmp_path / "old"),
        [str(tmp_path / "new.csv")],
        str(tmp_path / "out"),
        replay_file=[str(tmp_path / "some.csv")],
        classifier=SHORT,
    )
    run_update(run, context=context)
    saved = json.loads((tmp_path / "out/config.json").read_text())
    assert saved["ulmfit_pipe"]["max_length"] == 20
    assert list(TextPipeline.load(tmp_path / "out").predict(["a film"])[0]["scores"]) == list(THREE)


@pytest.mark.parametrize("with_bias", [True, False])
def test_new_rows_are_fitted_beside_old_ones_on_their_scale(with_bias):
    chance = np.random.default_rng(0)
    centres = np.array([[4.0, 0, 0, 1], [0, 4, 0, 1], [0, 0, 4, 1]])
    labels = np.arange(90) % 3
    x = (centres[labels] + chance.normal(size=(90, 4))).astype(np.float32)
    weight, bias = np.array([[5.0, 0, 0, 0], [0, 5, 0, 0]]), np.array([0.5, -0.5]) if with_bias else None
    new, new_bias = fit_new_rows(Features(x, labels, 0.0), weight=weight, bias=bias, num_labels=3)
    scores = np.concatenate([x @ weight.T + (0 if bias is None else bias), x @ new.T + new_bias], axis=1)
    assert new.shape == (1, 4) and new_bias.shape == (1,)
    assert (scores.argmax(1) == labels).mean() > 0.9
    assert with_bias or new_bias[0] == 0
