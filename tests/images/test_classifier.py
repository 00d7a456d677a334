"""The image stage on models of a few thousand weights."""

import dataclasses
import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageClassification, pipeline

from tests.support.tiny_images import QUICK, SMALL_HEAD, STILL, save_backbone, write_images
from tests.support.tiny_runs import folder_bytes, heard
from ulmfit_pipe.data.images.files import ImageError, load_images, scan_images
from ulmfit_pipe.images.classifier import build_image_learner, train_image_classifier
from ulmfit_pipe.images.predict import ImagePredictor
from ulmfit_pipe.models.layer_groups.spec import LayerGroupSpec
from ulmfit_pipe.settings.images import AugmentationSettings, ImageClassifierSettings, ImageHeadSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, read_stage
from ulmfit_pipe.stages.context import RunContext, deadline_after
from ulmfit_pipe.stages.saved_learner import load_learner
from ulmfit_pipe.training.layer_groups import is_norm
from ulmfit_pipe.training.learner import Learner


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with images to train and validate on, and a backbone."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", count=8)
    write_images(folder / "valid", count=4, seed=1)
    save_backbone(folder / "resnet")
    return folder


@pytest.fixture(scope="module")
def tables(place):
    return load_images(place / "train"), load_images(place / "valid")


def fit(place, tables, output, *, model="resnet", context=None, settings=QUICK, **changes):
    train, validation = tables
    return train_image_classifier(
        train,
        validation,
        model=None if model is None else str(place / model),
        output_dir=output,
        settings=dataclasses.replace(settings, **changes),
        context=context or heard()[1],
    )


def build(place, tables, *, model="resnet", context=None, given=None, **changes):
    return build_image_learner(
        *tables,
        model=None if model is None else str(place / model),
        settings=dataclasses.replace(QUICK, **changes),
        context=context or heard()[1],
        **(given or {}),
    )


@pytest.fixture(scope="module")
def trained(place, tables):
    """Return the folder of a trained classifier, what was said, and the result."""
    said, context = heard()
    folder = place / "trained"
    return folder, said, fit(place, tables, folder, context=context, final_epochs=3, lr=0.02)


def test_the_folder_says_what_the_classifier_is(trained):
    folder, said, result = trained
    record = read_stage(folder)
    assert record["labels"] == ["dark", "light"]
    assert record["metrics"] == result.metrics
    assert sorted(result.metrics) == ["accuracy", "loss", "macro_f1", "n"]
    assert [group["group"] for group in record["groups"]] == ["early", "late", "head"]
    assert '"grad_norm/late": ' in (folder / "log.jsonl").read_text()
    assert [line.split()[1] for line in record["plan"].splitlines()[2:4]] == ["head", "all"]
    assert said[-1].startswith(f"image classifier saved in {folder}: accuracy ")
    assert result.metrics["accuracy"] > 0.8  # dark and light can be told apart


def test_a_saved_folder_gives_the_same_scores_through_transformers(trained, place):
    folder = trained[0]
    files = sorted(str(path) for path in (place / "valid").rglob("*.png"))
    predicted = ImagePredictor.load(folder).predict(files)
    whole = pipeline("image-classification", model=str(folder), top_k=2)
    for row, found in zip(predicted, whole(files), strict=True):
        assert {each["label"]: each["score"] for each in found} == pytest.approx(row["scores"], abs=1e-5)


def test_a_finished_stage_is_skipped_and_changes_are_named(trained, place, tables):
    before = folder_bytes(trained[0])
    said, context = heard()
    assert fit(place, tables, trained[0], context=context, final_epochs=3, lr=0.02).skipped
    assert said == [f"image_classifier: already finished in {trained[0]} with the same settings and data, skipped"]
    with pytest.raises(ArtifactError, match=re.escape("settings.final_epochs (3 there, 2 now)")):
        fit(place, tables, trained[0], final_epochs=2, lr=0.02)
    with pytest.raises(ArtifactError, match="it differs in data"):
        fit(place, (tables[0].select(range(15)), tables[1]), trained[0], final_epochs=3, lr=0.02)
    assert folder_bytes(trained[0]) == before


