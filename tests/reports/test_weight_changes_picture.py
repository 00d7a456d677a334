import math
import subprocess
import sys

import pytest
from matplotlib import image

from ulmfit_pipe.reports.number_words import change_words
from ulmfit_pipe.reports.weight_changes import plot_weight_changes


def row(name, relative, *, group=None, before=2.0):
    change = None if relative is None else relative * before
    return {"name": name, "group": group or name, "norm_before": before, "norm_change": change, "relative": relative}


CHANGES = {
    "groups": [row("embeddings", 0.0), row("lstm0", 0.00213), row("head", 0.62), row("new", None, before=None)],
    "tensors": [
        row("e.weight", 0.0, group="embeddings"),
        row("l.weight", 0.002, group="lstm0"),
        row("l.bias", 0.01, group="lstm0"),
        row("h.weight", 0.7, group="head"),
        row("h.bias", None, group="head", before=0.0),
        row("n.weight", None, group="new", before=None),
    ],
}


def names_right(axes):
    return [label.get_text() for child in axes.child_axes for label in child.get_yticklabels()]


def test_changes_are_said_in_words():
    told = {0.0: "unchanged", 0.00213: "0.213%", 0.62: "62%", 1.337: "134%", 12.0: "1,200%", 3e-7: "3e-05%"}
    assert {value: change_words(row("a", value)) for value in told} == told
    assert change_words(row("a", None, before=0.0)) == "from zero"
    assert change_words(row("a", None, before=None)) == "new"


def test_each_group_has_its_row_input_at_the_bottom_and_its_change_beside_it(tmp_path):
    figure = plot_weight_changes(CHANGES, path=tmp_path / "change.png")
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["embeddings", "lstm0", "head", "new"]
    assert names_right(axes) == ["unchanged", "0.213%", "62%", "new"]
    assert axes.get_xscale() == "log"
    dots = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}
    assert dots == {"layer group": ([0.00213, 0.62], [1, 2]), "each tensor": ([0.002, 0.01, 0.7], [1, 1, 2])}
    assert image.imread(tmp_path / "change.png").shape[:2] == (478, 1200)


def test_the_axis_is_in_per_cent():
    figure = plot_weight_changes(CHANGES)
    figure.canvas.draw()
    texts = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert "1%" in texts


def test_a_model_that_did_not_move_can_be_drawn(tmp_path):
    figure = plot_weight_changes(
        {"groups": [row("head", 0.0)], "tensors": []}, title="Nothing", path=tmp_path / "a.png"
    )
    assert names_right(figure.axes[0]) == ["unchanged"]
    assert figure.axes[0].get_title() == "Nothing"
    assert figure.legends == []


def test_one_group_that_moved_alone_can_be_drawn():
    figure = plot_weight_changes({"groups": [row("head", 0.5)], "tensors": []})
    low, high = figure.axes[0].get_xlim()
    assert low < 0.5 < high and math.isfinite(high)


def test_a_picture_of_no_group_is_refused():
    with pytest.raises(ValueError, match="a picture of weight changes needs at least one layer group, got none"):
        plot_weight_changes({"groups": [], "tensors": []})


def test_the_words_need_neither_matplotlib_nor_torch():
    code = (
        "import sys; from ulmfit_pipe.reports.number_words import change_words; "
        "print({'matplotlib', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
