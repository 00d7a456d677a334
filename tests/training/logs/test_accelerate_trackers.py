"""Trackers of Accelerate are asked for by name; one that is not there is refused, and what is handed on is finite."""

import math

import pytest
from accelerate import Accelerator, tracking
from accelerate.tracking import GeneralTracker

from ulmfit_pipe.training.logs import accelerate_trackers
from ulmfit_pipe.training.logs.accelerate_trackers import AccelerateTrackers, check_report_to, installed_trackers


class Fake(GeneralTracker):
    """A tracker that one may register with accelerate; it keeps what it is told."""

    name = "fake"
    requires_logging_directory = False
    runs: list["Fake"] = []

    def __init__(self, project, logging_dir=None, **options):
        super().__init__()
        self.project, self.logging_dir, self.options = project, logging_dir, options
        self.config, self.lines, self.calls = None, [], []
        self.runs.append(self)

    @property
    def tracker(self):
        return self.lines

    def start(self):
        self.calls.append("start")

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **_options):
        self.lines.append((step, values))

    def finish(self):
        self.calls.append("finish")


class FakeWithFolder(Fake):
    name = "fake-with-folder"
    requires_logging_directory = True


@pytest.fixture
def fakes(monkeypatch):
    """Two registered trackers, and whatever else is installed here."""
    monkeypatch.setattr(Fake, "runs", [])
    for kind in (Fake, FakeWithFolder):
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, kind.name, kind)
    return Fake.runs


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(accelerate_trackers, "get_available_trackers", list)


def only_tensorboard(monkeypatch):
    monkeypatch.setattr(accelerate_trackers, "get_available_trackers", lambda: ["tensorboard"])


# ---- names


def test_no_names_and_none_mean_no_tracker():
    assert check_report_to([]) == check_report_to(["none"]) == ()


def test_several_trackers_may_be_asked_for_and_all_are_those_that_are_installed(fakes, monkeypatch):
    only_tensorboard(monkeypatch)
    assert installed_trackers() == ["fake", "fake-with-folder", "tensorboard"]
    assert check_report_to(["tensorboard", "fake", "tensorboard"]) == ("tensorboard", "fake")
    assert check_report_to(["fake", "all"]) == ("fake", "fake-with-folder", "tensorboard")


def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(monkeypatch):
    only_tensorboard(monkeypatch)
    words = (
        r"^report_to 'wandb' is not installed; pip install wandb; installed here: tensorboard \(log.jsonl is written "
        r"without any\)$"
    )
    with pytest.raises(ValueError, match=words):
        check_report_to(["tensorboard", "wandb"])


def test_an_unknown_tracker_is_refused_with_the_nearest_name_and_what_there_is(nothing_installed):
    words = (
        r"report_to 'tensorbord' is not a tracker; did you mean 'tensorboard'\? There are aim, clearml, comet_ml, "
        r"dvclive, mlflow, swanlab, tensorboard, trackio, wandb, all, none; installed here: none"
    )
    with pytest.raises(ValueError, match=words):
        check_report_to(["tensorbord"])
    with pytest.raises(ValueError, match=r"report_to 'xyz' is not a tracker; There are aim"):
        check_report_to(["xyz"])


def test_all_of_none_is_refused(nothing_installed):
    with pytest.raises(ValueError, match=r"report_to 'all' finds no tracker; installed here: none .*pip install tenso"):
        check_report_to(["all"])


def test_none_beside_others_is_refused(fakes):
    with pytest.raises(
        ValueError, match="report_to 'none' cannot be combined with others, got fake, none; leave it out"
    ):
        check_report_to(["fake", "none"])


def test_a_name_that_is_no_list_is_refused(fakes):
    with pytest.raises(ValueError, match=r"report_to must be a list of names, got 'fake'; write \['fake'\]"):
        check_report_to("fake")


def test_the_adapter_checks_its_names_too(tmp_path, nothing_installed):
    with pytest.raises(ValueError, match="report_to 'wandb' is not installed; pip install wandb"):
        AccelerateTrackers(["wandb"], folder=tmp_path, run="a")


# ---- runs