def test_the_same_images_elsewhere_are_the_same_data(trained, place, tmp_path):
    write_images(tmp_path / "train", count=8)
    write_images(tmp_path / "valid", count=4, seed=1)
    moved = load_images(tmp_path / "train"), load_images(tmp_path / "valid")
    assert fit(place, moved, trained[0], final_epochs=3, lr=0.02).skipped


def test_seeds_reproduce_bit_identical_classifiers(trained, place, tables, tmp_path):
    fit(place, tables, tmp_path / "again", final_epochs=3, lr=0.02, num_workers=2)
    fit(place, tables, tmp_path / "other", final_epochs=3, lr=0.02, context=RunContext(seed=1, say=str))
    first, again, other = (
        load_file(folder / "model.safetensors") for folder in (trained[0], tmp_path / "again", tmp_path / "other")
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not torch.equal(first["head.blocks.0.linear.weight"], other["head.blocks.0.linear.weight"])


def test_it_is_the_same_learner_with_its_finder_freezing_and_summary(place, tables):
    learner = build(place, tables).learner
    assert type(learner) is Learner
    assert learner.names == ["early", "late", "head"]
    assert [group.name for group in learner.layer_groups if not group.frozen] == ["head"]
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    result = learner.lr_find(num_steps=60)
    assert set(result.suggestions) == {"valley", "slide", "minimum", "steep"}
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    summary = str(learner.summary(slice(1e-4, 1e-2)))
    assert "[1] late" in summary
    assert "(4, 8, 1, 1)" in summary  # the last stage's map: batch, channels, height, width
    learner.freeze_to(-2)
    learner.fit_one_cycle(1, slice(1e-4, 1e-3))
    assert learner.validate()["n"] == 8


def test_a_backbone_that_is_not_pretrained_is_not_frozen(place, tables):
    for changes in ({"pretrained": False}, {"model": None}):
        parts = build(place, tables, **changes)
        assert not any(group.frozen for group in parts.learner.layer_groups)
        assert [phase.name for phase in parts.phases] == ["full"]


def norm_names(model):
    return {name for name, module in model.named_modules() if is_norm(module) and name.startswith("backbone.")}


def trained_head_alone(place, tables, tmp_path, *, train_norm):
    learner = build(place, tables, augmentation=STILL, train_norm=train_norm).learner
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    learner.fit(2, 0.05)
    after, norms = learner.model.state_dict(), norm_names(learner.model)
    assert len(norms) == 9  # the stem, two a block, two shortcuts
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    return moved, norms


def test_batch_norms_of_frozen_groups_stay_where_they_are_when_told_to(place, tables, tmp_path):
    moved, _ = trained_head_alone(place, tables, tmp_path, train_norm=False)
    assert moved
    assert {name.partition(".")[0] for name in moved} == {"head"}


def test_batch_norms_of_frozen_groups_go_on_training_by_default_and_nothing_else_there_moves(place, tables, tmp_path):
    moved, norms = trained_head_alone(place, tables, tmp_path, train_norm=True)
    in_backbone = {name for name in moved if name.startswith("backbone.")}
    leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert in_backbone == {f"{norm}.{leaf}" for norm in norms for leaf in leaves}
    assert ImageClassifierSettings().train_norm is True


def test_batch_norms_of_thawed_groups_move_and_those_still_frozen_do_not(place, tables):
    learner = build(place, tables, train_norm=False).learner
    learner.freeze_to(-2)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    learner.fit(1, 0.05)
    moved = {name for name, value in learner.model.state_dict().items() if not torch.equal(value, before[name])}
    statistics = {name for name in moved if name.startswith("backbone.") and "running" in name}
    assert {name.rpartition("stages.")[2][0] for name in statistics} == {"2"}
    assert not any(name.startswith(("backbone.embedder", "backbone.encoder.stages.1")) for name in moved)


def test_the_cache_of_frozen_groups_gives_the_same_classifier(place, tables, tmp_path):
    still = {"augmentation": STILL, "train_norm": False, "epochs_per_phase": 3}
    fit(place, tables, tmp_path / "plain", **still)
    said, context = heard()
    fit(place, tables, tmp_path / "cached", cache_frozen=True, context=context, **still)
    assert any(line.startswith("cache_frozen: 24 rows were kept") for line in said)  # 16 to train on, 8 to validate
    plain, cached = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "cached"))
    for name, value in plain.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_a_learner_saved_half_way_goes_on_as_it_was(place, tables, tmp_path):
    parts = build(place, tables, layer_groups="stages")
    parts.learner.freeze_to(-2)
    parts.learner.fit(1, 1e-3)
    parts.learner.save(tmp_path / "half")
    loaded = load_learner(tmp_path / "half", parts.learner.task, say=str)
    assert [group.name for group in loaded.layer_groups if not group.frozen] == ["stage2", "head"]
    assert all(
        torch.equal(value, loaded.model.state_dict()[name]) for name, value in parts.learner.model.state_dict().items()
    )


