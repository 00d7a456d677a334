"""Whole runs on images of a few pixels."""

import dataclasses
import json
from pathlib import Path

import pytest
from datasets import Dataset, concatenate_datasets
from safetensors.torch import load_file
from torch import nn

from tests.support.tiny_images import QUICK, SIDE, save_backbone, write_images
from tests.support.tiny_runs import heard, write_csv
from ulmfit_pipe.data.images.files import ImageError, load_images
from ulmfit_pipe.data.tables.tables import TableError
from ulmfit_pipe.images.pipeline import ImagePipeline, run_image_pipeline, thawing_table
from ulmfit_pipe.models.layer_groups.spec import LayerGroupSpec
from ulmfit_pipe.settings.images import ImageSettings, PretrainingSettings
from ulmfit_pipe.settings.parsing import load_settings, parse_settings
from ulmfit_pipe.stages.artifacts import ArtifactError, read_stage

DIGITS = Path(__file__).parents[2] / "recipes/configs/digits.yaml"
GREY = dataclasses.replace(QUICK, channels=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with images to train and test on, and a backbone."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", count=10)
    write_images(folder / "test", count=3, seed=1)
    save_backbone(folder / "resnet")
    return folder


def run(place, output, *, tables=None, **settings):
    said, context = heard()
    context.preset = "fastai"
    given = {"train_images": str(place / "train"), "classifier": QUICK, **settings}
    metrics = run_image_pipeline(ImageSettings(output_dir=str(output), **given), context=context, **(tables or {}))
    return metrics, said


@pytest.fixture(scope="module")
def whole_run(place):
    """Return the folder of a run with a pretrained backbone and test images, its metrics, and what was said."""
    output = place / "run"
    return output, *run(place, output, model=str(place / "resnet"), test_images=str(place / "test"))


def test_a_run_leaves_classifier_metrics_settings_and_report(whole_run):
    output, metrics, said = whole_run
    assert said[0] == "images: 16 training, 4 validation, 6 test; classes: dark, light"
    assert json.loads((output / "metrics.json").read_text()) == metrics
    assert (metrics["test"]["n"], metrics["validation"]["n"]) == (6, 4)
    assert list(metrics["phases"]) == ["head", "all"]
    assert metrics["pretraining"] is None
    assert set(metrics["seconds"]) == {"classifier", "scoring"}
    page = (output / "report.html").read_text()
    assert "of 6 test images are right" in page
    assert "phase all, steps" in page
    assert load_settings(ImageSettings, output / "settings.yaml").classifier == QUICK


def test_the_best_score_of_each_phase_is_told(whole_run):
    output, metrics, _ = whole_run
    epochs = read_stage(output / "classifier")["epochs"]
    for phase, value in metrics["phases"].items():
        assert value == max(epoch["metrics"]["accuracy"] for epoch in epochs if epoch["phase"] == phase)


def test_what_thawing_has_bought_is_a_table_of_the_phases():
    metrics = {"monitor": "accuracy", "phases": {"head": 0.9352, "late": 0.93, "all": 0.9861}}
    assert thawing_table(metrics).splitlines() == [
        "phase  best validation accuracy  gain",
        "-----  ------------------------  -------",
        "head   0.9352",
        "late   0.9300                    -0.0052",
        "all    0.9861                    +0.0561",
    ]


def test_a_second_call_skips_what_is_finished(whole_run, place):
    output, metrics, _ = whole_run
    again, said = run(place, output, model=str(place / "resnet"), test_images=str(place / "test"))
    assert "image_classifier: already finished" in said[1]
    assert (again["test"], again["validation"]) == (metrics["test"], metrics["validation"])


