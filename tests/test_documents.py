"""README.md and docs/: each Python block runs, each link and each file that is named exists, README stays short."""

import re
from pathlib import Path

import pytest
from PIL import Image

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

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
SAVED = {"bert-base-uncased": save_bert, "gpt2": save_gpt2, "microsoft/resnet-18": save_backbone}  # small, from configs
README_LINES = 100  # a screen and a half, with the table
NEEDS = {"import peft": "peft", "polars": "polars"}
pytestmark = pytest.mark.usefixtures("quick_ends_of_phases")


def blocks() -> list:
    """Return page and number of every Python block, and its text."""
    found = []
    for page in PAGES:
        for number, text in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL), 1):
            found.append(pytest.param(text, id=f"{page.name}, block {number}"))
    return found


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
    return place


@pytest.mark.parametrize("block", blocks())
def test_a_python_block_of_the_documents_runs(place, block):
    for words, package in NEEDS.items():
        if words in block:
            pytest.importorskip(package)
    block = block.replace('model="runs/reviews/language_model"', 'model="tiny_language_model"')
    block = block.replace('model="runs/mine/classifier"', 'model="tiny_classifier"')
    for name, save in SAVED.items():
        if f'"{name}"' in block:
            save(place / "pretrained")
            block = block.replace(name, "pretrained")
    exec(compile(block, "block", "exec"), {})  # noqa: S102


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
