"""The classifier stage on a model of a few thousand weights."""

import dataclasses
import json
import re
import shutil

import pytest
import torch
from datasets import ClassLabel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.tiny_runs import CLASSIFIER, folder_bytes, heard, multi_label_table, reviews, table
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages import artifacts, stage
from ulmfit_pipe.stages.artifacts import ArtifactError, read_stage
from ulmfit_pipe.stages.config_notes import label_type_in
from ulmfit_pipe.stages.context import RunContext, deadline_after
from ulmfit_pipe.storage.atomic import CheckpointError
from ulmfit_pipe.text import classifier
from ulmfit_pipe.text.classifier import build_classifier_learner, train_classifier
from ulmfit_pipe.text.predict.predictor import Predictor

TRAIN, VALIDATION = table(reviews(36)), table(reviews(10, seed=7))
PLANS = ["preset", "gradual", "chain-thaw", "lp-ft", "head", "full"]


def build(model, train=TRAIN, validation=VALIDATION, **settings):
    return build_classifier_learner(
        train, validation, model=str(model), settings=ClassifierSettings(**settings), context=heard()[1]
    )


def fit(model, folder, train=TRAIN, validation=VALIDATION, settings=CLASSIFIER, context=None):
    return train_classifier(
        train, validation, model=str(model), output_dir=folder, settings=settings, context=context or heard()[1]
    )


@pytest.fixture(scope="module")
def trained(tiny_language_model_folder, tmp_path_factory):
    """Return the folder of a trained classifier, what was said, and the result."""
    folder = tmp_path_factory.mktemp("classifiers") / "reviews"
    said, context = heard()
    return folder, said, fit(tiny_language_model_folder, folder, context=context)


def test_the_encoder_starts_from_the_language_models_weights(tiny_language_model_folder):
    state = build(tiny_language_model_folder).learner.model.state_dict()
    stored = load_file(tiny_language_model_folder / "model.safetensors")
    encoder = {name: value for name, value in stored.items() if name.startswith("model.")}
    assert len(encoder) == 1 + 4 * 2
    assert all(torch.equal(state[name], value) for name, value in encoder.items())


def test_the_twin_from_scratch_has_the_same_shapes_and_other_weights_and_trains_whole(tiny_language_model_folder):
    own, twin = build(tiny_language_model_folder).learner, build(tiny_language_model_folder, from_scratch=True).learner
    first, second = own.model.state_dict(), twin.model.state_dict()
    assert {name: value.shape for name, value in first.items()} == {name: value.shape for name, value in second.items()}
    assert not torch.equal(first["model.embeddings.weight"], second["model.embeddings.weight"])
    assert [group.name for group in own.layer_groups if not group.frozen] == ["head"]
    assert not any(group.frozen for group in twin.layer_groups)


def test_the_folder_says_what_the_classifier_is(trained):
    folder, said, result = trained
    record = read_stage(folder)
    assert record["labels"] == ["bad", "good"]
    assert record["metrics"] == result.metrics
    assert sorted(result.metrics) == ["accuracy", "loss", "macro_f1", "n"]
    assert "learning rates" in record["plan"]
    assert any(line.startswith("1 last 1  head") for line in record["plan"].splitlines())
    assert said[-1].startswith(f"classifier saved in {folder}: validation accuracy ")


def test_a_saved_folder_loads_through_transformers_and_gives_the_same_logits(trained):
    model = AutoModelForSequenceClassification.from_pretrained(trained[0])
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    texts = ["a warm and funny film", "the story was dull, slow and poor in two long hours of music"]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoded).logits
    expected = torch.from_numpy(Predictor.load(trained[0]).probabilities(tokenizer(texts)["input_ids"])).float()
    torch.testing.assert_close(logits.softmax(-1), expected, atol=1e-6, rtol=0)
    assert model.config.id2label == {0: "bad", 1: "good"}


