"""README.md and docs/: each Python block runs, each link and each file that is named exists, README stays short."""

import re
from pathlib import Path

import pytest
from PIL import Image

import ulmfit_pipe
from tests.support.tiny_images import save_backbone, write_images
from tests.support.tiny_models import (  # noqa: F401
    builtin,
    save_tiny_classifier,
    tiny_classifier_folder,
    tiny_language_model_folder,
    tiny_tokenizer,
)
from tests.support.tiny_runs import reviews, write_csv
from tests.support.tiny_transformers import save_bert, save_gpt2
from ulmfit_pipe.stages import presets
from ulmfit_pipe.text.families import awd_lstm

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SAVED = {"bert-base-uncased": save_bert, "gpt2": save_gpt2, "microsoft/resnet-18": save_backbone}  # small, from configs
STORED = {"runs/reviews/language_model": "tiny_language_model", "runs/mine/classifier": "tiny_classifier"}
README_LINES = 100  # a screen and a half, with the table
NEEDS = {"import peft": "peft", "polars": "polars"}
pytestmark = pytest.mark.usefixtures("quick_ends_of_phases")


def pages() -> list:
    """Return the Python blocks of every page that has some."""
    found = {page: re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL) for page in PAGES}
    slow = {"in_memory.md": pytest.mark.slow}  # trains a dozen classifiers
    return [
        pytest.param(blocks, id=page.name, marks=slow.get(page.name, ())) for page, blocks in found.items() if blocks
    ]


@pytest.fixture
def place(tmp_path, monkeypatch, builtin, tiny_language_model_folder, tiny_classifier_folder):  # noqa: F811
    """Make a folder with everything that the blocks name the folder to be in; the built-in model is a tiny one."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    write_csv(place / "train.csv", reviews(40))
    write_csv(place / "test.csv", reviews(8, seed=1))
    write_csv(place / "more.csv", reviews(12, seed=2))
    for split, seed in (("train", 0), ("valid", 1), ("test", 2)):
        write_images(place / "photos" / split, count=12, seed=seed)
    Image.open(next((place / "photos/test").glob("*/*"))).convert("RGB").save(place / "a.jpg")
    (place / "tiny_language_model").symlink_to(tiny_language_model_folder)
    (place / "tiny_classifier").symlink_to(tiny_classifier_folder)
    for name, save in SAVED.items():
        save(place / name.replace("/", "-"))
    return place


@pytest.mark.parametrize("blocks", pages())
def test_the_python_blocks_of_a_page_run_one_after_the_other(place, monkeypatch, blocks):
    monkeypatch.setattr(presets, "MOST_EPOCHS", 1)
    monkeypatch.setattr(awd_lstm, "scale_epochs", lambda *_args, **_sizes: 1)
    names: dict = {}
    for block in blocks:
        for words, package in NEEDS.items():
            if words in block:
                pytest.importorskip(package)
        for name, instead in {**STORED, **{name: name for name in SAVED}}.items():
            block = block.replace(f'"{name}"', f'"{instead.replace("/", "-")}"')
        exec(compile(block.replace("cv=3", "cv=2"), "block", "exec"), names)  # noqa: S102


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_to_files(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_every_page_is_linked_from_the_readme():
    text = PAGES[0].read_text()
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in text] == []


def test_the_readme_is_a_screen_and_a_half():
    assert len(PAGES[0].read_text().splitlines()) <= README_LINES


def test_the_reading_order_names_files_that_exist():
    order = (ROOT / "docs/reading_order.md").read_text().split("\n## ")[0]
    steps = re.findall(r"(?ms)^\d+\. (.*?)(?=^\d+\. |\Z)", order)
    assert len(steps) == 9
    missing = []
    for step in steps:
        first, *others = re.findall(r"`([\w/]+\.py)`", step)
        places = [ROOT, ROOT / "ulmfit_pipe", *list((ROOT / first).parents)[:2]]
        missing += [first] * (not (ROOT / first).is_file())
        missing += [name for name in others if not any((place / name).is_file() for place in places)]
    assert missing == []


def test_the_reference_has_every_public_name_where_it_is_defined():
    written = re.findall(r"^::: (\S+)$", (ROOT / "docs/api.md").read_text(), flags=re.MULTILINE)
    assert sorted(written) == sorted(f"{home}.{name}" for name, home in ulmfit_pipe._HOME_OF.items())


def test_the_sites_pages_are_those_of_the_folder():
    listed = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))
