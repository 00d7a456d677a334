"""The pictures of what fine-tuning did, on models of a few thousand weights."""

import json

import numpy as np
import pytest
from matplotlib import image
from PIL import Image
from transformers import AutoModel, AutoModelForSequenceClassification

from tests.support.moved_models import save_image_classifier, save_moved
from tests.support.tiny_images import save_backbone, write_images
from tests.support.tiny_transformers import save_bert
from ulmfit_pipe.data.images.files import ImageError
from ulmfit_pipe.images.predict import ImagePredictor
from ulmfit_pipe.models.images.layer_activations import layer_activations
from ulmfit_pipe.reports import filters as drawing
from ulmfit_pipe.settings.model_files import ShowFiltersSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, load_model
from ulmfit_pipe.tools.inspection import show_filters as module
from ulmfit_pipe.tools.inspection.show_filters import show_filters


@pytest.fixture
def base(tmp_path):
    return save_backbone(tmp_path / "base")


@pytest.fixture
def models(tmp_path, base):
    """Return the folders of a backbone, and of a classifier on it whose first stages have moved."""
    return {"before": str(base), "after": str(save_image_classifier(tmp_path / "after", base, part="backbone."))}


@pytest.fixture
def images(tmp_path):
    return sorted(map(str, write_images(tmp_path / "images", count=1).rglob("*.png")))


def test_filters_activations_and_changes_are_drawn(models, images, tmp_path):
    shown = show_filters(ShowFiltersSettings(**models, output_dir=str(tmp_path / "out"), images=images))
    layers = [f"activations_backbone.encoder.stages.{number}.png" for number in range(3)]
    assert shown.pictures == ["weight_changes.png", "filters.png", *layers]
    for name in shown.pictures:
        assert image.imread(shown.output_dir / name).ndim == 3
    assert json.loads((tmp_path / "out/weight_changes.json").read_text()) == shown.changes.to_dict()
    assert [row.name for row in shown.changes.groups] == ["early", "late", "head"]
    record = json.loads((tmp_path / "out/stage.json").read_text())
    assert (record["stage"], record["pictures"]) == ("show_filters", shown.pictures)


def test_what_is_drawn_are_the_maps_of_both_models_for_what_they_see(models, images, tmp_path, monkeypatch):
    drawn = []

    def draw(*arrays, **how):
        drawn.append((*arrays, how))
        return drawing.plot_activations(*arrays, **how)

    monkeypatch.setattr(module, "plot_activations", draw)
    layer = "backbone.encoder.stages.1"
    settings = ShowFiltersSettings(
        **models, output_dir=str(tmp_path / "out"), images=images, layers=[layer], channels=3
    )
    assert show_filters(settings).pictures[2:] == [f"activations_{layer}.png"]
    ((seen, before, after, how),) = drawn
    assert how == {"layer": layer, "channels": 3}
    predictor = ImagePredictor.load(models["after"])
    pixels = predictor.pixels.plain([Image.open(path) for path in images])
    np.testing.assert_allclose(after, layer_activations(predictor.model, pixels, [layer])[layer], rtol=1e-5)
    earlier = load_model(models["before"], AutoModel)
    name = layer.removeprefix("backbone.")
    np.testing.assert_allclose(before, layer_activations(earlier, pixels, [name])[name], rtol=1e-5)
    half = tuple(predictor.pixels.processor.image_mean)
    assert half == tuple(predictor.pixels.processor.image_std) == (0.5, 0.5, 0.5)
    np.testing.assert_allclose(seen.transpose(0, 3, 1, 2) * 2 - 1, pixels, atol=1e-6)


def test_without_images_there_are_filters_and_changes_only(models, tmp_path):
    shown = show_filters(ShowFiltersSettings(**models, output_dir=str(tmp_path / "out")))
    assert shown.pictures == ["weight_changes.png", "filters.png"]


