"""Tables of a few dozen short rows and settings of a few thousand weights, for whole runs of a second."""

import csv
import random
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, List, Value

from ulmfit_pipe.settings.text import ClassifierSettings, LanguageModelSettings
from ulmfit_pipe.stages.context import RunContext

WORDS = {
    "bad": "dull slow poor weak tired".split(),
    "fair": "usual plain calm even mixed".split(),
    "good": "warm funny great fine lovely".split(),
}
FILLERS = "the film and its music were made by three brothers in two long hours with a story".split()

TINY_LM = {"embedding_size": 10, "hidden_size": 14, "num_hidden_layers": 2, "vocab_size": 110, "bptt": 11}
LM = LanguageModelSettings(**TINY_LM, epochs=1, batch_size=4)
CLASSIFIER = ClassifierSettings(epochs_per_phase=1, final_epochs=1, batch_size=8)


def review(label: str, chance: random.Random) -> str:
    """Return a sentence of a dozen words, three of which tell the label."""
    words = [chance.choice(FILLERS) for _ in range(chance.randint(6, 11))]
    words += [chance.choice(WORDS[label]) for _ in range(3)]
    chance.shuffle(words)
    return " ".join(words) + "."


def reviews(count: int, *, seed: int = 0, labels: tuple[str, ...] = ("bad", "good")) -> list[tuple[str, str]]:
    """Return rows of text and label, the labels in turn."""
    chance = random.Random(seed)
    return [(review(labels[row % len(labels)], chance), labels[row % len(labels)]) for row in range(count)]


def write_csv(path: Path, rows: list[tuple[str, ...]], *, columns: tuple[str, ...] = ("text", "label")) -> Path:
    """Write rows under a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def table(rows: list[tuple[str, str]], names: tuple[str, ...] = ("bad", "good")) -> Dataset:
    """Return rows as a table with class labels."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    columns = {"text": [text for text, _ in rows], "label": [names.index(label) for _, label in rows]}
    return Dataset.from_dict(columns, features=features)


def multi_label_table(count: int, *, seed: int = 0) -> Dataset:
    """Return rows with any of three labels, none among them too."""
    chance, names = random.Random(seed), list(WORDS)
    labels = [sorted(chance.sample(range(3), chance.randint(0, 2))) for _ in range(count)]
    texts = [" ".join([chance.choice(FILLERS), *(review(names[label], chance) for label in row)]) for row in labels]
    features = Features({"text": Value("string"), "label": List(ClassLabel(names=names))})
    return Dataset.from_dict({"text": texts, "label": labels}, features=features)


def texts_of(*texts: str) -> Dataset:
    """Return a table with the column text alone."""
    return Dataset.from_dict({"text": list(texts)})


def heard() -> tuple[list[str], RunContext]:
    """Return a context, and the list that everything it says goes to."""
    said: list[str] = []
    return said, RunContext(say=said.append)


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder and what is in it."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