def test_numbers_reach_every_tracker_and_only_finite_ones(fakes, tmp_path, accelerator):
    names = ["fake", "fake-with-folder"]
    trackers = AccelerateTrackers(names, folder=tmp_path / "logs", run="mine", config={"preset": "paper"})
    assert fakes == []  # nothing begins before the training
    trackers.start(step=0, epochs=0)
    trackers.log({"loss": 0.5, "grad_norm": math.inf, "validation/f1": math.nan}, step=3)
    trackers.finish()
    plain, with_folder = fakes
    assert (plain.project, plain.logging_dir, plain.options) == ("ulmfit_pipe", None, {})
    folder = tmp_path / "logs" / "fake-with-folder"
    assert (with_folder.project, with_folder.logging_dir) == ("mine", str(folder))
    assert folder.is_dir()
    for run in fakes:
        assert run.lines == [(3, {"loss": 0.5})]
        assert run.calls == ["start", "finish"]
        assert run.config == {"preset": "paper"}


def test_a_run_that_is_gone_on_with_is_a_new_one_without_its_settings_again(fakes, tmp_path, accelerator):
    trackers = AccelerateTrackers(["fake"], folder=tmp_path, run="mine", config={"preset": "paper"})
    trackers.start(step=0, epochs=0)
    trackers.start(step=40, epochs=2)
    trackers.log({"loss": 0.5}, step=40)
    assert [run.calls for run in fakes] == [["start", "finish"], ["start"]]
    assert [run.config for run in fakes] == [{"preset": "paper"}, None]
    assert [run.lines for run in fakes] == [[], [(40, {"loss": 0.5})]]


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("wandb", "name"),
        ("trackio", "name"),
        ("swanlab", "experiment_name"),
        ("mlflow", "run_name"),
        ("clearml", "task_name"),
    ],
)
def test_a_library_with_projects_gets_the_project_and_the_runs_name_as_it_calls_it(
    fakes, tmp_path, accelerator, monkeypatch, name, argument
):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, Fake)
    monkeypatch.setattr(accelerate_trackers, "get_available_trackers", lambda: [name])
    trackers = AccelerateTrackers([name], folder=tmp_path, run="mine")
    trackers.start(step=0, epochs=0)
    assert (fakes[0].project, fakes[0].options) == ("ulmfit_pipe", {argument: "mine"})
    monkeypatch.setenv("WANDB_PROJECT", "others")
    trackers.start(step=0, epochs=0)
    assert fakes[1].project == ("others" if name == "wandb" else "ulmfit_pipe")


def test_dvclive_writes_below_the_folder(fakes, tmp_path, accelerator, monkeypatch):
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "dvclive", Fake)
    monkeypatch.setattr(accelerate_trackers, "get_available_trackers", lambda: ["dvclive"])
    AccelerateTrackers(["dvclive"], folder=tmp_path, run="mine").start(step=0, epochs=0)
    assert fakes[0].options == {"dir": str(tmp_path / "dvclive" / "mine")}


def test_runs_that_had_begun_are_ended_where_a_later_tracker_fails_to(fakes, tmp_path, accelerator, monkeypatch):
    def fail(self):
        raise OSError("no network")

    monkeypatch.setattr(FakeWithFolder, "start", fail)
    trackers = AccelerateTrackers(["fake", "fake-with-folder"], folder=tmp_path, run="mine")
    with pytest.raises(OSError, match="no network"):
        trackers.start(step=0, epochs=0)
    trackers.finish()
    assert fakes[0].calls == ["start", "finish"]


def test_tensorboard_shows_each_number_once_also_after_going_on(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is the optional extra [trackers]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Accelerator(cpu=True)
    trackers = AccelerateTrackers(["tensorboard"], folder=tmp_path, run="mine", config={"lr": 1e-3, "model": "None"})
    trackers.start(step=0, epochs=0)
    for step in range(5):
        trackers.log({"loss": 1.0 + step, "lr/head": 0.5}, step=step)
    trackers.finish()
    trackers.start(step=3, epochs=1)  # the checkpoint was after step 2
    trackers.log({"loss": 40.0}, step=3)
    trackers.finish()
    shown = EventAccumulator(str(tmp_path / "tensorboard" / "mine"))
    shown.Reload()
    assert [(event.step, event.value) for event in shown.Scalars("loss")] == [(0, 1.0), (1, 2.0), (2, 3.0), (3, 40.0)]
    assert [event.step for event in shown.Scalars("lr/head")] == [0, 1, 2]
