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

FIRST_USE = """
import socket

def refuse(*_arguments, **_options):
    raise OSError("this machine has no network")

socket.socket.connect = socket.getaddrinfo = refuse

from ulmfit_pipe import ClassifierSettings, TextPipeline

if __name__ == "__main__":
    rows = [("a good film, warm and funny", "good"), ("a bad film, dull and long", "bad")] * 20
    with open("train.csv", "w") as file:
        file.write("text,label\\n")
        file.writelines(f'"{text} {number}",{label}\\n' for number, (text, label) in enumerate(rows))
    pipe = TextPipeline()
    pipe.fit(
        "train.csv",
        output_dir="run",
        fine_tune_language_model=False,
        classifier=ClassifierSettings(plan="head", final_epochs=1, num_workers=1),
    )
    again = TextPipeline.load("run/classifier")
    print(*(found["label"] for found in again.predict(["good", "bad", "a film"])))
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Return a copy of what the wheel is built from; where there is no built-in model yet, one stands in."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        shutil.copy(ROOT / name, folder / name)
    for name in ("ulmfit_pipe", "recipes", "tests", "LICENSES"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    pretrained = folder / "ulmfit_pipe/models/pretrained"
    if not any(pretrained.glob("*/config.json")):
        (pretrained / "awd-lstm-en").mkdir(parents=True)
        for name, text in STAND_IN.items():
            (pretrained / "awd-lstm-en" / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory):
    """Return the wheel as `python -m build` makes it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(sources)]
    ran(command)
    (made,) = folder.glob("*.whl")
    return made


def ran(command, **options):
    """Run a command without this checkout in its path, and return what it printed."""
    surroundings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    surroundings |= options.pop("env", {})
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings, check=False, **options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


@pytest.mark.slow
def test_the_wheel_is_the_package_with_its_built_in_models_and_nothing_else(sources, wheel):
    package = sources / "ulmfit_pipe"
    expected = {str(file.relative_to(sources)) for file in package.rglob("*") if file.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert found == expected
        licences = {Path(name).name for name in archive.namelist() if ".dist-info/licenses/" in name}
        assert licences == {"LICENSE", "CC-BY-SA-4.0.txt", "MIT.txt"}
        for file in (package / "models/pretrained").rglob("*"):
            if file.is_file():
                stored = hashlib.sha256(archive.read(str(file.relative_to(sources)))).digest()
                assert stored == hashlib.sha256(file.read_bytes()).digest(), file
    assert "ulmfit_pipe/models/pretrained/awd-lstm-en/model.safetensors" in found
    assert wheel.stat().st_size < 100_000_000  # the most that PyPI takes


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Return the interpreter of a new environment that holds the wheel and what it needs, and nothing else of ours."""
    python = tmp_path_factory.mktemp("new") / "environment" / "bin" / "python"
    ran([sys.executable, "-m", "venv", str(python.parents[1])])
    assert "torch" not in ran([str(python), "-m", "pip", "list"])
    constraints = str(ROOT / "constraints.txt")
    ran([str(python), "-m", "pip", "install", "--quiet", "-c", constraints, str(wheel)])
    return python


@pytest.mark.slow
def test_the_wheel_installs_in_an_empty_environment(installed, tmp_path):
    command = "import ulmfit_pipe; print(ulmfit_pipe.__file__)"
    assert Path(ran([str(installed), "-c", command], cwd=tmp_path).strip()).is_relative_to(installed.parents[1])
    assert ran([str(installed), "-m", "pip", "check"]).strip() == "No broken requirements found."


@pytest.mark.slow
def test_what_the_wheel_installs_trains_and_predicts_offline(installed, tmp_path):
    (tmp_path / "offline.py").write_text(FIRST_USE)
    printed = ran([str(installed), "offline.py"], cwd=tmp_path, env={"HF_HUB_OFFLINE": "1"})
    labels = printed.splitlines()[-1].split()
    assert len(labels) == 3 and set(labels) <= {"bad", "good"}
