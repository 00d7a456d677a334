"""Every recipe that trains, told to stop in the middle and resumed by --resume true, ends with the same bits."""

import os
import random
import runpy
import signal
import sys
from pathlib import Path

import pytest
from PIL import Image

from ulmfit_pipe.storage import atomic
from ulmfit_pipe.training import loop
from ulmfit_pipe.training.resume.preemption import EXIT_PREEMPTED

ROOT = Path(__file__).parents[2]
TEXT = ["--train_file", "train.csv"]
TINY = "--language_model.embedding_size 10 --language_model.hidden_size 14 --language_model.num_hidden_layers 2".split()
LANGUAGE_MODEL = "--language_model.epochs 2 --language_model.bptt 11 --language_model.batch_size 4".split()
CLASSIFIER = "--classifier.epochs_per_phase 1 --classifier.final_epochs 1 --classifier.batch_size 8".split()
IMAGES = "--train_images photos --pretraining.task rotations --pretraining.epochs 1 --classifier.image_size 16 ".split()
IMAGES += "--classifier.backbone.embedding_size 4 --classifier.backbone.hidden_sizes [4,6]".split()
IMAGES += "--classifier.backbone.depths [1,1] --classifier.head.hidden_sizes [5] --classifier.batch_size 4".split()
IMAGES += "--classifier.final_epochs 1".split()
RECIPES = {
    "pretrain_language_model": [*TEXT, *TINY, *LANGUAGE_MODEL],
    "finetune_language_model": ["--model", "lm", *TEXT, *LANGUAGE_MODEL],
    "train_classifier": ["--model", "lm", *TEXT, *CLASSIFIER],
    "run_pipeline": ["--model", "lm", *TEXT, *LANGUAGE_MODEL, *CLASSIFIER],
    "train_image_classifier": IMAGES,
}
pytestmark = pytest.mark.usefixtures("blank_pictures", "quick_ends_of_phases")
QUICK, SLOW = ("run_pipeline",), pytest.mark.slow


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(atomic, "_sync", lambda _path: None)


@pytest.fixture
def run(monkeypatch, capsys, place):
    """Return a function that runs a recipe in that folder and gives the exit code and what was printed.

    It may be told to stop, which is a signal before the n-th step that the call takes, counted from 0.
    """

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell began the tests with &

    def run(name, *words, stop=None, by=signal.SIGTERM):
        with monkeypatch.context() as patched:
            patched.chdir(place)
            patched.setattr(sys, "argv", [f"recipes/{name}.py", *map(str, words)])
            real, taken = loop.train_step, []

            def train_step(*args):
                if len(taken) == stop:
                    os.kill(os.getpid(), by)
                taken.append(1)
                return real(*args)

            patched.setattr(loop, "train_step", train_step)
            code = 0
            try:
                runpy.run_path(str(ROOT / "recipes" / f"{name}.py"), run_name="__main__")
            except SystemExit as exit_:
                code = exit_.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    yield run
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a table and images."""
    folder, chance = tmp_path_factory.mktemp("place"), random.Random(0)
    told = {"bad": "dull slow poor weak".split(), "good": "warm funny great fine".split()}
    filler = "the film and its music were made by three brothers in two hours".split()
    lines = ["text,label"]
    for number in range(40):
        label = ("bad", "good")[number % 2]
        lines.append(" ".join([*chance.choices(filler, k=7), *chance.choices(told[label], k=3)]) + f".,{label}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    for label, shade in (("dark", 10), ("light", 200)):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(10):
            Image.new("RGB", (9, 7), (shade + 2 * number, shade, shade)).save(folder / f"photos/{label}/{number}.png")
    return folder


@pytest.fixture
def language_model(run, place):
    """Make the language model that the other recipes start from, once."""
    if not (place / "lm").exists():
        words = [*RECIPES["pretrain_language_model"], "--language_model.vocab_size", 200, "--output_dir", "lm"]
        assert run("pretrain_language_model", *words)[0] == 0


def weights_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("model.safetensors")}


@pytest.mark.usefixtures("language_model")
@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=SLOW) for name in RECIPES])
def test_a_recipe_told_to_stop_goes_on_with_resume_true_to_the_same_bits(run, place, name):
    whole, stopped = f"{name}_whole", f"{name}_stopped"
    assert run(name, *RECIPES[name], "--output_dir", whole)[0] == 0
    words = ["--output_dir", stopped]
    code, out, errors = run(name, *RECIPES[name], *words, stop=2)  # in the first stage
    assert code == EXIT_PREEMPTED, errors
    assert errors.startswith(f"{name}.py: stopped by SIGTERM after ")
    assert errors.endswith("run the same command again with --resume true\n")
    words += ["--resume", "true", "--checkpoint_seconds", "0"]  # Ctrl-C saves nothing itself
    code, out, errors = run(name, *RECIPES[name], *words, stop=7, by=signal.SIGINT)  # in the last phases or next stage
    assert code == 130, errors
    assert errors.startswith(f"{name}.py: stopped; run the same command again, with --resume true where the recipe")
    places = [line for line in out.splitlines() if line.startswith("resuming from")]
    code, out, errors = run(name, *RECIPES[name], "--output_dir", stopped, "--resume", "true")
    assert code == 0, errors
    places += [line for line in out.splitlines() if line.startswith("resuming from")]
    assert len(places) == 2
    assert ": 3 steps done, in epoch 1 of phase 1" in places[0]
    assert weights_in(place / whole)
    assert weights_in(place / stopped) == weights_in(place / whole)
    assert not list((place / stopped).rglob("*.progress")) + list(place.glob(".*.progress"))
