"""The page of a run."""

import re
from html.parser import HTMLParser

import pytest

from tests.support.tiny_runs import CLASSIFIER, LM, reviews, write_csv
from ulmfit_pipe.settings.text_runs import PipelineSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, save_stage
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.stages.finished import StageResult
from ulmfit_pipe.stages.report import refuse_foreign_output, write_report
from ulmfit_pipe.text.pipeline import run_pipeline


class Page(HTMLParser):
    """What a page shows: headings, table cells, pictures' descriptions, preformatted text; tags must be balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.pictures = [], {}, []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.pictures.append(dict(attributes))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and data.strip():
            self.seen.setdefault(self.open[-1], []).append(data.strip())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    table = write_csv(folder / "train.csv", reviews(30))
    settings = PipelineSettings(
        [str(table)], str(folder / "reviews"), None, validation_fraction=0.1, language_model=LM, classifier=CLASSIFIER
    )
    return settings, run_pipeline(settings, context=RunContext(say=str)), folder / "reviews"


def test_the_page_shows_results_pictures_plan_history_groups_and_settings(run):
    page = Page((run[2] / "report.html").read_text(encoding="utf-8"))
    assert page.seen["h1"] == ["ULMFiT run reviews"]
    assert page.seen["h2"] == [
        "Results",
        "Classes in the validation table",
        "Pictures",
        "Plan",
        "History",
        "Layer groups",
        "Settings",
        "Run",
    ]
    assert [picture["alt"] for picture in page.pictures] == [
        "language model: loss and validation scores",
        "language model: learning rate of each layer group",
        "classifier: loss and validation scores",
        "classifier: learning rate of each layer group",
    ]
    assert all(picture["src"].startswith("data:image/png;base64,") for picture in page.pictures)
    plan = page.seen["pre"][-1]
    assert re.search(r"^1 full  +lstm0 lstm1 embeddings", plan, re.M)
    assert re.search(r"^4 all  +embeddings lstm0 lstm1 head", plan, re.M)
    cells = page.seen["td"]
    assert {"last 1", "last 2", "last 3", "all", "head", "classifier.batch_size", "best"} <= set(cells)
    assert str(run[1]["versions"]["torch"]) in cells


def test_a_stage_without_an_epoch_or_a_loss_is_shown_too(run, tmp_path):
    settings, metrics, _ = run
    epoch = {"phase": "all", "epoch": 0, "step": 0, "total_steps": 4, "train_loss": None, "metrics": {"loss": 1.0}}
    record = {
        "plan": "a plan",
        "epochs": [{**epoch, "lrs": [0.0], "seconds": 0.1, "items_per_second": 0.0}],
        "best": None,
        "groups": [{"group": "head", "parameters": 5}],
        "rates": {"stride": 1, "values": []},
    }
    results = {}
    for name, content in (("one", record), ("none", {**record, "epochs": []})):
        path = save_stage(tmp_path / name, stage=name, record=content, write=lambda folder: None)
        results[name] = StageResult(path, {}, 0.0, False)
    page = Page(write_report(tmp_path / "r.html", settings=settings, metrics=metrics, results=results).read_text())
    assert [picture["alt"] for picture in page.pictures] == ["one: loss and validation scores"]


def test_thinned_rates_say_so_on_their_axis(run, tmp_path):
    from ulmfit_pipe.stages.report import _pictures

    epoch = {"phase": "all", "epoch": 0, "step": 8, "train_loss": 1.0, "metrics": {}}
    record = {"epochs": [epoch], "groups": [{"group": "head"}], "rates": {"stride": 4, "values": [[0.1], [0.2]]}}
    figure = _pictures("x", record)["x: learning rate of each layer group"]
    assert figure.axes[0].get_xlabel() == "optimizer step / 4"


@pytest.mark.parametrize("name", ["metrics.json", "report.html", "settings.yaml"])
def test_a_folder_with_files_of_our_names_and_no_stage_is_anothers(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ArtifactError, match=f"holds {name} but no stage of a run, so it is another program's"):
        refuse_foreign_output(tmp_path, ensemble=False)


def test_a_new_an_empty_and_an_own_folder_are_free(run, tmp_path):
    for folder in (tmp_path / "new", tmp_path, run[2]):
        refuse_foreign_output(folder, ensemble=False)