def test_the_pipeline_is_one_object(place, tmp_path):
    pipeline = ImagePipeline(place / "resnet")
    with pytest.raises(RuntimeError, match="there is no classifier yet: call fit, or ImagePipeline.load"):
        pipeline.predict(["a.png"])
    metrics = pipeline.fit(place / "train", output_dir=tmp_path / "run", test=place / "test", classifier=QUICK)
    files = sorted((place / "test").rglob("*.png"))
    predicted = pipeline.predict(files)
    assert predicted == ImagePipeline.load(metrics["classifier"]).predict(files)
    right = sum(row["label"] == file.parent.name for row, file in zip(predicted, files, strict=True))
    assert metrics["test"]["accuracy"] == pytest.approx(right / 6)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("cut", r"classifier=ImageClassifierSettings\(keep_stages=...\)"),
        ("final_epoch", r"classifier=ImageClassifierSettings\(final_epochs=...\)"),
        ("max_second", "max_seconds"),
    ],
)
def test_an_unknown_setting_is_told_the_nearest_one(name, meant, tmp_path):
    with pytest.raises(ValueError, match=f"fit has no setting '{name}'; did you mean {meant}. There are output_dir"):
        ImagePipeline().fit("train", output_dir=tmp_path / "x", **{name: 3})


def test_a_model_that_is_nowhere_is_spoken_of_as_an_image_model(place, tmp_path):
    with pytest.raises(ArtifactError) as refused:
        ImagePipeline("nowhere").fit(place / "train", output_dir=tmp_path / "x", classifier=QUICK)
    assert "'nowhere' is not a folder here" in str(refused.value)
    assert "and preprocessor_config.json of an image model, or that ulmfit images" in str(refused.value)
    assert "tokenizer" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("./nowhere", "there is no folder './nowhere'; give the folder that a stage wrote, or a hub id$"),
        (
            "awd-lstm-e",
            "'awd-lstm-e' is not a folder here and could not be fetched from the hub",
        ),  # no typing error here
    ],
)
def test_no_language_model_is_offered_in_place_of_an_image_model(model, words, place, tmp_path):
    with pytest.raises(ArtifactError, match=words):
        ImagePipeline(model).fit(place / "train", output_dir=tmp_path / "x", classifier=QUICK)


class Average(nn.Module):
    """A head that somebody wrote."""

    def __init__(self, channels):
        super().__init__()
        self.layer = nn.Linear(channels, 2)

    def forward(self, hidden):
        return self.layer(hidden.mean((2, 3)))


OWN_GROUPS = [LayerGroupSpec("body", ("backbone",)), LayerGroupSpec("linear", ("head.layer",))]


def test_a_head_and_layer_groups_of_ones_own_are_trained_and_the_head_is_needed_to_load(place, tmp_path):
    head, files = Average(8), sorted((place / "test").rglob("*.png"))
    before = head.layer.weight.tolist()
    pipeline = ImagePipeline(place / "resnet")
    given = {"test": place / "test", "classifier": QUICK, "layer_groups": OWN_GROUPS}
    metrics = pipeline.fit(place / "train", output_dir=tmp_path / "run", custom_head=head, **given)
    assert head.layer.weight.tolist() == before  # a copy is trained
    assert [group["group"] for group in read_stage(tmp_path / "run/classifier")["groups"]] == ["body", "linear"]
    predicted = pipeline.predict(files)
    right = sum(row["label"] == file.parent.name for row, file in zip(predicted, files, strict=True))
    assert metrics["test"]["accuracy"] == pytest.approx(right / 6)
    assert ImagePipeline.load(metrics["classifier"], custom_head=Average(8)).predict(files) == predicted
    with pytest.raises(
        ArtifactError, match=r"a head of its own, a Average; give it: load\(folder, custom_head=Average"
    ):
        ImagePipeline.load(metrics["classifier"])


def test_a_backbone_pretrained_here_gets_the_head_of_ones_own_afterwards(place, tmp_path):
    ImagePipeline().fit(
        place / "train",
        output_dir=tmp_path / "run",
        custom_head=Average(6),
        layer_groups=OWN_GROUPS,
        pretraining=PretrainingSettings(task="rotations", epochs=1),
        classifier=QUICK,
    )
    source, target = (
        load_file(tmp_path / "run" / name / "model.safetensors") for name in ("pretraining", "classifier")
    )
    heads = [{name for name in weights if name.startswith("head.")} for weights in (source, target)]
    assert "head.blocks.0.linear.weight" in heads[0]
    assert heads[1] == {"head.layer.weight", "head.layer.bias"}
    assert {name for name in source if name not in heads[0]} == {name for name in target if name not in heads[1]}