def test_layer_groups_can_be_given_and_a_head_too(place, tables, tmp_path):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 2)

        def forward(self, hidden):
            return self.layer(hidden.mean((2, 3)))

    groups = [LayerGroupSpec("body", ("backbone",)), LayerGroupSpec("head", ("head",))]
    given = {"custom_head": Head(), "layer_groups": groups}
    train_image_classifier(
        *tables,
        model=str(place / "resnet"),
        output_dir=tmp_path / "own",
        settings=QUICK,
        context=heard()[1],
        **given,
    )
    record = read_stage(tmp_path / "own")
    assert [group["group"] for group in record["groups"]] == ["body", "head"]
    assert record["identity"]["custom_head"].startswith("Head(")
    predictor = ImagePredictor.load(tmp_path / "own", custom_head=Head())
    assert predictor.score(tables[1])["accuracy"] == record["metrics"]["accuracy"]
    with pytest.raises(ArtifactError, match="has a head of its own, a Head; give it: load"):
        ImagePredictor.load(tmp_path / "own")
    with pytest.raises(ArtifactError, match=r"it differs in custom_head \(.*, layer_groups \("):
        fit(place, tables, tmp_path / "own")


@pytest.mark.parametrize("plan", ["gradual", "chain-thaw", "lp-ft", "head", "full"])
def test_every_plan_trains_and_saves(place, tables, tmp_path, plan):
    result = fit(place, tables, tmp_path / plan, plan=plan, keep="last")
    assert 0 <= result.metrics["accuracy"] <= 1


def test_going_on_with_more_images_keeps_the_head_and_other_classes_get_a_new_one(trained, place, tmp_path):
    more = load_images(write_images(tmp_path / "more", count=4, seed=5))
    said, context = heard()
    parts = build_image_learner(more, more, model=str(trained[0]), settings=QUICK, context=context)
    stored = load_file(trained[0] / "model.safetensors")
    assert all(torch.equal(parts.learner.model.state_dict()[name], value) for name, value in stored.items())
    others = load_images(write_images(tmp_path / "others", ("low", "mid", "high"), count=4))
    parts = build_image_learner(others, others, model=str(trained[0]), settings=QUICK, context=context)
    assert parts.label_names == ["high", "low", "mid"]
    assert f"{trained[0]} is a classifier of dark, light: its backbone is taken, the head is new" in said


def test_without_validation_the_last_epoch_is_kept(place, tables, tmp_path):
    result = fit(place, (tables[0], None), tmp_path / "last", keep="last")
    assert result.metrics == {}
    with pytest.raises(ValueError, match="keep 'best' needs validation images; give some, or set keep to 'la"):
        fit(place, (tables[0], None), tmp_path / "best")


def test_images_that_do_not_open_are_skipped_only_when_asked_and_counted(place, tables, tmp_path):
    folder = write_images(tmp_path / "images", count=4)
    (folder / "dark/bad.png").write_bytes(b"no image")
    bad = load_images(folder), tables[1]
    with pytest.raises(ImageError, match=r"dark/bad.png \(row 5\) does not open as an image"):
        fit(place, bad, tmp_path / "run")
    said, context = heard()
    fit(place, bad, tmp_path / "run", skip_bad_images=True, context=context)
    assert said[0].startswith("left out 1 of 9 images that do not open, such as ")
    assert "dark/bad.png (row 5)" in read_stage(tmp_path / "run")["skipped_images"][0]


def test_what_was_scanned_is_not_opened_again_before_training(place, tables, monkeypatch):
    from ulmfit_pipe.images import classifier as image_classifier

    scans = scan_images(tables[0]), scan_images(tables[1])
    monkeypatch.setattr(image_classifier, "scan_images", None)
    build(place, scans)


