"""Knowing a finished stage again."""

import shutil

import pytest

from tests.support.tiny_runs import heard
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, save_stage
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.stages.finished import finished_result, refuse_other_run, was_cut_short
from ulmfit_pipe.stages.progress import progress_folder
from ulmfit_pipe.storage.atomic import CheckpointError
from ulmfit_pipe.storage.digests import digest_of
from ulmfit_pipe.training.records import EpochRecord, Phase
from ulmfit_pipe.training.resume.checkpoint_store import checkpoint_path, write_checkpoint
from ulmfit_pipe.training.schedules import Schedule

IDENTITY = {"settings": {"epochs": 2, "names": ["a"], "deep": {"lr": 0.1}}, "seed": 0, "data": "x"}
RECORD = {"identity": IDENTITY, "metrics": {"loss": 1.5}, "seconds": 3.25}


def save(path, **more):
    return save_stage(path, stage="classifier", record={**RECORD, **more}, write=lambda folder: None)


def epoch(phase, step, total, number=0, **more):
    return EpochRecord(phase, number, step, total, 1.0, {}, (0.1,), 1.0, 10.0, **more)


def phase(name, epochs=1, patience=None):
    return Phase(name, (0,), (0.1,), Schedule.constant(), epochs=epochs, patience=patience)


def test_a_digest_tells_columns_values_and_borders_apart():
    digests = {digest_of(["ab", "c"]), digest_of(["a", "bc"]), digest_of(["ab"], ["c"]), digest_of(["ab", "c", ""])}
    assert len(digests) == 4
    assert digest_of(["ab", "c"]) == digest_of(iter(["ab", "c"]))
    assert digest_of([1, 2]) == digest_of(["1", "2"])


def test_a_finished_stage_gives_its_result_back(tmp_path):
    said, _ = heard()
    result = finished_result(save(tmp_path / "c"), stage="classifier", identity=IDENTITY, say=said.append)
    assert (result.metrics, result.seconds, result.skipped) == ({"loss": 1.5}, 3.25, True)
    assert said == [f"classifier: already finished in {tmp_path / 'c'} with the same settings and data, skipped"]


def test_a_finished_stage_with_a_damaged_file_is_not_skipped_and_runs_again_once_removed(tmp_path):
    def saved():
        write = lambda folder: (folder / "weights").write_text("one")  # noqa: E731
        return save_stage(tmp_path / "c", stage="classifier", record=RECORD, write=write)

    path = saved()
    (path / "weights").write_text("two")
    with pytest.raises(ArtifactError, match=r"weights is not the file that was saved .* or remove .*/c and run"):
        finished_result(path, stage="classifier", identity=IDENTITY, say=str)
    shutil.rmtree(path)
    assert finished_result(path, stage="classifier", identity=IDENTITY, say=str) is None
    assert finished_result(saved(), stage="classifier", identity=IDENTITY, say=str).skipped


def test_nothing_there_is_nothing_finished(tmp_path):
    assert finished_result(tmp_path / "c", stage="classifier", identity=IDENTITY, say=str) is None


def test_a_tuple_is_the_list_that_json_made_of_it(tmp_path):
    same = {**IDENTITY, "settings": {**IDENTITY["settings"], "names": ("a",)}}
    assert finished_result(save(tmp_path / "c"), stage="classifier", identity=same, say=str).skipped


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 4}, r"it differs in seed \(0 there, 4 now\)\."),
        ({"settings": {**IDENTITY["settings"], "deep": {"lr": 0.2}}}, r"settings.deep.lr \(0.1 there, 0.2 now\)"),
        ({"settings": {**IDENTITY["settings"], "new": 1}}, r"settings.new \(None there, 1 now\)"),
        ({"data": "y" * 64, "seed": 1}, r"data \('x' there, 'y{36}\.\.\. now\), seed \(0 there, 1 now\)"),
    ],
)
def test_every_difference_is_named(tmp_path, changes, words):
    path = save(tmp_path / "c")
    with pytest.raises(ArtifactError, match=words):
        finished_result(path, stage="classifier", identity={**IDENTITY, **changes}, say=str)


