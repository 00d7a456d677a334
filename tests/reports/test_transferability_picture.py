"""The picture of transferability, read back from its axes."""

import pytest
from matplotlib.colors import to_hex

from ulmfit_pipe.reports.transferability import LOOKS, plot_transferability

GROUPS = ["stem", "stage0", "stage1", "head"]


def point(curve, n, accuracy):
    return {"curve": curve, "n": n, "accuracy": accuracy, "lowest": accuracy - 0.01, "highest": accuracy + 0.02}


POINTS = [point("baseB", 0, 0.95), point("baseA", 0, 0.20), point("new", 0, 0.94)]
POINTS += [point(curve, n, 0.95 - 0.05 * n * place) for place, curve in enumerate(LOOKS) for n in (3, 1)]


def drawn(figure):
    return {line.get_label(): line for line in figure.axes[0].get_lines() if line.get_label() in LOOKS}


def test_five_curves_begin_where_nothing_is_copied(tmp_path):
    figure = plot_transferability(POINTS, GROUPS, title="Digits", path=tmp_path / "layers.png")
    lines = drawn(figure)
    assert list(lines) == list(LOOKS)
    for place, line in enumerate(lines.values()):
        shift = 0.05 * (place - 2)
        assert list(line.get_xdata()) == pytest.approx([0, 1 + shift, 3 + shift])
        assert list(line.get_ydata()) == pytest.approx([94, 95 - 5 * place, 95 - 15 * place])
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_colour_tells_where_layers_come_from_and_the_line_whether_they_stand_still():
    lines = drawn(plot_transferability(POINTS, GROUPS, title="Digits"))
    colours = {name: to_hex(line.get_color()) for name, line in lines.items()}
    assert colours["BnB"] == colours["BnB+"] != colours["AnB"] == colours["AnB+"] != colours["random"]
    assert {name for name, line in lines.items() if line.get_linestyle() == "--"} == {"BnB+", "AnB+"}
    assert {name for name, line in lines.items() if line.get_markerfacecolor() == "white"} == {"BnB+", "AnB+"}


def test_the_axis_names_the_last_copied_group_and_the_ends_their_curves():
    axes = plot_transferability(POINTS, GROUPS, title="Digits").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0\nnone", "1\nstem", "3\nstage1"]
    names = {text.get_text() for text in axes.texts}
    assert names == {*(look[-1] for look in LOOKS.values()), "baseB  trained as usual"}
    assert axes.get_title() == "How transferable are the layers? (Digits)"


def test_the_axis_holds_every_seed_of_what_is_drawn_and_no_more():
    low, high = plot_transferability(POINTS, GROUPS, title="Digits").axes[0].get_ylim()
    assert 25 < low < 34  # random at n = 3 is 35, its lowest seed 34; base A's 20 is not drawn
    assert 97 < high < 105


def test_the_line_of_the_ordinary_network_has_its_own_height():
    axes = plot_transferability(POINTS, GROUPS, title="Digits").axes[0]
    flat = [line for line in axes.get_lines() if list(line.get_ydata()) == [95, 95]]
    assert len(flat) == 1


def test_the_point_where_all_meet_and_every_other_one_has_the_range_of_its_seeds():
    axes = plot_transferability(POINTS, GROUPS, title="Digits").axes[0]
    ranges = [segment for collection in axes.collections for segment in collection.get_segments()]
    assert len(ranges) == 1 + 5 * 2
    first = min(ranges, key=lambda segment: segment[0][0])
    assert [tuple(end) for end in first] == [pytest.approx((0, 93)), pytest.approx((0, 96))]


def test_curves_that_are_missing_are_left_out_and_none_is_refused():
    assert list(drawn(plot_transferability(POINTS[-2:], GROUPS, title=""))) == ["random"]
    with pytest.raises(ValueError, match=r"needs a point of BnB, BnB\+, AnB, AnB\+, random, got none"):
        plot_transferability(POINTS[:3], GROUPS, title="")