def test_tables_of_other_classes_are_refused(place, tables, tmp_path):
    other = load_images(write_images(tmp_path / "other", ("dark", "night"), count=2))
    with pytest.raises(ImageError, match=r"training has the classes dark, light, validation dark, night"):
        build(place, (tables[0], other))
    with pytest.raises(ImageError, match=r"no column 'label' with class names, the columns are \['image'\]; load them"):
        build(place, (tables[0].remove_columns("label"), tables[1]))


def test_an_exhausted_time_limit_leaves_no_folder(place, tables, tmp_path):
    context = RunContext(say=str, deadline=deadline_after(1e-6))
    with pytest.raises(ValueError, match="max_seconds ran out before the classifier's first step"):
        fit(place, tables, tmp_path / "late", context=context)
    assert not (tmp_path / "late").exists()


def test_another_preset_is_refused(place, tables):
    with pytest.raises(
        ValueError, match="images are trained by preset 'fastai' only, got 'paper'; leave the preset out"
    ):
        build(place, tables, context=RunContext(preset="paper", say=str))


def test_classes_can_be_balanced_and_labels_smoothed(place, tables):
    table = tables[0].select([0, 1, 2, 3, 4, 5, 8, 9])  # six dark, two light
    objective = build(place, (table, tables[1]), class_weights="balanced", label_smoothing=0.1).learner.task.objective
    assert objective.class_weights.tolist() == pytest.approx([8 / 12, 8 / 4])
    assert objective.label_smoothing == 0.1


def test_small_data_narrow_the_batch_and_the_augmentation_reaches_the_batches(place, tables):
    batches = build(place, tables, batch_size=None).learner.task.train_batches
    assert batches.batch_size == 16
    assert batches.augmentation.least_crop == 0.8
    assert build(place, tables, augmentation=STILL).learner.task.train_batches.augmentation is None
    assert build(place, tables).learner.task.valid_batches.augmentation is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ImageClassifierSettings(plan="thaw"), "plan must be one of fine-tune, gradual, .*, got 'thaw'"),
        (lambda: ImageClassifierSettings(final_epochs=0), "final_epochs must be a whole number of 1 or more, got 0"),
        (lambda: ImageClassifierSettings(batch_size=1), "batch_size must be a whole number of 2 or more, got 1"),
        (lambda: ImageClassifierSettings(lr=0.0), "lr must be a number above 0, got 0.0"),
        (lambda: ImageClassifierSettings(channels=2), r"channels must be 1 \(grey\) or 3 \(colour\), got 2"),
        (
            lambda: ImageClassifierSettings(cache_frozen=True),
            "changes from epoch to epoch with train_norm True and augmentation.off False; set train_norm to false and",
        ),
        (lambda: ImageClassifierSettings(label_smoothing=1.0), r"label_smoothing must lie in \[0, 1\), got 1.0"),
        (
            lambda: ImageHeadSettings(dropouts=[0.1, 0.2, 0.3]),
            r"or 2 for the inner widths \[512\], got \[0.1, 0.2, 0.3\]",
        ),
        (lambda: ImageHeadSettings(dropouts=[1.0]), r"dropouts must be one number in \[0, 1\), or 2"),
        (lambda: ImageHeadSettings(hidden_sizes=[0]), r"hidden_sizes must be whole numbers of 1 or more, got \[0\]"),
        (lambda: AugmentationSettings(least_crop=0.0), r"least_crop must lie in \(0, 1\], got 0.0"),
    ],
)
def test_numbers_out_of_range_are_refused_when_they_are_written(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_head_is_the_one_that_was_asked_for(place, tables):
    shape = ImageHeadSettings(hidden_sizes=[7, 5], dropouts=[0.1, 0.2, 0.3], concat_pool=False, final_norm=True)
    head = dataclasses.replace(shape, init="xavier-uniform")
    model = build(place, tables, head=head).learner.model
    assert [block.linear.in_features for block in model.head.blocks] == [8, 7, 5]
    assert isinstance(model.head.final_norm, nn.BatchNorm1d)
    assert (SMALL_HEAD.init, model.config.head_init) == ("kaiming-normal", "xavier-uniform")
    assert isinstance(model, AutoModelForImageClassification._model_mapping[type(model.config)])
