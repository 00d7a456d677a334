"""The page of a run, with the words behind its mistakes where they are asked for.

Explaining needs the classifier and takes a second or so a text, so what it finds is written beside the run's other
records, ``explanations.json``, and the page is made from these as ever.
"""

from pathlib import Path
from typing import Any

from ulmfit_pipe.console import in_one_line, reported
from ulmfit_pipe.reports.predictions import Prediction, most_confident_mistakes
from ulmfit_pipe.settings.reports import ReportSettings
from ulmfit_pipe.stages.artifacts import ArtifactError
from ulmfit_pipe.stages.report import EXPLANATIONS_FILE, run_record, write_reports
from ulmfit_pipe.storage.json_files import write_json
from ulmfit_pipe.text.predict.explain import explain
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.text.scores.predictions import LONGEST_TEXT

DIGITS = 4  # of a share that is kept


def make_report(settings: ReportSettings) -> str:
    """Make the page of a run again, or compare several runs; return what to print.

    Raises:
        ArtifactError: A folder does not hold the records of a run, or nothing in it can be explained.
    """
    if settings.explain:
        explain_mistakes(settings.run_dir[0])
    return write_reports(settings)


def explain_mistakes(folder: Path | str) -> Path:
    """Explain the mistakes that a run's page shows, and write each word's share of the label given.

    Texts that ``predictions.csv`` holds only the beginning of are left out.

    Args:
        folder: Folder of a finished run, or of a single classifier's.

    Returns:
        Path of the file.

    Raises:
        ArtifactError: There is no classifier of texts any more, or no row that could be explained.
    """
    record, path = run_record(folder), Path(folder) / EXPLANATIONS_FILE
    rows = [row for row in most_confident_mistakes(record["predictions"]) if len(row.text) < LONGEST_TEXT]
    if not rows:
        raise ArtifactError(
            f"{in_one_line(folder)} has no mistakes to explain: its predictions.csv is missing, has none, or holds "
            "only the beginning of their texts; leave explain out"
        )
    predictor = Predictor.load(_classifier_of(Path(folder), record))
    each = reported(rows, "explaining", total=len(rows), unit="texts")
    write_json(path, {str(row.row): _explained(predictor, row) for row in each})
    return path


def _classifier_of(folder: Path, record: dict[str, Any]) -> Path:
    """Return the classifier in a run's folder, which may have been moved, or the one that its records name."""
    named = record["metrics"].get("classifier")
    places = [folder / "classifier", folder, *([] if named is None else [Path(named)])]
    found = next((place for place in places if (place / "config.json").is_file()), None)
    if found is None:
        raise ArtifactError(
            f"{in_one_line(folder)} holds no classifier to explain its mistakes with; leave explain out"
        )
    return found


def _explained(predictor: Predictor, row: Prediction) -> dict[str, Any]:
    """Return what the page shows of a row; of several labels given the one with the highest score is explained."""
    given = row.prediction if row.prediction in predictor.label_names else None
    found = explain(predictor, row.text, label=given)
    words = [[word, float(f"{share:.{DIGITS}g}")] for word, share in found.words]
    return {"prediction": row.prediction, "score": row.score, "label": str(found.label), "words": words}