def test_a_finished_stage_is_skipped_and_changed_settings_are_named(trained, tiny_language_model_folder):
    before = folder_bytes(trained[0])
    said, context = heard()
    assert fit(tiny_language_model_folder, trained[0], context=context).skipped
    assert said == [f"classifier: already finished in {trained[0]} with the same settings and data, skipped"]
    with pytest.raises(ArtifactError, match=re.escape("settings.final_epochs (1 there, 2 now)")):
        fit(tiny_language_model_folder, trained[0], settings=ClassifierSettings(final_epochs=2))
    assert folder_bytes(trained[0]) == before


def test_the_same_model_elsewhere_is_the_same_run_and_one_trained_again_is_not(
    trained, tiny_language_model_folder, save_tiny_classifier, tmp_path
):
    moved = shutil.copytree(tiny_language_model_folder, tmp_path / "moved")
    assert fit(moved, trained[0]).skipped
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"it differs in model \('folder with digest .* there"):
        fit(moved, trained[0])


def test_renamed_labels_are_another_run(trained, tiny_language_model_folder):
    renamed = [
        table(
            [(text, {"bad": "minus", "good": "plus"}[label]) for text, label in reviews(count, seed=seed)],
            ("minus", "plus"),
        )
        for count, seed in ((36, 0), (10, 7))
    ]
    with pytest.raises(ArtifactError, match="it differs in data"):
        fit(tiny_language_model_folder, trained[0], *renamed)


def test_seeds_reproduce_bit_identical_classifiers(trained, tiny_language_model_folder, tmp_path):
    fit(tiny_language_model_folder, tmp_path / "again")
    first, again = (load_file(folder / "model.safetensors") for folder in (trained[0], tmp_path / "again"))
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_going_on_from_a_saved_classifier_keeps_its_head(trained, tmp_path):
    more = table(reviews(20, seed=11))
    parts = build(trained[0], train=more)
    stored = load_file(trained[0] / "model.safetensors")
    state = parts.learner.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in stored.items())
    result = fit(trained[0], tmp_path / "more", train=more)
    assert result.metrics["n"] == 10


def test_a_classifier_of_other_labels_is_refused(trained):
    other = table([(text, {"bad": "no", "good": "yes"}[label]) for text, label in reviews(8)], ("no", "yes"))
    words = re.escape("is a classifier of bad, good, the training table has the labels no, yes")
    with pytest.raises(ArtifactError, match=words):
        build(trained[0], train=other)


def test_a_classifier_of_one_label_a_text_cannot_go_on_with_several(save_tiny_classifier, tmp_path):
    folder = save_tiny_classifier(tmp_path / "single", labels=("bad", "fair", "good"))
    with pytest.raises(ArtifactError, match="gives a text one label, the training table several labels"):
        build(folder, train=multi_label_table(12), validation=multi_label_table(6))


@pytest.mark.parametrize(
    ("plan", "names", "epochs"),
    [
        ("preset", ["last 1", "last 2", "last 3", "all"], [2, 2, 2, 3]),
        ("gradual", ["last 1", "last 2", "last 3", "all"], [2, 2, 2, 3]),
        ("chain-thaw", ["only 3", "only 0", "only 1", "only 2", "all"], [2, 2, 2, 2, 3]),
        ("lp-ft", ["head", "all"], [2, 3]),
        ("head", ["head only"], [3]),
        ("full", ["full"], [3]),
    ],
)
def test_every_plan_takes_the_epochs_given(tiny_language_model_folder, plan, names, epochs):
    phases = build(tiny_language_model_folder, plan=plan, epochs_per_phase=2, final_epochs=3).phases
    assert [phase.name for phase in phases] == names
    assert [phase.epochs for phase in phases] == epochs


@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_trains_and_saves(tiny_language_model_folder, tmp_path, plan):
    settings = ClassifierSettings(plan=plan, epochs_per_phase=1, final_epochs=1, batch_size=12)
    result = fit(tiny_language_model_folder, tmp_path / plan, settings=settings)
    assert 0 <= result.metrics["accuracy"] <= 1


