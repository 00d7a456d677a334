"""The records of a run, read from its files, and the page that is made of them."""

import json
import sys

import pytest

from tests.support.tiny_runs import CLASSIFIER, LM, reviews, write_csv
from ulmfit_pipe.reports.predictions import Prediction
from ulmfit_pipe.settings.reports import ReportSettings
from ulmfit_pipe.settings.text_runs import PipelineSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, save_stage
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.stages.report import command_line, refuse_foreign_output, run_record, write_report, write_reports
from ulmfit_pipe.text.pipeline import run_pipeline


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    table = write_csv(folder / "train.csv", reviews(30))
    settings = PipelineSettings(
        [str(table)], str(folder / "reviews"), None, validation_fraction=0.1, language_model=LM, classifier=CLASSIFIER
    )
    return run_pipeline(settings, context=RunContext(say=str)), folder / "reviews"


def test_the_record_of_a_run_holds_all_that_its_files_say(run):
    metrics, folder = run
    record = run_record(folder)
    assert record["metrics"] == json.loads(json.dumps(metrics))
    assert (record["name"], list(record["stages"])) == ("reviews", ["language_model", "classifier"])
    assert record["settings"]["classifier.batch_size"] == CLASSIFIER.batch_size
    assert (record["defaults"]["classifier.batch_size"], record["defaults"]["seed"]) == (None, 0)
    assert "train_file" not in record["defaults"]
    assert record["effective"]["preset"] == "fastai"
    assert record["effective"]["classifier.plan"] == "preset"
    assert record["effective"]["classifier.lr"] == pytest.approx(2e-2, rel=0.1)
    assert record["effective"]["language_model.alpha"] == 2.0
    assert record["effective"]["classifier.monitor"] == "accuracy"
    assert record["effective"]["fine_tune_language_model"] is True
    batch_sizes = {name: stage["batch_size"] for name, stage in record["stages"].items()}
    assert batch_sizes == {"language_model": 1, "classifier": CLASSIFIER.batch_size}  # 4 rows would be too short
    logged = [json.loads(line) for line in (folder / "classifier/log.jsonl").read_text().splitlines()]
    used = [line["memory/rss_gib"] for line in logged if line["phase"] == 1 and "memory/rss_gib" in line]
    assert record["stages"]["classifier"]["memory"][1] == max(used) > 0
    assert [row.row for row in record["predictions"]] == [1, 2, 3]
    assert {row.truth for row in record["predictions"]} == {"bad", "good"}


def test_the_page_is_made_from_the_files_alone(run, tmp_path, monkeypatch):
    folder = run[1]
    first = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert write_reports(ReportSettings([str(folder)])) == f"report: {folder / 'report.html'}"
    assert (folder / "report.html").read_bytes() == first
    write_reports(ReportSettings([str(folder)], str(tmp_path / "there.html")))
    assert (tmp_path / "there.html").read_bytes() == first
    page = first.decode()
    assert "<h1>ULMFiT run reviews</h1>" in page
    assert page.index("<h3>Classifier") < page.index("<h3>Language model")
    assert "lstm1, phase last 2, steps" in page
    assert str(run[0]["versions"]["torch"]) in page


def test_two_runs_are_compared_and_a_page_is_written_only_where_it_is_asked_for(run, tmp_path):
    folder = str(run[1])
    shown = write_reports(ReportSettings([folder, folder]))
    assert shown.startswith("run ")
    assert shown.endswith("no setting differs but the output folder\n--output_file FILE.html writes it as a page")
    page = tmp_path / "both.html"
    assert write_reports(ReportSettings([folder, folder], str(page))).endswith(f"page: {page}")
    assert "2 ULMFiT runs" in page.read_text(encoding="utf-8")


def test_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="is not the folder of a finished run: it has no metrics.json that can be"):
        run_record(tmp_path / "gone")
    (tmp_path / "metrics.json").write_text("[1]")
    with pytest.raises(ArtifactError, match="give the output_dir of a run"):
        write_report(tmp_path)
    with pytest.raises(ValueError, match="run_dir is empty; name the folder of at least one run"):
        ReportSettings([])
    with pytest.raises(ValueError, match=r"output_file must end in .html, got 'page.pdf'; the report is a web page"):
        ReportSettings(["runs/mine"], "page.pdf")


def test_a_stage_without_an_epoch_or_a_loss_is_shown_too(tmp_path):
    epoch = {"phase": "all", "epoch": 0, "step": 0, "total_steps": 4, "train_loss": None, "metrics": {"loss": 1.0}}
    record = {
        "plan": "a plan",
        "epochs": [{**epoch, "lrs": [0.0], "seconds": 0.1, "items_per_second": 0.0}] * 2,
        "best": None,
        "groups": [{"group": "head", "parameters": 5}],
        "rates": {"stride": 1, "values": []},
        "identity": {},
    }
    (tmp_path / "metrics.json").write_text("{}")
    for name, content in (("language_model", record), ("classifier", {**record, "epochs": []})):
        save_stage(tmp_path / name, stage=name, record=content, write=lambda folder: None)
    page = write_report(tmp_path).read_text()
    assert page.count(">Loss</strong>") == 1
    assert "What trained when" not in page


def test_another_programs_predictions_are_left_out(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    for content in ("a,b\n1,2\n", "row,text,truth,prediction,score\nx,t,a,b,0.5\n", "row,text\n1\n", ""):
        (tmp_path / "predictions.csv").write_text(content)
        assert run_record(tmp_path)["predictions"] == []
    (tmp_path / "predictions.csv").write_text("row,text,truth,prediction,score,score_a\n4,'=1+1,a,'-1,0.5,0.25\n")
    assert run_record(tmp_path)["predictions"] == [Prediction(4, "=1+1", "a", "-1", 0.5, {"score_a": 0.25})]


def test_settings_that_cannot_be_read_leave_the_page_without_them(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "settings.yaml").write_text("a: [")
    assert run_record(tmp_path)["settings"] == {}
    assert write_report(tmp_path).is_file()


def test_only_the_command_ulmfit_is_kept(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ulmfit run", "--train_file", "my table.csv"])
    assert command_line() == "ulmfit run --train_file 'my table.csv'"
    monkeypatch.setattr(sys, "argv", ["mine.py", "--x"])
    assert command_line() is None


@pytest.mark.parametrize("name", ["metrics.json", "predictions.csv", "report.html", "settings.yaml"])
def test_a_folder_with_files_of_our_names_and_no_stage_is_anothers(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ArtifactError, match=f"holds {name} but no stage of a run, so it is another program's"):
        refuse_foreign_output(tmp_path, ensemble=False)


def test_a_new_an_empty_and_an_own_folder_are_free(run, tmp_path):
    for folder in (tmp_path / "new", tmp_path, run[1]):
        refuse_foreign_output(folder, ensemble=False)
