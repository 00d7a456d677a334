import math
import subprocess
import sys
import warnings

import pytest
from matplotlib import image

from ulmfit_pipe.reports.plots import (
    LABEL_GAP,
    _kept_apart,
    plot_label_curves,
    plot_losses,
    plot_lr_find,
    plot_schedule,
)

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def legend_texts(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_lr_find_marks_each_suggestion_on_the_curve(tmp_path):
    lrs, losses = [1e-4, 1e-3, 1e-2, 1e-1], [2.0, 1.5, 1.0, 3.0]
    figure = plot_lr_find(lrs, losses, {"valley": 10**-2.5, "minimum": 1e-3}, path=tmp_path / "find.png")
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert legend_texts(axes) == ["valley  3.2e-3", "minimum  1.0e-3"]
    marks = {line.get_label(): line.get_ydata()[0] for line in axes.get_lines() if len(line.get_xdata()) == 1}
    assert marks == pytest.approx({"valley  3.2e-3": 1.25, "minimum  1.0e-3": 1.5})
    assert (tmp_path / "find.png").read_bytes().startswith(PNG_SIGNATURE)


def test_a_notebook_shows_a_picture_without_pyplot():
    code = (
        "import sys; from ulmfit_pipe.training.lr_finder import LRFinderResult as R; "
        "r = R((1e-4, 1e-3, 1e-2), (2.0, 1.0, 3.0), {'valley': 1e-3}, ('head',)); "
        "assert r._repr_png_()[:8] == r.plot()._repr_png_()[:8] == b'\\x89PNG\\r\\n\\x1a\\n'; "
        "assert 'matplotlib.pyplot' not in sys.modules; print(r)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "LRFinderResult(3 rates, suggested learning rates for head: valley 1.00e-03)\n"


def test_losses_are_drawn_by_step_and_those_of_epochs_where_they_end(tmp_path):
    figure = plot_losses(
        [3.0, 2.0, math.nan, 1.0, 0.5],
        [(3, 2.5, 2.2), (5, 0.75, None)],
        phases=[("head", 0), ("all", 3)],
        path=tmp_path / "losses.png",
    )
    axes = figure.axes[0]
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}
    assert lines["training, each step"] == ([1, 2, 4, 5], [3.0, 2.0, 1.0, 0.5])
    assert lines["training, mean of the epoch"] == ([3, 5], [2.5, 0.75])
    assert lines["validation"][0] == [3, 5]
    assert lines["validation"][1][0] == 2.2 and math.isnan(lines["validation"][1][1])
    assert [list(line.get_xdata()) for line in axes.get_lines() if line.get_linestyle() == "--"] == [[3.5, 3.5]]
    assert (tmp_path / "losses.png").read_bytes().startswith(PNG_SIGNATURE)
    assert "validation" not in legend_texts(plot_losses([1.0], [(1, 1.0, None)]).axes[0])


def test_the_rate_of_a_frozen_group_is_a_gap():
    axes = plot_schedule({"body": [0.0, 1e-4], "head": [1e-3, 1e-2]}).axes[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert math.isnan(lines["body"][0]) and lines["body"][1] == 1e-4 and lines["head"] == [1e-3, 1e-2]
    assert axes.get_yscale() == "log"
    assert legend_texts(axes) == ["head", "body"]


def test_a_training_without_a_step_has_no_picture():
    with pytest.raises(ValueError, match="no finite loss to draw among 0"):
        plot_losses([], [])
    with pytest.raises(ValueError, match="a schedule's picture needs a learning rate above 0, and no step has one"):
        plot_schedule({"head": [0.0]})


def test_a_diverging_loss_does_not_flatten_the_valley():
    figure = plot_lr_find([1e-3, 1e-2, 1e-1, 1.0], [2.0, 1.0, 50.0, 1e9], {})
    assert figure.axes[0].get_ylim()[1] < 3


def test_losses_that_are_not_finite_are_left_out_of_the_picture():
    figure = plot_lr_find([1e-3, 1e-2, 1e-1], [2.0, 1.0, math.nan], {"steep": 1e-3})
    assert list(figure.axes[0].get_lines()[0].get_ydata()) == [2.0, 1.0]


def test_a_suggestion_outside_the_curve_is_marked_at_its_end():
    figure = plot_lr_find([1e-3, 1e-2], [2.0, 1.0], {"minimum": 1e-5, "slide": 1.0})
    marks = [line.get_ydata()[0] for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 1]
    assert marks == [2.0, 1.0]


def test_lr_find_pictures_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="got 2 learning rates and 3 losses"):
        plot_lr_find([1e-3, 1e-2], [1.0, 2.0, 3.0], {})
    with pytest.raises(ValueError, match=r"no finite loss to draw among 2; did the first batch give NaN\?"):
        plot_lr_find([1e-3, 1e-2], [math.nan, math.inf], {})


def test_pictures_need_no_window_no_pyplot_and_no_torch():
    code = (
        "import sys\n"
        "from ulmfit_pipe.reports.plots import plot_lr_find\n"
        "plot_lr_find([1e-3, 1e-2], [2.0, 1.0], {}).canvas.draw()\n"
        "print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_drawing_gives_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_lr_find([1e-3], [1.0], {"valley": 1e-3}, path=tmp_path / "point.png")


def curve(labels, *errors):
    return [
        {"labels": count, "error": error, "lowest": error - 0.02, "highest": error + 0.03}
        for count, error in zip(labels, errors, strict=True)
    ]


CURVES = {"from scratch": curve([2000, 100, 500], 0.2, 0.4, 0.3), "ULMFiT": curve([100, 500], 0.15, 0.1)}


def test_label_curves_are_a_line_and_a_band_a_method_in_per_cent_over_a_log_axis(tmp_path):
    figure = plot_label_curves({"Reviews": CURVES}, path=tmp_path / "curve.png")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert (axes.get_title(), axes.get_ylabel()) == ("Reviews", "test error, %")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100", "500", "2,000"]
    scratch, method = axes.get_lines()
    assert list(scratch.get_xdata()) == [100, 500, 2000]
    assert list(scratch.get_ydata()) == pytest.approx([40, 30, 20])
    assert scratch.get_color() != method.get_color()
    assert scratch.get_marker() != method.get_marker()
    band = axes.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((18, 43))
    picture = image.imread(tmp_path / "curve.png")
    assert picture.shape[:2] == (920, 1600)
    assert len({tuple(pixel) for row in picture[::20] for pixel in row[::20]}) > 5  # not blank


def test_label_curves_bear_their_names_at_their_ends_kept_apart():
    figure = plot_label_curves({"Reviews": {"low": curve([100], 0.200), "high": curve([100], 0.205)}})
    names = {text.get_text(): text for text in figure.axes[0].texts}
    heights = {name: text.xy[1] for name, text in names.items()}
    assert list(heights) == ["low", "high"]
    assert heights["high"] - heights["low"] == pytest.approx(LABEL_GAP * figure.axes[0].get_ylim()[1])
    assert (heights["high"] + heights["low"]) / 2 == pytest.approx(20.25)
    colors = {line.get_label(): line.get_color() for line in figure.axes[0].get_lines()}
    assert {name: text.get_color() for name, text in names.items()} == colors


def test_names_far_apart_stay_where_their_lines_end():
    assert _kept_apart([1.0, 5.0, 5.5, 9.0], gap=1.0) == pytest.approx([1.0, 4.75, 5.75, 9.0])
    assert _kept_apart([5.0, 5.0, 5.0], gap=1.0) == pytest.approx([4.0, 5.0, 6.0])
    assert _kept_apart([4.0, 5.0, 5.0], gap=1.0) == pytest.approx([11 / 3, 14 / 3, 17 / 3])


def test_a_method_has_one_colour_in_every_panel():
    figure = plot_label_curves({"Reviews": CURVES, "Questions": {"ULMFiT": CURVES["ULMFiT"]}})
    colors = [{line.get_label(): line.get_color() for line in axes.get_lines()} for axes in figure.axes]
    assert len(colors) == 2
    assert colors[0]["ULMFiT"] == colors[1]["ULMFiT"]


def test_label_curves_without_points_are_refused():
    with pytest.raises(ValueError, match="a picture of label curves needs points, got none for any data set"):
        plot_label_curves({})
    with pytest.raises(ValueError, match="needs points, got none for Questions"):
        plot_label_curves({"Reviews": CURVES, "Questions": {"ULMFiT": []}})