def test_a_plan_of_the_head_alone_leaves_the_encoder_bit_identical(tiny_language_model_folder, tmp_path):
    fit(tiny_language_model_folder, tmp_path / "head", settings=ClassifierSettings(plan="head", final_epochs=2))
    stored = load_file(tiny_language_model_folder / "model.safetensors")
    after = load_file(tmp_path / "head/model.safetensors")
    assert all(torch.equal(after[name], value) for name, value in stored.items() if name.startswith("model."))
    moved = {row["name"]: row["relative"] for row in read_stage(tmp_path / "head")["weight_changes"]}
    assert [moved.pop("head") > 0, set(moved.values())] == [True, {0.0}]


def test_the_record_has_how_far_training_moved_each_layer_group(tiny_language_model_folder, tmp_path, monkeypatch):
    settings = dataclasses.replace(CLASSIFIER, plan="full", calibrate=False, keep="last")
    before = {
        name: value.clone() for name, value in build(tiny_language_model_folder).learner.model.state_dict().items()
    }
    fit(tiny_language_model_folder, tmp_path / "full", settings=settings)
    after = load_file(tmp_path / "full/model.safetensors")
    rows = {row["name"]: row for row in read_stage(tmp_path / "full")["weight_changes"]}
    assert list(rows) == [group["group"] for group in read_stage(tmp_path / "full")["groups"]]
    name = "model.embeddings.weight"
    expected = float((after[name] - before[name]).norm() / before[name].norm())
    assert rows["embeddings"]["relative"] == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(stage, "MOST_COMPARED", 1000)  # of a model too large to be kept twice nothing is recorded
    fit(tiny_language_model_folder, tmp_path / "large", settings=settings)
    assert "weight_changes" not in read_stage(tmp_path / "large")


@pytest.mark.parametrize("preset", ["paper", "scripts-2018"])
def test_the_other_presets_train_too(tiny_language_model_folder, tmp_path, preset):
    context = RunContext(preset=preset, say=str)
    result = fit(tiny_language_model_folder, tmp_path / preset, context=context)
    assert result.metrics["n"] == 10


def test_balanced_weights_are_inverse_to_the_frequency(tiny_language_model_folder):
    uneven = table([*reviews(6, labels=("bad",)), *reviews(2, labels=("good",))])
    objective = build(tiny_language_model_folder, train=uneven, class_weights="balanced").learner.task.objective
    assert objective.class_weights.tolist() == pytest.approx([8 / (2 * 6), 8 / (2 * 2)])


def test_balanced_weights_of_several_labels_weigh_the_texts_that_have_them(tiny_language_model_folder):
    train = multi_label_table(24)
    objective = build(
        tiny_language_model_folder, train=train, validation=multi_label_table(6), class_weights="balanced"
    ).learner.task.objective
    counts = [sum(label in row for row in train["label"]) for label in range(3)]
    assert objective.multi_label and len(set(counts)) > 1
    assert objective.class_weights.tolist() == pytest.approx([(24 - count) / count for count in counts])


@pytest.mark.parametrize("several", [False, True])
def test_a_class_that_is_named_has_the_weight_given_and_the_others_one(tiny_language_model_folder, several):
    tables = {"train": multi_label_table(24), "validation": multi_label_table(6)} if several else {}
    objective = build(tiny_language_model_folder, **tables, class_weights={"good": 3}).learner.task.objective
    assert objective.class_weights.tolist() == ([1, 1, 3] if several else [1, 3])