def test_a_part_of_the_identity_is_compared_with_that_part(tmp_path):
    path = save(tmp_path / "c")
    known = {name: value for name, value in IDENTITY.items() if name != "data"}
    refuse_other_run(path, stage="classifier", identity=known, unknown=["data"])
    with pytest.raises(ArtifactError, match=r"differs in seed \(0 there, 1 now\)"):
        refuse_other_run(path, stage="classifier", identity={**known, "seed": 1}, unknown=["data"])


@pytest.mark.parametrize(
    ("there", "now", "said"),
    [
        ({"compile": True}, {}, r"compile \(True there, None now\)"),
        ({"tf32": True}, {}, r"tf32 \(True there, None now\)"),
        ({}, {"compile": True}, r"compile \(None there, True now\)"),
        ({"tf32": False}, {"tf32": True}, r"tf32 \(False there, True now\)"),
        ({}, {}, None),
    ],
)
def test_a_stage_finished_with_a_setting_away_from_its_default_is_not_the_one_without(tmp_path, there, now, said):
    old, new = (
        RunContext(preset="paper", **more).identity(ClassifierSettings(), model=None, data="x") for more in (there, now)
    )
    path = save_stage(tmp_path / "c", stage="classifier", record={**RECORD, "identity": old}, write=lambda folder: None)
    if said is None:
        assert finished_result(path, stage="classifier", identity=new, say=str).skipped
        return
    for unknown in ((), ["model"]):  # as a stage asks, and as a run does before its language model is trained
        with pytest.raises(ArtifactError, match="another run; it differs in " + said):
            refuse_other_run(path, stage="classifier", identity=new, unknown=unknown)


def test_a_stage_cut_short_says_so_when_it_is_skipped(tmp_path):
    said, _ = heard()
    finished_result(save(tmp_path / "c", cut_short=True), stage="classifier", identity=IDENTITY, say=said.append)
    expected = f"that training was cut short by a time limit; remove {tmp_path / 'c'} to train it to its end"
    assert said[1] == f"classifier: {expected}"


def test_training_is_cut_short_when_a_phase_is_missing_or_ended_early():
    phases = [phase("head"), phase("all", epochs=2)]
    done = [epoch("head", 5, 5), epoch("all", 4, 8), epoch("all", 8, 8, 1)]
    assert not was_cut_short(done, phases)
    assert was_cut_short(done[:2], phases)
    assert was_cut_short(done[:1], phases)
    assert was_cut_short([], phases)
    assert not was_cut_short(done[:2], [phase("head"), phase("all", epochs=2, patience=1)])
    assert was_cut_short([*done[:2], epoch("all", 7, 8, 1, cut_short=True)], phases)


def test_steps_that_fp16_skipped_do_not_cut_a_training_short():
    done = [epoch("head", 3, 5), epoch("all", 4, 8), epoch("all", 6, 8, 1)]
    assert not was_cut_short(done, [phase("head"), phase("all", epochs=2)])


def test_an_unfinished_training_is_refused_before_anything_is_made_unless_it_is_to_go_on(tmp_path):
    path = checkpoint_path(progress_folder(tmp_path / "c"), 7)
    write_checkpoint(path, {"identity": {**IDENTITY, "vocabulary": "v"}}, tensors={}, contents={})
    settings = {"stage": "classifier", "identity": IDENTITY, "say": str}
    assert finished_result(tmp_path / "c", **settings, resume=True) is None
    with pytest.raises(CheckpointError) as caught:
        finished_result(tmp_path / "c", **settings)
    assert str(caught.value) == (
        f"an unfinished training of c is in {path.parent} (step-00000007); resume it with --resume true "
        "(resume=True in Python), or delete that folder to start over"
    )
