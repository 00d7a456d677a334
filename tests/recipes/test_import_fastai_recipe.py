"""recipes/import_fastai.py as a person runs it on a classifier: what it tells to do next can be done."""

import pickle
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ulmfit_pipe import PipelineSettings, PredictFileSettings, TextPipeline, parse_settings
from ulmfit_pipe.data.text.text_rules import SPECIAL_TOKENS

ROOT = Path(__file__).parents[2]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write a classifier that fastai 2.8.12 made, and its vocabulary, into the folder that is gone to."""
    with np.load(ROOT / "tests/reference/classifier.npz", allow_pickle=False) as arrays:
        stored = {key: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith("weights/")}
    torch.save({key.removeprefix("weights/"): value for key, value in stored.items()}, tmp_path / "w.pth")
    vocabulary = [[*SPECIAL_TOKENS, "film", "good"], ["a", "b", "c", "d"]]
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(vocabulary, protocol=2))
    monkeypatch.chdir(tmp_path)
    return ["--weights", "w.pth", "--vocab", "v.pkl"]


def test_a_classifier_is_imported_and_both_commands_that_are_told_start_from_a_folder_there(files, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["recipes/import_fastai.py", *files, "--output_dir", "imported"])
    runpy.run_path(str(ROOT / "recipes/import_fastai.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert "the classifier's encoder is in language_model/ too, as a language model to resume from" in told
    assert "labels: a, b, c, d" in told
    commands = dict(re.findall(r"  ulmfit ([a-z-]+) (.*)", told))
    assert list(commands) == ["predict", "run"]
    predict = parse_settings(PredictFileSettings, shlex.split(commands["predict"]), description="")
    assert TextPipeline.load(predict.model).predict(["A good film"])[0]["label"] in "abcd"
    pipeline = parse_settings(PipelineSettings, shlex.split(commands["run"]), description="")
    assert pipeline.model == TextPipeline(pipeline.model).model == "imported/language_model"
