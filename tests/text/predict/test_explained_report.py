"""The words behind the mistakes of a run, kept beside its records and shown in its page."""

import json
import shutil

import pytest

import ulmfit_pipe
from tests.support.tiny_runs import heard, reviews, write_csv
from ulmfit_pipe.settings.reports import ReportSettings
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.settings.text_runs import PipelineSettings
from ulmfit_pipe.stages.artifacts import ArtifactError
from ulmfit_pipe.stages.report import run_record
from ulmfit_pipe.text.pipeline import run_pipeline
from ulmfit_pipe.text.predict.explain import explain
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.text.scores.predictions import LONGEST_TEXT


@pytest.fixture
def run(tiny_language_model_folder, tmp_path):
    """Return the folder of a run with wrong labels in its test table, one of a text that is too long to explain."""
    test = [(text, "good" if label == "bad" else "bad") for text, label in reviews(12, seed=9)]
    test.append((f"{test[0][0]} " * (1 + LONGEST_TEXT // len(test[0][0])), test[0][1]))
    settings = PipelineSettings(
        train_file=[str(write_csv(tmp_path / "train.csv", reviews(40)))],
        test_file=[str(write_csv(tmp_path / "test.csv", test))],
        model=str(tiny_language_model_folder),
        fine_tune_language_model=False,
        unknown_text="allow",
        baseline="none",
        classifier=ClassifierSettings(plan="probe", batch_size=8),
        output_dir=str(tmp_path / "run"),
    )
    run_pipeline(settings, context=heard()[1])
    return tmp_path / "run"


def test_the_shown_mistakes_are_explained_by_the_words_of_explain(run, tmp_path):
    moved = shutil.move(run, tmp_path / "moved")  # its records name the folder that it was in
    assert ulmfit_pipe.make_report(ReportSettings([str(moved)], explain=True)) == f"report: {moved / 'report.html'}"
    found = json.loads((moved / "explanations.json").read_text())
    wrong = {str(row.row): row for row in run_record(moved)["predictions"] if not row.right}
    assert len(wrong) >= 5 and set(found) == set(wrong) - {"13"}
    number, row = next(iter(found.items()))
    expected = explain(Predictor.load(moved / "classifier"), wrong[number].text, label=row["label"])
    assert row["label"] == wrong[number].prediction
    assert [word for word, _ in row["words"]] == [word for word, _ in expected.words]
    assert [share for _, share in row["words"]] == pytest.approx([share for _, share in expected.words], rel=1e-3)
    page = (moved / "report.html").read_text()
    assert page.count('<mark class="for"') > 5
    ulmfit_pipe.make_report(ReportSettings([str(moved)]))
    assert (moved / "report.html").read_text() == page  # from the records alone


def test_what_cannot_be_explained_is_refused(run):
    with pytest.raises(
        ValueError, match="explain is for the page of one run, and 2 are compared; give each run_dir by"
    ):
        ReportSettings([str(run), str(run)], explain=True)
    shutil.rmtree(run / "classifier")
    with pytest.raises(ArtifactError, match="run holds no classifier to explain its mistakes with; leave explain out"):
        ulmfit_pipe.make_report(ReportSettings([str(run)], explain=True))
    (run / "predictions.csv").unlink()
    with pytest.raises(
        ArtifactError, match=r"has no mistakes to explain: its predictions.csv is missing, has none, or"
    ):
        ulmfit_pipe.make_report(ReportSettings([str(run)], explain=True))