def test_a_weight_of_a_class_that_there_is_not_is_refused(tiny_language_model_folder):
    words = (
        "class_weights names 'God', and the training table has no such class; did you mean 'good'? It has 'bad', 'good'"
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        build(tiny_language_model_folder, class_weights={"God": 3})


def test_the_type_of_the_labels_is_saved_with_the_classifier(tiny_language_model_folder, tmp_path):
    train = table(reviews(16))
    numbers = train.cast_column("label", ClassLabel(names=["0", "1"], id="int"))
    folder = tmp_path / "numbers"
    fit(tiny_language_model_folder, folder, numbers, numbers)
    assert {type(row["label"]) for row in Predictor.load(folder).predict(["a dull film", "a great film"])} == {int}
    text = train.cast_column("label", ClassLabel(names=["0", "1"]))
    assert label_type_in(build(folder, train=text, validation=text).network.config) is None


def test_label_smoothing_and_penalties_reach_the_objective(tiny_language_model_folder):
    objective = build(tiny_language_model_folder, label_smoothing=0.1).learner.task.objective
    assert (objective.label_smoothing, objective.alpha, objective.beta) == (0.1, 2.0, 1.0)


def test_ar_and_tar_are_added_in_training_only(tiny_language_model_folder):
    learner = build(tiny_language_model_folder, batch_size=6).learner
    batch = next(iter(learner.task.train_batches))
    learner.model.train()
    assert float(learner.task.objective(learner.model, batch, None).penalty) > 0
    learner.model.eval()
    assert learner.task.objective(learner.model, batch, None).penalty is None


def test_a_last_batch_of_one_row_is_merged_and_trains(tiny_language_model_folder, tmp_path):
    rows = table(reviews(9))
    settings = ClassifierSettings(plan="full", final_epochs=1, batch_size=4)
    parts = build(tiny_language_model_folder, train=rows, batch_size=4)
    assert sorted(len(batch["labels"]) for batch in parts.learner.task.train_batches) == [4, 5]
    assert fit(tiny_language_model_folder, tmp_path / "nine", train=rows, settings=settings).metrics["n"] == 10


def test_a_small_table_narrows_the_batch_to_eight(tiny_language_model_folder):
    assert build(tiny_language_model_folder).learner.task.train_batches.batch_size == 8


def test_dropouts_are_the_presets_times_drop_mult_and_the_window_is_set(tiny_language_model_folder):
    config = build(tiny_language_model_folder, drop_mult=0.5, gradient_window=22).learner.model.config
    assert (config.output_dropout, config.hidden_dropout, config.input_dropout) == (0.1, 0.075, 0.1)
    assert (config.embedding_dropout, config.weight_dropout, config.head_dropout) == (0.0125, 0.125, 0.1)
    assert config.gradient_window == 22


def test_several_labels_a_row_get_thresholds_that_are_saved_and_used(tiny_language_model_folder, tmp_path, monkeypatch):
    settled = [0.3, 0.45, 0.55], "thresholds: as they are settled"
    monkeypatch.setattr(classifier, "settle_thresholds", lambda *_args, **_kwargs: settled)
    folder, validation = tmp_path / "several", multi_label_table(16, seed=3)
    said, context = heard()
    result = fit(tiny_language_model_folder, folder, multi_label_table(40), validation, context=context)
    assert settled[1] in said
    assert {"micro_f1", "macro_f1", "mean_average_precision", "loss", "n"} <= set(result.metrics)
    predictor = Predictor.load(folder)
    assert predictor.multi_label
    assert predictor.label_names == ["bad", "fair", "good"]
    thresholds = predictor.models[0].config.thresholds
    assert thresholds == json.loads((folder / "stage.json").read_text())["thresholds"] == settled[0]
    assert predictor.score(validation) == pytest.approx(result.metrics)
    row = predictor.predict(["a warm and funny film"])[0]
    expected = [
        name for name, bound in zip(predictor.label_names, thresholds, strict=True) if row["scores"][name] >= bound
    ]
    assert row["label"] == expected


def test_a_time_limit_that_is_over_gives_a_clear_error_and_no_folder(tiny_language_model_folder, tmp_path):
    context = RunContext(say=str, deadline=deadline_after(1e-9))
    with pytest.raises(ValueError, match="max_seconds ran out before the classifier's first step.*give more seconds"):
        fit(tiny_language_model_folder, tmp_path / "none", context=context)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_says_so(tiny_language_model_folder, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts, "write_sealed", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        fit(tiny_language_model_folder, tmp_path / "full")
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.*") if file.is_file()] == [
        ".full.progress/log.jsonl"
    ]


def test_the_last_epoch_is_kept_where_asked_and_needs_no_validation_rows(tiny_language_model_folder, tmp_path):
    settings = ClassifierSettings(plan="full", final_epochs=3, batch_size=8, keep="last")
    judged = fit(tiny_language_model_folder, tmp_path / "judged", settings=settings)
    said, context = heard()
    alone = fit(tiny_language_model_folder, tmp_path / "alone", validation=None, settings=settings, context=context)
    assert (alone.metrics, judged.metrics["n"]) == ({}, 10)
    assert said[-1] == f"classifier saved in {tmp_path / 'alone'}: the last epoch's weights, not validated"
    records = [read_stage(tmp_path / name) for name in ("judged", "alone")]
    assert [record["best"] for record in records] == [None, None]
    losses = [[epoch["train_loss"] for epoch in record["epochs"]] for record in records]
    assert losses[0] == losses[1]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("judged", "alone")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    scores = Predictor.load(tmp_path / "judged").score(VALIDATION)
    assert scores == pytest.approx(records[0]["epochs"][-1]["metrics"], rel=1e-4)


def test_recomputed_norm_statistics_change_no_weight_and_are_what_is_scored(tiny_language_model_folder, tmp_path):
    settings = ClassifierSettings(plan="full", final_epochs=2, batch_size=8, keep="last")
    running = fit(tiny_language_model_folder, tmp_path / "running", settings=settings)
    settings = dataclasses.replace(settings, norm_statistics="recomputed")
    recomputed = fit(tiny_language_model_folder, tmp_path / "recomputed", settings=settings)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("running", "recomputed"))
    changed = {name for name, value in first.items() if not torch.equal(value, second[name])}
    assert changed == {f"classifier.blocks.{n}.norm.running_{what}" for n in (0, 1) for what in ("mean", "var")}
    assert recomputed.metrics["loss"] != running.metrics["loss"]
    scores = Predictor.load(tmp_path / "recomputed").score(VALIDATION)
    assert scores == pytest.approx(recomputed.metrics, rel=1e-4)


