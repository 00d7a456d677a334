"""Examples of README.md and docs/ run as they are, with small random models instead of the pretrained ones."""

import re
from pathlib import Path

import pytest
from PIL import Image

from tests.support.tiny_images import save_backbone, write_images
from tests.support.tiny_models import builtin, tiny_tokenizer  # noqa: F401
from tests.support.tiny_runs import reviews, write_csv
from tests.support.tiny_transformers import save_bert, save_gpt2
from ulmfit_pipe.stages import presets
from ulmfit_pipe.text.families import awd_lstm

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("quick_ends_of_phases")


def example_with(words: str) -> str:
    """Return the one Python block of the README that holds these words."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    found = [block for block in blocks if words in block]
    assert len(found) == 1, f"{len(found)} examples with {words!r}"
    return found[0]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Make a folder with everything that the examples name the folder to be in."""
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "train.csv", reviews(40))
    write_csv(tmp_path / "test.csv", reviews(8, seed=1))
    write_csv(tmp_path / "more.csv", reviews(12, seed=2))
    for split, seed in (("train", 0), ("valid", 1), ("test", 2)):
        write_images(tmp_path / "photos" / split, count=12, seed=seed)
    Image.open(next((tmp_path / "photos/test").glob("*/*"))).convert("RGB").save(tmp_path / "a.jpg")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "save"), [("bert-base-uncased", save_bert), ("gpt2", save_gpt2), ("microsoft/resnet-18", save_backbone)]
)
def test_an_example_of_the_readme_runs(place, capsys, name, save):
    example = example_with(f'"{name}"')
    save(place / "pretrained")
    exec(compile(example.replace(name, "pretrained"), f"README, {name}", "exec"), {})  # noqa: S102
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_the_page_on_tables_in_memory_runs_from_its_top_to_its_end(place, builtin, blank_pictures_here, monkeypatch):  # noqa: F811
    monkeypatch.setattr(presets, "MOST_EPOCHS", 1)
    monkeypatch.setattr(awd_lstm, "scale_epochs", lambda *args, **sizes: 1)
    page = (ROOT / "docs" / "in_memory.md").read_text()
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL):
        exec(compile(block.replace("cv=3", "cv=2"), "docs/in_memory.md", "exec"), names)  # noqa: S102
    assert set(names["test"]["predicted"]) <= {"bad", "good"}
    assert names["tags"].predictor.label_names == ["toxic", "long"]
    for folder in ("my_classifier", "best_classifier"):
        assert (place / folder / "model.safetensors").is_file()
