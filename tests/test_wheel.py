"""The wheel holds the package and the built-in models, whole, and nothing that does not belong to it."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE")
STAND_IN = {"config.json": "{}", "model.safetensors": "weights", "README.md": "# card", "ulmfit_tokenizer.json": "{}"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Return a copy of what the wheel is built from; where there is no built-in model yet, one stands in."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copy(ROOT / name, folder / name)
    for name in ("ulmfit_pipe", "recipes", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    pretrained = folder / "ulmfit_pipe/models/pretrained"
    if not any(pretrained.glob("*/config.json")):
        (pretrained / "awd-lstm-en").mkdir(parents=True)
        for name, text in STAND_IN.items():
            (pretrained / "awd-lstm-en" / name).write_text(text)
    return folder


@pytest.mark.slow
def test_the_wheel_is_the_package_with_its_built_in_models_and_nothing_else(sources, tmp_path):
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(sources)]
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    package = sources / "ulmfit_pipe"
    expected = {str(file.relative_to(sources)) for file in package.rglob("*") if file.is_file()}
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert found == expected
        for file in (package / "models/pretrained").rglob("*"):
            if file.is_file():
                stored = hashlib.sha256(archive.read(str(file.relative_to(sources)))).digest()
                assert stored == hashlib.sha256(file.read_bytes()).digest(), file
    assert "ulmfit_pipe/models/pretrained/awd-lstm-en/model.safetensors" in found
    assert wheel.stat().st_size < 100_000_000  # the most that PyPI takes