def test_a_second_call_takes_the_place_of_the_first_but_of_nothing_else(models, images, tmp_path):
    show_filters(ShowFiltersSettings(**models, output_dir=str(tmp_path / "out"), images=images))
    show_filters(ShowFiltersSettings(**models, output_dir=str(tmp_path / "out")))
    names = {"filters.png", "stage.json", "weight_changes.json", "weight_changes.png"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    with pytest.raises(ArtifactError, match="holds files that are not a stage's, not a show_filters stage"):
        show_filters(ShowFiltersSettings(**models, output_dir=models["after"]))


def test_grey_models_see_grey_images(images, tmp_path):
    base = save_backbone(tmp_path / "grey", num_channels=1)
    after = save_image_classifier(tmp_path / "after", base, part="embedder.")
    settings = ShowFiltersSettings(str(base), str(after), str(tmp_path / "out"), images=images[:1])
    assert len(show_filters(settings).pictures) == 5


def test_of_many_blocks_four_are_drawn_from_the_first_to_the_last():
    assert module._from_first_to_last([f"block{number}" for number in range(12)]) == [
        "block0",
        "block4",
        "block7",
        "block11",
    ]
    assert module._from_first_to_last(["a", "b"]) == ["a", "b"]


def test_a_text_models_weight_changes_are_all_there_is(tmp_path):
    before = save_bert(tmp_path / "before")
    model = AutoModelForSequenceClassification.from_pretrained(before)
    after = save_moved(model, tmp_path / "after", "layer.2.")
    shown = show_filters(ShowFiltersSettings(str(before), str(after), str(tmp_path / "out")))
    assert shown.pictures == ["weight_changes.png"]
    assert [row.relative == 0 for row in shown.changes.groups] == [True, True, True, False, True]


def test_a_text_model_asked_for_filters_is_refused(images, tmp_path):
    before = str(save_bert(tmp_path / "before"))
    words = "before is a 'bert' model, which reads text: filters and activations are of image models; leave images and"
    with pytest.raises(ArtifactError, match=words):
        show_filters(ShowFiltersSettings(before, before, str(tmp_path / "out"), images=images))
    assert not (tmp_path / "out").exists()


def test_an_unknown_layer_is_refused_with_the_nearest_real_names(models, images, tmp_path):
    words = "has no layer 'encoder.stage.1'; names near it: backbone.encoder.stages.1"
    with pytest.raises(ValueError, match=words):
        show_filters(
            ShowFiltersSettings(**models, output_dir=str(tmp_path / "out"), images=images, layers=["encoder.stage.1"])
        )
    assert not (tmp_path / "out").exists()


def test_a_layer_without_a_counterpart_before_is_refused(models, images, tmp_path):
    words = (
        "base has nothing that layer 'backbone' of .*after could be compared with; take a layer inside 'backbone', such"
    )
    with pytest.raises(ArtifactError, match=words):
        show_filters(
            ShowFiltersSettings(**models, output_dir=str(tmp_path / "out"), images=images, layers=["backbone"])
        )


def test_models_for_other_channels_are_refused(base, tmp_path):
    after = save_image_classifier(tmp_path / "after", base, channels=1)
    words = (
        "base reads images of 3 channels, .*after of 1: neither filters nor activations can be compared; compare_wei"
    )
    with pytest.raises(ArtifactError, match=words):
        show_filters(ShowFiltersSettings(str(base), str(after), str(tmp_path / "out")))


def test_a_bad_image_is_refused_by_its_name(models, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"bad")
    with pytest.raises(ImageError, match="bad.png does not open as an image"):
        show_filters(
            ShowFiltersSettings(**models, output_dir=str(tmp_path / "out"), images=[str(tmp_path / "bad.png")])
        )


def test_a_model_without_its_processor_is_refused(models, images, tmp_path):
    (tmp_path / "after/preprocessor_config.json").unlink()
    with pytest.raises(ArtifactError, match="after lacks its image processor"):
        show_filters(ShowFiltersSettings(**models, output_dir=str(tmp_path / "out"), images=images))


def test_settings_that_draw_nothing_are_refused():
    with pytest.raises(ValueError, match="activations of 'stem' need images to be activated by; give images too"):
        ShowFiltersSettings("a", "b", "c", layers=["stem"])
    with pytest.raises(ValueError, match="channels must be a whole number of 1 or more, got 0"):
        ShowFiltersSettings("a", "b", "c", channels=0)