def test_a_dataset_at_hand_takes_the_place_of_a_folder(place, tmp_path):
    train, test = load_images(place / "train"), load_images(place / "test")
    numbers = Dataset.from_dict({"label": [7 + 4 * row for row in train["label"]]})  # of a table of integers
    train = concatenate_datasets([train.remove_columns("label"), numbers], axis=1)
    names = write_csv(
        tmp_path / "test.csv",
        [(row["image"]["path"], str(7 + 4 * row["label"])) for row in test],
        columns=("image", "label"),
    )
    pipeline = ImagePipeline(place / "resnet")
    metrics = pipeline.fit(train, test=names, output_dir=tmp_path / "run", classifier=QUICK)
    assert metrics["test"]["n"] == 6
    assert metrics["validation"]["n"] == 4
    (found,) = pipeline.predict([test[0]["image"]["path"]])
    assert list(found["scores"]) == [7, 11] and found["label"] in (7, 11) and type(found["label"]) is int


def test_printed_letters_pretrain_the_backbone_of_the_digits(tmp_path):
    metrics, said = run(
        tmp_path,
        tmp_path / "run",
        train_images=None,
        dataset="digits",
        max_train_images=60,
        classifier=GREY,
        pretraining=PretrainingSettings(task="printed-letters", images=260, epochs=1),
    )
    assert said[0] == "images: 47 training, 13 validation, 360 test; classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert metrics["pretraining"]["n"] == 26
    assert (metrics["test"]["n"], metrics["validation"]["n"]) == (360, 13)
    assert list(metrics["phases"]) == ["head", "all"]
    source, target = (read_stage(tmp_path / "run" / name) for name in ("pretraining", "classifier"))
    assert (len(source["labels"]), len(target["labels"])) == (26, 10)
    assert target["model"] == str(tmp_path / "run/pretraining")
    assert any("is a classifier of A, B, C" in line for line in said)


@pytest.mark.slow
def test_the_digits_of_the_recipe_are_read_to_97_percent_and_thawing_gains(tmp_path):
    words = ["--config", str(DIGITS), "--output_dir", str(tmp_path / "run"), "--progress", "false"]
    run_image_pipeline(parse_settings(ImageSettings, words, description=""), context=heard()[1])
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (metrics["test"]["n"], metrics["validation"]["n"]) == (360, 216)
    assert metrics["test"]["accuracy"] >= 0.97
    assert list(metrics["phases"]) == ["head", "all"]
    assert metrics["phases"]["all"] > metrics["phases"]["head"]  # the same backbone, thawed and frozen
    assert set(metrics["seconds"]) == {"pretraining", "classifier", "scoring"}
    assert metrics["seconds"]["classifier"] == round(read_stage(tmp_path / "run/classifier")["seconds"], 2) > 1


def test_rotations_pretrain_the_backbone_of_photos_that_have_no_other_within_a_time_limit(place, tmp_path):
    rotations = PretrainingSettings(task="rotations", epochs=1)
    metrics, _ = run(place, tmp_path / "run", pretraining=rotations, max_seconds=600)
    source = read_stage(tmp_path / "run/pretraining")
    assert source["labels"] == ["0", "90", "180", "270"]
    assert metrics["pretraining"]["n"] == 6  # a tenth of four turns of 16 images
    assert "pretraining" in metrics["seconds"]


def test_without_a_model_and_a_related_task_everything_is_trained_from_scratch(place, tmp_path):
    metrics, _ = run(place, tmp_path / "run")
    assert list(metrics["phases"]) == ["full"]
    assert metrics["test"] is None


def test_images_that_stand_in_training_too_are_told(place, tmp_path):
    _, said = run(place, tmp_path / "run", model=str(place / "resnet"), test_images=str(place / "train"))
    assert (
        "note: 16 of 20 test images are also in training, byte for byte; the test metrics are flattered by as much"
        in said
    )