def test_the_best_epoch_cannot_be_found_without_validation_rows(tiny_language_model_folder):
    with pytest.raises(ValueError, match=r"keep 'best' needs validation rows; give some, or set keep to"):
        build(tiny_language_model_folder, validation=None, keep="best")


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("schedule", ["slanted-triangular", "one-cycle", "constant"])
def test_a_schedule_that_is_asked_for_holds_in_every_phase_but_the_head_of_lp_ft(
    tiny_language_model_folder, plan, schedule
):
    phases = build(tiny_language_model_folder, plan=plan, schedule=schedule).phases
    names = [phase.schedule.name for phase in phases]
    asked = schedule.replace("-", "_")
    assert names == [asked] * len(phases) if plan != "lp-ft" else ["constant", asked]


def test_rest_lr_is_the_rate_of_chain_thaw_and_of_lp_ft_after_its_head(tiny_language_model_folder):
    chain = build(tiny_language_model_folder, plan="chain-thaw", lr=1e-2, rest_lr=3e-3).phases
    assert {rate for phase in chain for rate in phase.lrs} == {3e-3}
    head, rest = build(tiny_language_model_folder, plan="lp-ft", lr=1e-2, rest_lr=3e-3).phases
    assert (set(head.lrs), set(rest.lrs)) == ({1e-2}, {3e-3})
