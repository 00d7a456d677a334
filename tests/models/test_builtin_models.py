"""The names of what comes with the package, and that the wheel takes along all of it."""

import tomllib
from pathlib import Path

from ulmfit_pipe.models import builtin_models as home
from ulmfit_pipe.models.builtin_models import PRETRAINED, builtin_models
from ulmfit_pipe.settings.choices import BUILTIN_NAMES

ROOT = Path(__file__).parents[2]


def test_a_folder_with_a_configuration_is_a_built_in_model_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(home, "PRETRAINED", tmp_path)
    for name in ("b", "a", "unfinished"):
        (tmp_path / name).mkdir()
    for name in ("b", "a"):
        (tmp_path / name / "config.json").write_text("{}")
    assert builtin_models() == {"a": tmp_path / "a", "b": tmp_path / "b"}


def test_an_installation_without_any_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(home, "PRETRAINED", tmp_path / "nowhere")
    assert builtin_models() == {}


def test_nothing_else_lies_among_the_built_in_models():
    assert set(builtin_models()) <= set(BUILTIN_NAMES)
    known = {"README.md", "config.json", "generation_config.json", "model.safetensors", "stage.json"}
    known |= {"tokenizer_config.json", "ulmfit_tokenizer.json"}
    for folder in builtin_models().values():
        assert {file.name for file in folder.iterdir()} == known


def test_the_package_data_patterns_cover_every_file_of_the_built_in_models():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["ulmfit_pipe"]
    package = ROOT / "ulmfit_pipe"
    covered = {file for pattern in patterns for file in package.glob(pattern)}
    assert package / "py.typed" in covered
    assert {file for file in PRETRAINED.rglob("*") if file.is_file()} <= covered
    assert "models/pretrained/**/*" in patterns  # also before there is one
