import warnings

import numpy as np
import pytest
from matplotlib import image

from ulmfit_pipe.reports.filters import MOST_FILTERS, TILE_PIXELS, most_changed, plot_activations, plot_filters

CHANCE = np.random.default_rng(0)
BEFORE = CHANCE.normal(size=(5, 3, 4, 4))


def pictures(axes):
    return [np.ma.filled(drawn.get_array().astype(float), np.nan) for drawn in axes.get_images()]


def test_filters_are_drawn_before_after_and_their_change(tmp_path):
    after = BEFORE.copy()
    after[2] += 0.5
    figure = plot_filters(BEFORE, after, path=tmp_path / "filters.png")
    assert [axes.get_title() for axes in figure.axes[:3]] == ["before", "after", "change"]
    assert figure.get_suptitle() == "First-layer filters (5 filters, 4 x 4)"
    scale = TILE_PIXELS // 4
    step = 4 * scale + round(0.12 * 4 * scale)
    low, high = min(BEFORE[2].min(), after[2].min()), max(BEFORE[2].max(), after[2].max())
    for axes, state in zip(figure.axes, (BEFORE, after), strict=False):
        (drawn,) = pictures(axes)
        assert drawn.shape[2] == 3
        tile = drawn[0 : 4 * scale : scale, 2 * step : 2 * step + 4 * scale : scale]  # the third of the first row
        np.testing.assert_allclose(tile, ((state[2] - low) / (high - low)).transpose(1, 2, 0))
    (change,) = pictures(figure.axes[2])
    np.testing.assert_allclose(change[0, 2 * step], 0.5 / (high - low))
    assert change[0, 0] == 0
    assert np.isnan(change[-1, -1])  # the sixth place is empty
    assert image.imread(tmp_path / "filters.png").ndim == 3


def test_filters_of_one_channel_and_of_many_are_grey():
    for channels in (1, 6):
        filters = CHANCE.normal(size=(2, channels, 3, 3))
        assert pictures(plot_filters(filters, filters).axes[0])[0].ndim == 2


def test_of_many_filters_those_that_moved_most_are_drawn_in_their_order():
    before = np.zeros((MOST_FILTERS + 6, 1, 2, 2))
    before[:, 0, 0, 0] = np.arange(len(before))
    after = before.copy()
    after[6:] += 1
    figure = plot_filters(before, after)
    assert figure.get_suptitle() == "First-layer filters (64 of 70 that moved most, 2 x 2)"
    (change,) = pictures(figure.axes[2])
    assert change[0, 0] == pytest.approx(1 / 7)  # of the filter numbered 6, whose numbers go from 0 to 7


def test_filters_that_are_flat_or_did_not_move_can_be_drawn(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = plot_filters(np.ones((3, 1, 2, 2)), np.ones((3, 1, 2, 2)), path=tmp_path / "a.png")
    assert figure.axes[2].get_title() == "change (none)"


def test_filters_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"of one shape, got \(5, 3, 4, 4\) and \(5, 3, 4, 3\)"):
        plot_filters(BEFORE, BEFORE[..., :3])
    with pytest.raises(ValueError, match=r"must be two arrays \(filters, channels, height, width\) .*got \(4, 4\)"):
        plot_filters(BEFORE[0, 0], BEFORE[0, 0])


def test_activations_show_each_image_and_the_channels_that_changed_most(tmp_path):
    images = CHANCE.uniform(size=(2, 8, 8, 3))
    before = CHANCE.uniform(size=(2, 7, 3, 3))
    after = before.copy()
    after[:, 5] += 2
    after[:, 1] += 1
    figure = plot_activations(images, before, after, layer="stage0", channels=2, path=tmp_path / "maps.png")
    assert figure.get_suptitle() == "stage0"
    assert figure.get_supxlabel() == "2 of 7 channels, those that changed most; one scale a channel"
    seen, maps = figure.axes[:2], figure.axes[2:]
    assert [pictures(axes)[0].shape for axes in seen] == [(8, 8, 3)] * 2
    assert [axes.get_title() for axes in maps] == ["channel 5", "", "", "", "channel 1", "", "", ""]
    assert [axes.get_ylabel() for axes in maps] == ["before", "after", "before", "after", "", "", "", ""]
    np.testing.assert_allclose(pictures(maps[3])[0], after[1, 5])
    np.testing.assert_allclose(pictures(maps[4])[0], before[0, 1])
    scales = {axes.get_images()[0].get_clim() for axes in maps[:4]}
    assert scales == {(min(before[:, 5].min(), after[:, 5].min()), max(before[:, 5].max(), after[:, 5].max()))}
    assert image.imread(tmp_path / "maps.png").ndim == 3


def test_grey_images_and_dead_channels_can_be_drawn(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dead = np.zeros((1, 2, 3, 3))
        figure = plot_activations(np.zeros((1, 5, 5)), dead, dead, layer="dead", path=tmp_path / "dead.png")
    assert figure.get_supxlabel().startswith("2 of 2 channels, ")


def test_channels_are_ranked_by_how_far_their_maps_moved():
    before = np.zeros((2, 4, 3, 3))
    after = before.copy()
    after[0, 2] = 1.0
    after[:, 1] = -2.0
    after[1, 3, 0, 0] = 9.0  # one place far, root mean square 9 / sqrt(18)
    assert most_changed(before, after, 3) == [3, 1, 2]
    assert most_changed(before, after, 9) == [3, 1, 2, 0]


def test_activations_that_do_not_belong_together_are_refused():
    maps = np.zeros((2, 4, 3, 3))
    with pytest.raises(ValueError, match=r"got \(2, 4, 3, 3\) and \(2, 4, 3, 2\) for 2 images"):
        plot_activations(np.zeros((2, 5, 5)), maps, maps[..., :2], layer="a")
    with pytest.raises(ValueError, match="a map an image, got .* for 3 images"):
        plot_activations(np.zeros((3, 5, 5)), maps, maps, layer="a")
    with pytest.raises(ValueError, match="channels must be 1 or more, got 0"):
        plot_activations(np.zeros((2, 5, 5)), maps, maps, layer="a", channels=0)
