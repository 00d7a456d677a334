"""What a classifier gets wrong, from Python."""

import numpy as np
import pytest

from tests.support.tiny_runs import CLASSIFIER, LM, multi_label_table, reviews, table, write_csv
from ulmfit_pipe import TextPipeline
from ulmfit_pipe.text.predict.predictor import ScoredRows
from ulmfit_pipe.text.scores.interpretation import ClassificationInterpretation

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Answers:
    """A predictor that knows its answers."""

    def __init__(self, probabilities, names, *, several=False, all_scores=True):
        self.label_names, self.multi_label = names, several
        self.found, self.all_scores = np.array(probabilities), all_scores

    def score_rows(self, rows):
        answers = self.found >= 0.5 if self.multi_label else self.found.argmax(axis=1)
        return {"accuracy": 0.75, "n": len(rows)}, ScoredRows(
            answers, self.found.max(axis=1), self.found if self.all_scores else None
        )

    def tokenize(self, rows):
        return rows

    def probabilities(self, rows):
        return self.found


FOUND = [[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]]  # truth: bad good bad good


@pytest.fixture
def two_classes():
    return ClassificationInterpretation(Answers(FOUND, ["bad", "good"]), table(reviews(4)))


def test_confusions_classes_and_losses_are_tables(two_classes):
    assert two_classes.confusion().to_dict("index") == {"bad": {"bad": 1, "good": 1}, "good": {"bad": 1, "good": 1}}
    assert (two_classes.confusion().index.name, two_classes.confusion().columns.name) == ("truth", "prediction")
    assert two_classes.per_class().loc["bad"].to_dict() == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert two_classes.most_confused().to_dict("records") == [
        {"truth": "good", "prediction": "bad", "count": 1},
        {"truth": "bad", "prediction": "good", "count": 1},
    ]
    assert two_classes.most_confused(min_count=2).empty
    worst = two_classes.top_losses(2)
    assert list(worst[["truth", "prediction"]].itertuples(name=None)) == [(2, "good", "bad"), (3, "bad", "good")]
    assert list(worst["loss"]) == pytest.approx([-np.log(0.2), -np.log(0.4)])
    assert len(two_classes.top_losses()) == 4
    assert repr(two_classes) == "ClassificationInterpretation(4 rows, 2 classes: accuracy 0.75)"
    assert "<table" in two_classes._repr_html_()


def test_pictures_are_drawn_and_saved(two_classes, tmp_path):
    figure = two_classes.plot_confusion(tmp_path / "confusion.png")
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "1", "1", "1"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["bad", "good"]
    losses = two_classes.plot_top_losses(3, tmp_path / "losses.png")
    assert losses.axes[0].texts[0].get_text().startswith("bad (0.80), in truth good: ")
    assert [bar.get_width() for bar in losses.axes[0].patches] == pytest.approx([-np.log(p) for p in (0.2, 0.4, 0.7)])
    for name in ("confusion.png", "losses.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG_SIGNATURE)


def test_labels_with_marks_of_formulas_are_drawn_as_they_are():
    names = ["$x^{", "\x1b_"]
    rows = table([("text $y_{", name) for name in names], tuple(names))
    found = ClassificationInterpretation(Answers([[0.9, 0.1], [0.9, 0.1]], names), rows)
    assert found.plot_confusion()._repr_png_().startswith(PNG_SIGNATURE)
    assert found.plot_top_losses()._repr_png_().startswith(PNG_SIGNATURE)


def test_scores_of_many_labels_are_asked_for_again():
    found = ClassificationInterpretation(Answers(FOUND, ["bad", "good"], all_scores=False), table(reviews(4)))
    assert list(found.losses) == pytest.approx([-np.log(p) for p in (0.9, 0.2, 0.4, 0.7)])


def test_several_labels_have_scores_and_losses_but_no_confusions():
    rows = multi_label_table(2)
    given = [[0.9, 0.2, 0.1], [0.4, 0.6, 0.7]]
    found = ClassificationInterpretation(Answers(given, ["bad", "fair", "good"], several=True), rows)
    truth = np.zeros((2, 3), dtype=bool)
    for row, labels in enumerate(rows["label"]):
        truth[row, labels] = True
    expected = -np.log(np.where(truth, given, 1 - np.array(given))).mean(axis=1)
    assert list(found.losses) == pytest.approx(list(expected))
    assert sorted(found.top_losses()["prediction"]) == ["bad", "fair|good"]
    for call in (found.confusion, found.most_confused, found.plot_confusion):
        with pytest.raises(ValueError, match=r"several labels here, so there is no single confusion; per_class"):
            call()


def test_a_pipeline_interprets_a_file(tmp_path):
    train, test = (
        write_csv(tmp_path / f"{name}.csv", reviews(count, seed=count)) for name, count in (("a", 30), ("b", 9))
    )
    pipe = TextPipeline(None)
    assert repr(pipe) == "TextPipeline(None; no classifier yet)"
    with pytest.raises(RuntimeError, match="there is no classifier yet"):
        pipe.interpret(test)
    pipe.fit(
        train, output_dir=tmp_path / "run", test=test, validation_fraction=0, language_model=LM, classifier=CLASSIFIER
    )
    assert repr(pipe) == f"TextPipeline(None; {tmp_path / 'run/classifier'}: bad, good)"
    found = pipe.interpret(test)
    assert int(np.trace(found.confusion())) == round(pipe.metrics["test"]["accuracy"] * 9)
    assert found.per_class()["support"].sum() == 9
    assert found.top_losses(1)["loss"].iloc[0] == pytest.approx(found.losses.max())
