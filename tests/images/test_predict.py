import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.support.tiny_images import save_backbone, write_images
from tests.support.tiny_runs import heard
from ulmfit_pipe.data.images.files import ImageError, load_images
from ulmfit_pipe.images.network import build_image_network
from ulmfit_pipe.images.predict import ImagePredictor
from ulmfit_pipe.settings.images import ImageClassifierSettings, ImageHeadSettings
from ulmfit_pipe.stages.artifacts import ArtifactError


@pytest.fixture
def folder(tmp_path):
    """Return the folder of a random classifier of dark and light images."""
    settings = ImageClassifierSettings(head=ImageHeadSettings(hidden_sizes=[]))
    base = save_backbone(tmp_path / "base")
    network, pixels = build_image_network(str(base), ["dark", "light"], settings, say=heard()[0].append)
    network.save_pretrained(tmp_path / "classifier")
    pixels.processor.save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images", count=3)


def test_paths_and_opened_images_give_the_same_scores_in_their_order(folder, images):
    paths = sorted(images.rglob("*.png"))
    predictor = ImagePredictor.load(folder)
    found = predictor.predict(paths)
    assert found == predictor.predict([str(path) for path in paths])
    assert found == predictor.predict([Image.open(path) for path in paths])
    for row, path in zip(found, paths, strict=True):
        alone = predictor.predict([path])[0]
        assert row["scores"] == pytest.approx(alone["scores"], abs=1e-6)
        assert row["score"] == row["scores"][row["label"]] == max(row["scores"].values())
        assert sum(row["scores"].values()) == pytest.approx(1)
    assert predictor.predict([]) == []


def test_many_images_are_predicted_in_batches(folder, images, monkeypatch):
    from ulmfit_pipe.images import predict as image_predict

    paths = sorted(images.rglob("*.png"))
    whole = ImagePredictor.load(folder).predict(paths)
    monkeypatch.setattr(image_predict, "BATCH_IMAGES", 4)
    found = ImagePredictor.load(folder).predict(paths)
    assert [row["scores"] for row in found] == [pytest.approx(row["scores"], abs=1e-6) for row in whole]


def test_a_score_is_that_of_the_single_predictions(folder, images):
    table = load_images(images)
    predictor = ImagePredictor.load(folder)
    rows = predictor.predict([row["image"]["path"] for row in table])
    names = [table.features["label"].int2str(label) for label in table["label"]]
    right = [row["label"] == name for row, name in zip(rows, names, strict=True)]
    losses = [-np.log(row["scores"][name]) for row, name in zip(rows, names, strict=True)]
    score = predictor.score(table)
    assert score["accuracy"] == pytest.approx(np.mean(right))
    assert score["loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert score["n"] == 6


def test_grey_transparent_and_one_pixel_images_are_predicted(folder):
    images = [Image.new("L", (9, 5), 200), Image.new("RGBA", (9, 5)), Image.new("RGB", (1, 1)), Image.new("P", (3, 3))]
    assert len(ImagePredictor.load(folder).predict(images)) == 4


def test_what_is_no_image_is_refused_by_its_place(folder, tmp_path):
    predictor = ImagePredictor.load(folder)
    with pytest.raises(TypeError, match=r"predict takes a list of images, got one string; write predict\(\[image\]\)"):
        predictor.predict("a.png")
    with pytest.raises(TypeError, match=r"image 1 \(counted from 0\) is int; give a path or an opened image"):
        predictor.predict([Image.new("L", (2, 2)), 3])
    (tmp_path / "bad.png").write_bytes(b"bad")
    with pytest.raises(ImageError, match="bad.png does not open as an image"):
        predictor.predict([tmp_path / "bad.png"])
    with pytest.raises(ImageError, match="none.png cannot be read"):
        predictor.predict([tmp_path / "none.png"])


def test_a_table_of_other_classes_cannot_be_scored(folder, tmp_path):
    other = load_images(write_images(tmp_path / "other", ("dark", "night"), count=1))
    words = r"the images' classes are dark, night, the classifier's are dark, light"
    with pytest.raises(ValueError, match=words):
        ImagePredictor.load(folder).score(other)
    with pytest.raises(ValueError, match="the images' classes are none"):
        ImagePredictor.load(folder).score(other.remove_columns("label"))


def test_folders_that_are_no_image_classifier_are_refused(folder, tmp_path):
    with pytest.raises(ArtifactError, match="is the folder of a whole run; did you mean its classifier, .*classifier"):
        ImagePredictor.load(tmp_path)
    with pytest.raises(
        ArtifactError, match="is a 'resnet' model, no image classifier of this project; give the folder"
    ):
        ImagePredictor.load(tmp_path / "base")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ArtifactError, match="lacks its image processor .*; take another save"):
        ImagePredictor.load(folder)


def test_broken_weights_are_told_instead_of_a_label(folder):
    weights = load_file(folder / "model.safetensors")
    weights["head.blocks.0.linear.weight"] = torch.full_like(weights["head.blocks.0.linear.weight"], torch.nan)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the model gives no number for image 0 \(counted from 0\): its weights hold"):
        ImagePredictor.load(folder).predict([Image.new("L", (4, 4))])
