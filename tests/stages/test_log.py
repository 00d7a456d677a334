"""Every stage leaves a log beside its files, and asks no tracker but those it is told."""

import json

import pytest
from accelerate import tracking
from accelerate.tracking import GeneralTracker

from tests.support.tiny_runs import CLASSIFIER, LM, reviews, table, texts_of, write_csv
from ulmfit_pipe.images.pipeline import run_image_pipeline
from ulmfit_pipe.settings.images import ImageSettings
from ulmfit_pipe.settings.parsing import parse_settings
from ulmfit_pipe.settings.text_runs import ClassifierJob, LanguageModelJob, PipelineSettings
from ulmfit_pipe.stages import log as log_module
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.stages.progress import progress_folder
from ulmfit_pipe.text.classifier import train_classifier
from ulmfit_pipe.text.jobs import run_classifier, run_language_model
from ulmfit_pipe.text.language_model import train_language_model
from ulmfit_pipe.text.pipeline import run_pipeline
from ulmfit_pipe.training.logs import accelerate_trackers

TEXTS = [text for text, _ in reviews(40)]


class Fake(GeneralTracker):
    """Keeps what it is told."""

    name = "fake"
    requires_logging_directory = True
    runs: list["Fake"] = []

    def __init__(self, run, logging_dir, **_options):
        super().__init__()
        self.run, self.logging_dir, self.lines, self.config, self.ended = run, logging_dir, [], None, False
        self.runs.append(self)

    @property
    def tracker(self):
        return self.lines

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **_options):
        self.lines.append({"step": step, **values})

    def finish(self):
        self.ended = True


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(Fake, "runs", [])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "fake", Fake)
    return Fake.runs


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def rates_of(line):
    return [name for name in line if name.startswith("lr/")]


def test_a_language_model_stage_leaves_its_log_and_no_trackers_folder(tmp_path):
    folder = tmp_path / "lm"
    context = RunContext(say=str, log_every=3)
    result = train_language_model(
        texts_of(*TEXTS), texts_of(*TEXTS[:9]), output_dir=folder, settings=LM, context=context
    )
    lines = log_of(folder)
    steps = [line for line in lines if "epoch" not in line]
    assert [line["step"] for line in steps] == list(range(0, len(steps) * 3, 3))
    assert rates_of(steps[0]) == ["lr/lstm0", "lr/lstm1", "lr/embeddings"]
    assert steps[0]["tokens_per_second"] > 0
    assert lines[-1]["validation/loss"] == pytest.approx(result.metrics["loss"])
    assert not progress_folder(folder).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["lm"]


def test_a_classifier_stage_logs_to_the_trackers_it_is_told(tiny_language_model_folder, tmp_path, fakes):
    folder = tmp_path / "runs" / "reviews"
    train_classifier(
        table(reviews(36)),
        table(reviews(10, seed=7)),
        model=str(tiny_language_model_folder),
        output_dir=folder,
        settings=CLASSIFIER,
        context=RunContext(say=str, report_to=["fake"], log_every=2),
    )
    (run,) = fakes
    assert (run.run, run.logging_dir, run.ended) == ("reviews", str(tmp_path / "runs/trackers/fake"), True)
    assert run.config["settings.batch_size"] == 8
    assert run.config["seed"] == 0
    assert run.config["settings.lr"] == "None"  # not every tracker takes None
    assert {type(value) for value in run.config.values()} <= {str, int, float, bool}
    written = [{name: value for name, value in line.items() if name != "time"} for line in log_of(folder)]
    assert written == run.lines
    assert {line["phase"] for line in written} == {1, 2, 3, 4}
    assert [line["epoch"] for line in written if "epoch" in line] == [1, 2, 3, 4]
    assert all(line["lr/head"] > 0 for line in written if "epoch" not in line)


def test_a_training_that_fails_keeps_its_log_with_its_checkpoints(tiny_language_model_folder, tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(log_module, "save_stage", fail)
    with pytest.raises(OSError, match="No space left"):
        train_classifier(
            table(reviews(36)),
            None,
            model=str(tiny_language_model_folder),
            output_dir=tmp_path / "c",
            settings=CLASSIFIER.__class__(**{**vars(CLASSIFIER), "keep": "last"}),
            context=RunContext(say=str),
        )
    assert [line["step"] for line in log_of(progress_folder(tmp_path / "c")) if "epoch" not in line] == [0, 10]


def test_the_recipes_settings_name_trackers_and_refuse_those_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerate_trackers, "get_available_trackers", lambda: ["tensorboard"])
    csv = str(write_csv(tmp_path / "train.csv", reviews(12)))
    words = ["--output_dir", str(tmp_path / "out"), "--report_to", "tensorboard", "--report_to", "wandb"]
    texts = ["--train_file", csv, *words]
    runs = [
        (LanguageModelJob, texts, run_language_model),
        (ClassifierJob, [*texts, "--model", "awd-lstm-en"], run_classifier),
        (PipelineSettings, texts, run_pipeline),
        (ImageSettings, ["--dataset", "digits", *words], run_image_pipeline),
    ]
    for kind, argv, run in runs:
        settings = parse_settings(kind, argv, description="")
        assert (settings.report_to, settings.log_every) == (["tensorboard", "wandb"], 10)
        with pytest.raises(
            ValueError, match="report_to 'wandb' is not installed; pip install wandb; installed here: te"
        ):
            run(settings)
        assert not (tmp_path / "out").exists()


def test_a_context_takes_none_for_no_tracker_and_refuses_a_step_out_of_none():
    assert RunContext(report_to=["none"]).report_to == ()
    with pytest.raises(ValueError, match="log_every must be a whole number of 1 or more, got 0; the default is 10"):
        RunContext(log_every=0)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), True, "60"])
def test_a_context_refuses_seconds_between_checkpoints_that_make_no_sense(seconds):
    with pytest.raises(ValueError) as caught:
        RunContext(checkpoint_seconds=seconds)
    words = f"checkpoint_seconds must be a number of 0 or more, got {seconds!r}; leave it out for the default"
    assert str(caught.value) == words
    assert RunContext(checkpoint_seconds=0).checkpoint_seconds == 0
