"""A notebook that is executed: each picture is drawn once, each result is a table, a training shows its epochs."""

import os
import re
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="no notebook runs without nbclient and ipykernel (extra: test)")
pytest.importorskip("ipykernel", reason="no notebook runs without nbclient and ipykernel (extra: test)")
nbformat = pytest.importorskip("nbformat", reason="it comes with nbclient")

ROOT = Path(__file__).parents[2]
CELLS = {
    "start": """
from ulmfit_pipe import Learner, gradual_unfreezing
from accelerate import Accelerator
from tests.support.toy_models import groups_of, new_model, new_task
from ulmfit_pipe.reports.result_table import Metrics
model = new_model()
learner = Learner(model, groups_of(model), new_task(), accelerator=Accelerator(cpu=True))
plan = learner.plan(gradual_unfreezing(4, lr=1e-2, final_epochs=2))""",
    "summary": "learner.summary()",
    "plan": "plan",
    "fit": "learner.snapshot()\nlearner.fit_plan(plan)",
    "changes": "learner.weight_changes()",
    "metrics": "Metrics({'accuracy': 0.5, 'n': 4})",
    "losses": "learner.plot_losses()",
    "schedule": "learner.plot_schedule()",
    "finder": "found = learner.lr_find(num_steps=40)\nfound.plot()",
    "with pyplot": "import matplotlib.pyplot as plt\nlearner.plot_losses()",
    "found": "found",
    "kept": "figure = learner.plot_schedule()",
}


@pytest.fixture(scope="module")
def outputs():
    """Return the outputs of each cell; `NOTEBOOK_DIR` keeps the notebook, for who wants to look at it."""
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in CELLS.values()]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    if folder := os.environ.get("NOTEBOOK_DIR"):
        nbformat.write(notebook, Path(folder) / "executed.ipynb")
    return {name: cell.outputs for name, cell in zip(CELLS, notebook.cells, strict=True)}


def shown(outputs):
    return [output.data for output in outputs if output.output_type in ("execute_result", "display_data")]


def printed(outputs):
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def test_no_warning_of_another_library_is_shown(outputs):
    texts = [output.text for each in outputs.values() for output in each if output.get("name") == "stderr"]
    assert [text for text in texts if "Warning" in text] == []


@pytest.mark.parametrize("cell", ["losses", "schedule", "finder", "with pyplot", "found"])
def test_a_picture_is_drawn_once(outputs, cell):
    assert [sorted(set(data) - {"text/plain"}) for data in shown(outputs[cell])] == [["image/png"]]


def test_a_picture_that_is_kept_is_not_drawn(outputs):
    assert shown(outputs["kept"]) == []


@pytest.mark.parametrize("cell", ["summary", "plan", "fit", "changes", "metrics"])
def test_a_result_is_a_table(outputs, cell):
    (data,) = shown(outputs[cell])
    assert data["text/html"].startswith("<table>")


def test_a_fit_shows_a_line_an_epoch_and_ends_in_a_short_table(outputs):
    epochs = re.findall(r"^(last \d|all) +(\d) ", printed(outputs["fit"]), re.MULTILINE)
    assert epochs == [("last 1", "1"), ("last 2", "1"), ("last 3", "1"), ("all", "1"), ("all", "2")]
    (data,) = shown(outputs["fit"])
    assert data["text/html"].count("<tr>") == 6
    assert len(data["text/plain"]) < 100
