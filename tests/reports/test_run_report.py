import base64
import math
import re
from html.parser import HTMLParser

import pytest

from ulmfit_pipe.reports.plots import plot_history
from ulmfit_pipe.reports.run_report import run_report


class Page(HTMLParser):
    """Collects tags, attributes that could load something, headings and visible text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loads, self.text, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style",):
            self.text.append(data)


METRICS = {
    "test": {"accuracy": 0.91234567, "macro_f1": 0.5, "loss": 0.25, "n": 872},
    "validation": {"accuracy": 0.9, "macro_f1": 0.5, "loss": 0.3, "n": 101},
    "seconds": {"classifier": 12.5},
    "seed": 7,
}


def test_the_page_holds_every_section():
    source = run_report(
        title="TREC-6",
        metrics=METRICS,
        settings={"classifier": {"lr": 0.01, "lrs": [0.1, 0.2], "preset": None}, "seed": 7},
        plan_table="phase  trains\n-----  ------\n1 head  head",
        history=[{"epoch": 1, "train_loss": 1.5, "metrics": {"loss": math.inf}}, {"epoch": 2, "best": True}],
        group_table=[{"group": "head", "parameters": 12345}],
        pictures={"Weight change": plot_history([{"train_loss": 0.5}])},
    ).decode()
    page = Page(source)
    assert page.open == []
    text = " ".join(page.text)
    for heading in ("Results", "Pictures", "Plan", "History", "Layer groups", "Settings", "Run"):
        assert heading in page.text
    for expected in ("0.9123", "872", "classifier.lr", "0.1, 0.2", "–", "metrics.loss", "inf", "12345"):
        assert expected in text
    assert "phase  trains\n-----  ------\n1 head  head" in page.text
    assert "seconds.classifier" in text


def test_the_page_loads_nothing_from_outside():
    source = run_report(title="x", metrics=METRICS, pictures={"a": plot_history([{"train_loss": 0.5}])}).decode()
    page = Page(source)
    assert [value[:22] for value in page.loads] == ["data:image/png;base64,"]
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "http://" not in source and "https://" not in source


def test_everything_is_escaped():
    evil = "<script>alert('1')</script>&\"x\""
    source = run_report(
        title=evil,
        metrics={"test": {evil: evil}, evil: evil},
        settings={evil: evil},
        plan_table=evil,
        history=[{evil: evil}],
        group_table=evil,
        pictures={evil: plot_history([{"train_loss": 0.5}])},
    ).decode()
    page = Page(source)
    assert "script" not in page.tags
    assert page.text.count(evil) == 13  # in the head, the heading and every section


def test_a_picture_file_is_embedded_byte_for_byte(tmp_path):
    plot_history([{"train_loss": 0.5}], path=tmp_path / "change.png")
    source = run_report(title="x", metrics={}, pictures={"c": tmp_path / "change.png"}).decode()
    encoded = re.search(r"base64,([^\"]+)", source).group(1)
    assert base64.b64decode(encoded) == (tmp_path / "change.png").read_bytes()


def test_sections_without_content_and_splits_without_scores_are_left_out():
    source = run_report(title="bare", metrics={"test": None, "validation": {"n": 3}}).decode()
    page = Page(source)
    assert page.text.count("validation") == 1
    assert "test" not in page.text
    assert "Plan" not in page.text and "Pictures" not in page.text


def test_text_that_is_not_utf8_is_escaped():
    source = run_report(title="lone \ud800 half", metrics={}).decode()
    assert "lone \\ud800 half" in source


def test_a_picture_that_is_no_png_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(ValueError, match=r"must be figures or PNG files, .*notes.txt is neither; save it as PNG"):
        run_report(title="second", metrics={}, pictures={"a": tmp_path / "notes.txt"})
    with pytest.raises(FileNotFoundError, match="gone.png"):
        run_report(title="second", metrics={}, pictures={"a": tmp_path / "gone.png"})