def test_test_images_of_another_class_are_refused(place, tmp_path):
    write_images(tmp_path / "test", ("dark", "night"), count=1)
    with pytest.raises(ImageError, match=r"has the class 'night', which training does not know \(dark, light\)"):
        run(place, tmp_path / "run", test_images=str(tmp_path / "test"))
    assert not (tmp_path / "run").exists()


def test_a_class_without_test_images_is_told(place, tmp_path):
    write_images(tmp_path / "test", ("dark",), count=2)
    metrics, said = run(place, tmp_path / "run", model=str(place / "resnet"), test_images=str(tmp_path / "test"))
    assert "note: there are no test images of light; nothing is measured on them" in said
    assert not any("no validation images" in line for line in said)
    assert metrics["test"]["n"] == 2


def test_images_of_one_class_are_refused(place, tmp_path):
    with pytest.raises(TableError, match="all 2 rows have the label 'dark'; a classifier needs at least two classes"):
        run(place, tmp_path / "run", train_images=str(write_images(tmp_path / "one", ("dark",), count=2)))


def test_bad_images_are_skipped_in_every_table_when_asked(place, tmp_path):
    for name in ("train", "test"):
        write_images(tmp_path / name, count=5)
        (tmp_path / name / "dark/bad.png").write_bytes(b"bad")
    folders = {"train_images": str(tmp_path / "train"), "test_images": str(tmp_path / "test")}
    with pytest.raises(ImageError, match="dark/bad.png .* does not open as an image"):
        run(place, tmp_path / "run", **folders)
    skipping = dataclasses.replace(QUICK, skip_bad_images=True)
    metrics, said = run(place, tmp_path / "run", classifier=skipping, **folders)
    assert metrics["test"]["n"] == 10
    assert sum(line.startswith("left out 1 of") for line in said) == 2


def test_a_bad_image_of_a_dataset_is_named_by_the_row_it_has_there(place, tmp_path):
    train = load_images(place / "train")
    contents = [{"bytes": Path(row["image"]["path"]).read_bytes(), "path": None} for row in train]
    contents[13] = {"bytes": b"bad", "path": None}
    train = Dataset.from_dict({"image": contents, "label": train["label"][:]}, features=train.features)
    pipeline, output = ImagePipeline(place / "resnet"), tmp_path / "run"
    given = {"output_dir": output, "max_train_images": 19, "seed": 3}
    with pytest.raises(ImageError, match="^the image of row 14 does not open"):
        pipeline.fit(train, classifier=QUICK, **given)
    pipeline.fit(train, classifier=dataclasses.replace(QUICK, skip_bad_images=True), **given)
    skipped = read_stage(output / "classifier")["skipped_images"]
    assert [line.partition(" does")[0] for line in skipped] == ["the image of row 14"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"train_images": None},
            "give one of train_images, dataset, .* to train on, got none; train_images is a folder",
        ),
        ({"dataset": "digits"}, "to train on, got train_images and dataset"),
        (
            {"train_images": None, "dataset": "digits", "test_images": "x"},
            "dataset 'digits' brings its own test images",
        ),
        (
            {"model": "some/net", "pretraining": PretrainingSettings(task="rotations")},
            "model some/net is pretrained already, so pretraining.task 'rotations' has nothing to do; leave one of",
        ),
        ({"max_seconds": 0}, "max_seconds must be positive, got 0"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(place, tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        run(place, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ImageSettings(output_dir="x", dataset="cats"), "dataset must be one of digits, None, got 'cats'"),
        (
            lambda: ImageSettings(output_dir="x", max_train_images=0),
            "max_train_images must be a whole number of 1 or mo",
        ),
        (
            lambda: PretrainingSettings(task="puzzles"),
            "task must be one of none, printed-letters, rotations, got 'puzz",
        ),
        (lambda: PretrainingSettings(images=100), "images must be a whole number of 260 or more, got 100"),
        (lambda: PretrainingSettings(lr=-1.0), "lr must be a number above 0, got -1.0"),
    ],
)
def test_values_out_of_range_are_refused_when_they_are_written(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_foreign_output_folder_is_left_alone(place, tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ArtifactError, match="holds metrics.json but no stage of a run"):
        run(place, tmp_path)
    assert SIDE == QUICK.image_size
