"""The comparison of few labels, on tables of a few rows, with an encoder of random weights and stubs for the peers."""

import csv
import json
import random
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

RECIPE = Path(__file__).parents[2] / "recipes/benchmark_few_labels.py"
OWN = ("--methods", "[tfidf, probe]")
SIZES = ("--per_class", 2, "--in_all", 7, "--splits", 2, "--test_rows", 4)


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])


def save_encoder(folder, words):
    """Write a BERT of one layer with random weights, and its tokenizer."""
    tokens = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=32, **sizes)).save_pretrained(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with a training table, a test table and an encoder."""
    folder = tmp_path_factory.mktemp("place")
    chance, words = random.Random(0), {"bad": ["dull", "slow"], "good": ["warm", "funny"]}
    filler = "the film and its music were made by three brothers".split()
    labels = ["bad", "good"] * 15
    rows = [(" ".join([*chance.sample(filler, 3), chance.choice(words[label])]), label) for label in labels]
    write(folder / "train.csv", rows[:20])
    write(folder / "test.csv", rows[20:])
    save_encoder(folder / "encoder", ["[PAD]", "[UNK]", *filler, *words["bad"], *words["good"]])
    return folder


@pytest.fixture
def recipe(monkeypatch, capsys, place):
    """Return a function that runs the recipe, its workers in this process; and what the workers were given."""
    given, start = [], subprocess.run

    def run_worker(command, *, env=None, **options):
        if "--worker" not in command:  # libraries look for programs too
            return start(command, env=env, **options)
        assert {env[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")} == {"1"}
        python, script, *words = command
        jobs = json.loads(Path(words[1]).read_text())
        given.extend({**job, "python": python, "rows": Path(job["train_file"]).read_text()} for job in jobs)
        words_before, sys.argv = sys.argv, [script, *words]
        try:
            runpy.run_path(script, run_name="__main__")
        except ImportError as error:
            return SimpleNamespace(returncode=1, stderr=f"Traceback\nImportError: {error}\n")
        finally:
            sys.argv = words_before
        return SimpleNamespace(returncode=0, stderr="")

    def run(*words):
        monkeypatch.chdir(place)
        monkeypatch.setattr(subprocess, "run", run_worker)
        tables = ("--train_file", "films=train.csv", "--test_file", "films=test.csv", "--encoder", "encoder")
        monkeypatch.setattr(sys, "argv", ["benchmark_few_labels.py", *tables, *map(str, words)])
        code = 0
        try:
            runpy.run_path(str(RECIPE), run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return SimpleNamespace(run=run, given=given)


def records_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_method_has_the_same_rows_and_a_second_run_does_only_what_is_missing(recipe, place):
    words = (*SIZES, *OWN, "--results_file", "one/results.jsonl")
    code, out, err = recipe.run(*words)
    assert (code, err) == (0, "")
    records = records_of(place / "one/results.jsonl")
    cells = [(one["per_class"], one["in_all"], one["method"], one["split"]) for one in records]
    methods = ("tfidf", "probe")
    assert cells == [(*size, name, split) for size in ((2, None), (None, 7)) for name in methods for split in (0, 1)]
    drawn = [job["rows"] for job in recipe.given]
    assert drawn[0:2] == drawn[2:4] and drawn[4:6] == drawn[6:8]
    assert len({*drawn}) == 4
    assert [(rows.count(",bad"), rows.count(",good")) for rows in drawn[:2]] == [(2, 2), (2, 2)]
    assert [len(rows.splitlines()) for rows in drawn[4:6]] == [8, 8]
    for record in records:
        assert 0 <= record["macro_f1"] <= 1 and record["accuracy"] * 4 in range(5)
        assert record["training_seconds"] > 0 <= record["prediction_seconds"]
        assert {"torch", "transformers", "scikit-learn"} <= record["versions"].keys()
        assert (record["classes"], record["test_rows"], record["data"]) == (2, 4, "films")
    assert "| labels | frozen encoder + LR | TF-IDF + LR |\n|---|---|---|\n| films, 2 a class | " in out
    assert (place / "one/results.md").read_text() in out
    assert (place / "one/results.png").read_bytes().startswith(b"\x89PNG")

    done = len(recipe.given)
    few = ("--per_class", 2, "--in_all", "[]", "--splits", 1, "--test_rows", 4, "--results_file", "one/results.jsonl")
    assert recipe.run(*few, "--methods", "[ours, tfidf]")[0] == 0
    assert [(job["cell"]["method"], job["rows"]) for job in recipe.given[done:]] == [("ours", drawn[0])]
    assert recipe.run(*few, "--methods", "[probe, tfidf]", "--again", "tfidf")[0] == 0
    assert [job["cell"]["method"] for job in recipe.given[done + 1 :]] == ["tfidf"]
    assert len(records_of(place / "one/results.jsonl")) == 10

    code, _, err = recipe.run(*SIZES[:4], "--splits", 3, "--test_rows", 5, *OWN, *few[-2:])
    assert code == 2
    assert (
        "one/results.jsonl has cells of films with 4 test rows, now there are 5; take the same --test_rows, or" in err
    )


def test_the_table_has_mean_spread_and_seconds_of_the_later_record_of_a_cell(recipe, place):
    common = {"data": "films", "per_class": 8, "in_all": None, "classes": 2, "test_rows": 300, "macro_f1": 0.5}

    def line(method, split, accuracy, seconds, **more):
        times = {"training_seconds": seconds, "prediction_seconds": 1.0}
        return json.dumps({**common, "method": method, "split": split, "accuracy": accuracy, **times, **more})

    lines = [
        line("ours", 0, 0.1, 90.0),
        line("setfit", 0, 0.75, 40.0, setfit_iterations=5),
        line("ours", 0, 0.8, 10.0),
        line("ours", 1, 0.9, 13.0),
    ]
    (place / "made").mkdir()
    (place / "made/results.jsonl").write_text("\n".join(lines) + "\n")
    code, out, _ = recipe.run("--splits", 0, "--results_file", "made/results.jsonl")
    assert code == 0
    assert out.strip().splitlines()[:3] == [
        "| labels | ours | SetFit |",
        "|---|---|---|",
        "| films, 8 a class | 85.0 ± 7.1, 12 + 1 s | 75.0 (1), 40 + 1 s |",
    ]
    assert "300 test rows: films." in out
    assert "SetFit with num_iterations 5: films, 8 a class." in out


def test_a_method_that_fails_is_named_and_the_others_run(recipe, place, monkeypatch):
    monkeypatch.setitem(sys.modules, "setfit", None)  # not installed
    words = ("--per_class", 2, "--in_all", "[]", "--splits", 1, "--peers_python", "peers/bin/python")
    code, out, err = recipe.run(*words, "--methods", "[setfit, tfidf]", "--results_file", "two/results.jsonl")
    assert code == 2
    assert [job["python"] for job in recipe.given] == ["peers/bin/python", sys.executable]
    assert [record["method"] for record in records_of(place / "two/results.jsonl")] == ["tfidf"]
    assert "films, 2 a class, setfit: ImportError: import of setfit halted" in out
    assert "error: 1 times a method failed; the same command tries it again; films, 2 a class, setfit: Imp" in err


def stub(monkeypatch, name, **contents):
    module = ModuleType(name)
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, name, module)


def test_setfit_is_given_the_rows_and_its_usual_numbers(recipe, place, monkeypatch):
    seen = {}

    class Model:
        @classmethod
        def from_pretrained(cls, folder):
            seen["encoder"] = folder
            return cls()

        def predict(self, texts):
            return np.array([1] * len(texts))

    class Trainer:
        def __init__(self, *, model, args, train_dataset):
            seen.update(args, labels=sorted(train_dataset["label"]), trained=False)

        def train(self):
            seen["trained"] = True

    stub(monkeypatch, "setfit", SetFitModel=Model, Trainer=Trainer, TrainingArguments=dict)
    words = ("--per_class", 3, "--in_all", "[]", "--splits", 1, "--peers_python", "python", "--methods", "setfit")
    code, _, err = recipe.run(*words, "--setfit_iterations", 7, "--results_file", "three/results.jsonl")
    assert (code, err) == (0, "")
    usual = {"batch_size": 16, "num_epochs": 1, "body_learning_rate": 2e-5, "num_iterations": 7}
    assert {name: seen[name] for name in usual} == usual
    assert (seen["encoder"], seen["labels"], seen["trained"]) == ("encoder", [0, 0, 0, 1, 1, 1], True)
    (record,) = records_of(place / "three/results.jsonl")
    assert (record["accuracy"], record["setfit_iterations"]) == (0.5, 7)  # 5 of 10 test rows are good
    assert record["macro_f1"] == pytest.approx(1 / 3)


def test_a_static_model_is_distilled_once_and_read_by_every_cell(recipe, place, monkeypatch):
    distilled = []

    class Static:
        @classmethod
        def from_pretrained(cls, folder):
            assert Path(folder, "weights").exists()
            return cls()

        def encode(self, texts):
            return [[text.count("funny") - text.count("dull"), len(text) % 2] for text in texts]

        def save_pretrained(self, folder):
            Path(folder).mkdir()
            Path(folder, "weights").touch()

    def distill(encoder):
        distilled.append(encoder)
        return Static()

    stub(monkeypatch, "model2vec", StaticModel=Static)
    stub(monkeypatch, "model2vec.distill", distill=distill)
    words = ("--in_all", "[]", "--splits", 2, "--peers_python", "python", "--methods", "model2vec")
    for size in (2, 3):
        code, _, err = recipe.run(*words, "--per_class", size, "--results_file", "four/results.jsonl")
        assert (code, err) == (0, "")
    assert distilled == ["encoder"]
    assert len(records_of(place / "four/results.jsonl")) == 4


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--methods", "setfti"), "methods must be some of ours, probe, tfidf, setfit, model2vec, ulmfit, got setfti"),
        (("--again", "all"), "methods must be some of ours, probe, tfidf, setfit, model2vec, ulmfit, got all"),
        (("--methods", "setfit"), "setfit and model2vec need --peers_python, the Python of an environment that has"),
        ((*OWN, "--per_class", 0), "per_class, in_all, test_rows and setfit_iterations must be 1 or more, splits 0 or"),
        ((*OWN, "--train_file", "x=train.csv"), "must name the same data sets, got films, x and films; write --train_"),
        ((*OWN, "--test_file", "test.csv"), "a table is given as NAME=TABLE, for example ag=ag/train.csv; got 'test."),
        ((*OWN, "--per_class", 11), "films has no 11 rows of each class to draw; take smaller sizes or leave it out"),
        ((*OWN, "--per_class", "[]", "--in_all", 30), "films has no 30 rows in all to draw; take smaller sizes or lea"),
    ],
)
def test_what_cannot_be_compared_is_told_in_one_line(recipe, words, told):
    code, _, err = recipe.run(*words, "--results_file", "refused/results.jsonl")
    assert code == 2
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_a_cell_is_trained_by_a_process_of_its_own(place, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(RECIPE.parents[1]))
    words = (
        "--train_file films=train.csv --test_file films=test.csv --methods tfidf --per_class 2 --in_all [] --splits 1"
    )
    command = [sys.executable, RECIPE, *words.split(), "--results_file", "five/results.jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, check=True)
    assert "films, 2 a class, tfidf: " in done.stdout
    assert len(records_of(place / "five/results.jsonl")) == 1
