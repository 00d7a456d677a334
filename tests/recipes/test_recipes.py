"""Each recipe as a person runs it, on tables of a few dozen rows, one after the other in one folder."""

import ast
import json
import os
import random
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from ulmfit_pipe import (
    AblationSettings,
    ImageSettings,
    LanguageModelJob,
    LowShotSettings,
    PipelineSettings,
    parse_settings,
)
from ulmfit_pipe.settings.parsing import list_settings

pytestmark = pytest.mark.usefixtures("quick_ends_of_phases")
ROOT = Path(__file__).parents[2]
NAMES = [
    "ablation",
    "benchmark_fastai",
    "benchmark_few_labels",
    "benchmark_label_next",
    "benchmark_prediction",
    "benchmark_trainer",
    "benchmark_training",
    "export_fastai",
    "find_learning_rate",
    "finetune_language_model",
    "import_fastai",
    "low_shot",
    "package_language_model",
    "predict",
    "pretrain_language_model",
    "quickstart",
    "run_pipeline",
    "show_filters",
    "train_classifier",
    "train_image_classifier",
    "transferability",
]
REPORTED = {"test", "validation", "seconds", "versions", "seed"}
TINY = "--language_model.embedding_size 10 --language_model.hidden_size 14 --language_model.num_hidden_layers 2".split()
SHORT = "--language_model.epochs 1 --language_model.bptt 11 --language_model.batch_size 2".split()
ONE_EPOCH = "--classifier.epochs_per_phase 1 --classifier.final_epochs 1".split()


def rows(count, seed):
    chance = random.Random(seed)
    told = {"bad": "dull slow poor weak".split(), "good": "warm funny great fine".split()}
    filler = "the film and its music were made by three brothers in two hours".split()
    for number in range(count):
        label = ("bad", "good")[number % 2]
        words = [chance.choice(filler) for _ in range(7)] + [chance.choice(told[label]) for _ in range(3)]
        yield f"{' '.join(words)}.,{label}\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with tables, in which one recipe after the other writes."""
    folder = tmp_path_factory.mktemp("place")
    for name, count, seed in (("train", 30, 0), ("test", 6, 1), ("more", 10, 2)):
        (folder / f"{name}.csv").write_text("text,label\n" + "".join(rows(count, seed)))
    return folder


@pytest.fixture
def run(monkeypatch, capsys, place):
    """Return a function that runs a recipe in that folder; it gives the exit code and what was printed."""

    def run(name, *words):
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", [f"recipes/{name}.py", *map(str, words)])
        code = 0
        try:
            runpy.run_path(str(ROOT / "recipes" / f"{name}.py"), run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def metrics_in(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_there_is_a_test_for_every_recipe():
    assert sorted(path.stem for path in (ROOT / "recipes").glob("*.py")) == NAMES


def test_1_pretraining_makes_a_general_language_model(run, place):
    code, out, err = run("pretrain_language_model", "--train_file", "more.csv", "--output_dir", "lm", *TINY, *SHORT)
    assert (code, err) == (0, "")
    assert "validation perplexity" in out
    assert "the language model is in lm; give it to the next stage:" in out
    assert metrics_in(place / "lm").keys() >= REPORTED


@pytest.mark.usefixtures("blank_pictures_here")
def test_1_and_goes_on_from_one(run, place):
    words = ["--model", "lm", "--train_file", "more.csv", "--output_dir", "lm_on", *SHORT]
    code, out, err = run("pretrain_language_model", *words)
    assert (code, err) == (0, "")
    assert "one-cycle" in out
    assert len(json.loads((place / "lm_on/stage.json").read_text())["lineage"]) == 2


def test_1_and_is_packaged_with_a_card(run, place):
    words = ["--model", "lm_on", "--output_dir", "shipped", "--validation_file", "test.csv", "--sample_tokens", 3]
    code, out, err = run("package_language_model", *words)
    assert (code, err) == (0, "")
    assert "the model is in shipped, its card in shipped/README.md; use it:" in out
    assert "over 2 legs of training" in (place / "shipped/README.md").read_text()


@pytest.mark.usefixtures("blank_pictures_here")
def test_2_fine_tuning_goes_on_from_it(run, place):
    words = ["--model", "lm", "--train_file", "train.csv", "--train_file", "more.csv", "--output_dir", "tuned"]
    code, out, err = run("finetune_language_model", *words, *SHORT)
    assert (code, err) == (0, "")
    assert "ulmfit train-classifier --model tuned" in out
    assert "validation perplexity" in out
    assert metrics_in(place / "tuned")["validation"]["perplexity"] > 1


def test_3_a_learning_rate_is_found_for_the_head(run, place):
    words = ["--model", "tuned", "--train_file", "train.csv", "--output_dir", "lr", "--num_steps", 60]
    code, out, err = run("find_learning_rate", *words)
    assert (code, err) == (0, "")
    assert "swept with these groups trained: head" in out
    assert "use it:  --classifier.lr " in out
    assert metrics_in(place / "lr").keys() >= REPORTED


@pytest.mark.usefixtures("blank_pictures_here")
def test_4_a_classifier_is_trained_on_it(run, place):
    words = ["--model", "tuned", "--train_file", "train.csv", "--test_file", "test.csv", "--output_dir", "classifier"]
    words += ["--validation_fraction", "0.1"]
    code, out, err = run("train_classifier", *words, *ONE_EPOCH, "--classifier.plan", "gradual")
    assert (code, err) == (0, "")
    metrics = metrics_in(place / "classifier")
    assert metrics.keys() >= REPORTED
    assert metrics["test"].keys() >= {"accuracy", "macro_f1", "loss", "n"}
    assert (metrics["test"]["n"], metrics["validation"]["n"]) == (6, 3)


def test_5_and_predicts_a_file(run, place):
    words = ["--model", "classifier", "--input_file", "more.csv", "--output_file", "predicted.csv"]
    code, out, err = run("predict", *words)
    assert (code, err) == (0, "")
    assert len((place / "predicted.csv").read_text().splitlines()) == 1 + 10


def test_6_the_whole_pipeline_runs_and_a_second_call_skips_it(run, place):
    words = ["--train_file", "train.csv", "--test_file", "test.csv", "--unlabelled_file", "more.csv"]
    words += ["--text_column", "text", "--label_column", "label", "--model", "lm", "--output_dir", "run"]
    words += ["--preset", "fastai", "--seed", 3, "--max_seconds", 60, *SHORT, *ONE_EPOCH]
    code, out, err = run("run_pipeline", *words)
    assert (code, err) == (0, "")
    assert "the classifier is in run/classifier; use it with" in out
    metrics = metrics_in(place / "run")
    assert metrics.keys() >= REPORTED
    assert metrics["test"].keys() >= {"accuracy", "macro_f1", "loss", "n"}
    assert metrics["seconds"].keys() >= {"language_model", "classifier"}
    assert metrics["seed"] == 3
    assert (place / "run/report.html").is_file()
    code, out, err = run("run_pipeline", "--config", "run/settings.yaml")
    assert (code, err, out.count("skipped")) == (0, "", 2)


LEAST = "--development_rows 6 --classifier.lr 0.005 --classifier.epochs_per_phase 1 --classifier.final_epochs 2".split()


def test_7_few_labels_are_measured_and_drawn(run, place):
    words = ["--train_file", "train.csv", "--test_file", "test.csv", "--model", "lm", "--output_dir", "few", *LEAST]
    words += ["--language_model_text", "training", *SHORT, "--sizes", 12, "--seeds", 1]
    code, out, err = run("low_shot", *words, "--figure", "few.png")
    assert (code, err) == (0, "")
    assert "| from scratch " in out
    assert out.endswith("picture: few.png\n")
    assert (place / "few.png").read_bytes().startswith(b"\x89PNG")
    code, out, err = run("low_shot", *words, "--stage", "language_model")
    assert (code, err, out.splitlines()[-1]) == (0, "", "language models: few/language_model")
    code, out, err = run(
        "low_shot", "--combine", "few/results.json", "--combine", "few/results.json", "--figure", "b.png"
    )
    assert (code, err, out.count("| ULMFiT ")) == (0, "", 2)


@pytest.mark.usefixtures("blank_pictures_here")
def test_8_ways_to_thaw_are_compared(run, place):
    words = ["--train_file", "train.csv", "--test_file", "test.csv", "--model", "few/language_model", *LEAST]
    words += ["--output_dir", "ways", "--size", 12, "--seeds", 1, "--variants", "full", "--variants", "gradual"]
    code, out, err = run("ablation", *words, "--stage", "plans")
    assert (code, err) == (0, "")
    assert "gradual: last 1 (1), last 2 (1), last 3 (1), all (2), 5 epochs, constant" in out
    assert not (place / "ways").exists()
    code, out, err = run("ablation", *words)
    assert (code, err) == (0, "")
    assert "| gradual | last 1 (1), last 2 (1), last 3 (1), all (2) | 12 " in out


@pytest.mark.usefixtures("blank_pictures_here")
def test_9_a_model_goes_to_fastais_files_and_comes_back(run, place):
    words = ["--train_file", "more.csv", "--output_dir", "words", "--language_model.tokenizer", "word", *TINY, *SHORT]
    assert run("pretrain_language_model", *words)[0] == 0
    code, out, err = run("export_fastai", "--model", "words", "--output_dir", "theirs")
    assert (code, err) == (0, "")
    assert "the language model is in theirs as model.pth, encoder.pth and vocab.pkl; in fastai:" in out
    files = ["--weights", "theirs/encoder.pth", "--vocab", "theirs/vocab.pkl"]
    code, out, err = run("import_fastai", *files, "--output_dir", "back")
    assert (code, err) == (0, "")
    assert out.startswith("the file holds an encoder and no decoder: the decoder shares the embedding's weight\n")
    assert "ulmfit finetune-lm --model back --train_file" in out
    code, out, err = run("finetune_language_model", "--model", "back", *words[:2], "--output_dir", "back_tuned", *SHORT)
    assert (code, err) == (0, "")


def test_images_are_classified(run, place):
    for label, shade in (("dark", 10), ("light", 200)):
        for split, count in (("photos", 6), ("photos_test", 2)):
            (place / split / label).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (9, 7), (shade + number, shade, shade)).save(place / split / label / f"{number}.png")
    small = "--classifier.backbone.embedding_size 4 --classifier.backbone.hidden_sizes [4,6]".split()
    small += "--classifier.backbone.depths [1,1] --classifier.image_size 16 --classifier.final_epochs 1".split()
    small += "--classifier.head.hidden_sizes [5] --pretraining.task rotations --pretraining.epochs 1".split()
    words = ["--train_images", "photos", "--test_images", "photos_test", "--output_dir", "seen", *small]
    code, out, err = run("train_image_classifier", *words)
    assert (code, err) == (0, "")
    assert "test        accuracy" in out
    assert re.search(r"\nphase  best validation accuracy  gain\n[- ]+\nhead   \d\.\d{4}\nall    \d\.\d{4} +[+-]\d", out)
    assert 'ImagePipeline.load("seen/classifier").predict' in out
    assert metrics_in(place / "seen").keys() >= REPORTED


def test_layers_are_transferred(run, place):
    for label, shade in (("black", 0), ("dark", 70), ("light", 140), ("white", 210)):
        (place / "shades" / label).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (9, 7), (shade + number, shade, shade)).save(place / f"shades/{label}/{number}.png")
    words = "--train_images shades --image_size 16 --seeds 1 --layers [2] --frozen_epochs 1 --final_epochs 1".split()
    words += "--backbone.embedding_size 4 --backbone.hidden_sizes [4,6] --backbone.depths [1,1]".split()
    code, out, err = run("transferability", *words, "--output_dir", "layers", "--figure", "layers.png")
    assert (code, err) == (0, "")
    assert "layer groups: stem | stage0 | stage1 | head; 8 networks to train" in out
    assert "| n = 2, up to stage0 | " in out
    assert out.splitlines()[-1].startswith("Unfreezing after training the new layers ")
    assert "picture: layers.png\n" in out
    assert (place / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_images_and_what_training_did_to_the_filters_is_drawn(run, place):
    words = ["--before", "seen/pretraining", "--after", "seen/classifier", "--output_dir", "drawn"]
    code, out, err = run("show_filters", *words, "--images", "photos/dark/0.png", "--images", "photos/light/1.png")
    assert (code, err) == (0, "")
    assert re.search(r"^early +[\d,]+ +\d\S*% ", out, flags=re.MULTILINE)
    assert re.search(r"^head +[\d,]+ +new$", out, flags=re.MULTILINE)
    layers = [f"activations_backbone.encoder.stages.{number}.png" for number in range(2)]
    names = ["weight_changes.png", "filters.png", *layers]
    assert [line for line in out.splitlines() if "picture" in line] == [f"picture: drawn/{name}" for name in names]
    for name in names:
        assert (place / "drawn" / name).read_bytes().startswith(b"\x89PNG")
    code, out, err = run("show_filters", "--before", "tuned", "--after", "classifier", "--output_dir", "drawn_text")
    assert (code, err) == (0, "")
    assert re.search(r"^lstm1 +[\d,]+ +\d\S*% ", out, flags=re.MULTILINE)
    assert out.endswith("picture: drawn_text/weight_changes.png\n")
    words = ["--before", "tuned", "--after", "seen/classifier", "--output_dir", "refused"]
    code, _, err = run("show_filters", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "tuned is a 'awd_lstm' model, seen/classifier a 'resnet': their weights cannot be compared" in err


def test_training_can_be_timed(run):
    sizes = "--vocab_size 50 --embedding_size 4 --hidden_size 6 --batch_size 2 --bptt 5 --steps 2".split()
    code, out, err = run("benchmark_training", *sizes, "--side", "float32")
    assert (code, err) == (0, "")
    assert float(out) > 0


@pytest.mark.slow
def test_every_side_of_the_timing_is_run_in_a_process_of_its_own(place):
    sizes = "--vocab_size 50 --embedding_size 4 --hidden_size 6 --batch_size 2 --bptt 5 --steps 2 --repeats 1".split()
    words = [sys.executable, ROOT / "recipes/benchmark_training.py", *sizes]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, cwd=place, env=surroundings, check=True)
    head, *sides = done.stdout.splitlines()
    assert head.split() == ["side", "tokens/s", "lowest", "highest", "ratio"]
    assert [line[:26].rstrip() for line in sides] == [
        "float32, memory returned",
        "float32",
        "bfloat16, memory returned",
        "bfloat16",
    ]
    assert sides[0].endswith("  1.00")


def test_the_speed_of_prediction_is_the_median_of_what_the_recipe_says(run, monkeypatch):
    seconds = iter([1.0, 0.5, 4.0, 1.0, 2.0, 0.1])  # one process and two, in turn
    environments = []

    def started(command, *, env, **_options):
        environments.append((command[5], env["OMP_NUM_THREADS"], env["RAYON_NUM_THREADS"]))
        taken = next(seconds, None)
        said = f"8 rows in 9.0 s ({taken:.2f} s predicting, 4 a second)\nlabels: none" if taken else ""
        return subprocess.CompletedProcess(command, 0 if taken else 7, said)

    monkeypatch.setattr(subprocess, "run", started)
    words = ["--model", "any", "--rows", 8, "--repeats"]
    code, out, err = run("benchmark_prediction", *words, 3)
    assert (code, err) == (0, "")
    head, *sides = (line.split() for line in out.splitlines())
    assert head[:5] == ["processes", "rows/s", "lowest", "highest", "ratio"]
    assert [line[:5] for line in sides] == [["1", "4.0", "2.0", "8.0", "1.00"], ["2", "16.0", "8.0", "80.0", "4.00"]]
    assert environments == [("1", "1", "1"), ("2", "1", "1")] * 3
    assert run("benchmark_prediction", *words, 1) == (7, "", "")  # the recipe itself said why


@pytest.mark.slow
@pytest.mark.two_process
def test_prediction_by_one_process_and_by_two_can_be_timed(run, place):
    run("pretrain_language_model", "--train_file", "more.csv", "--output_dir", "timed_lm", *TINY, *SHORT)
    run("train_classifier", "--model", "timed_lm", "--train_file", "train.csv", "--output_dir", "timed")
    words = "--model timed --rows 4 --fewest_words 2 --most_words 3 --part_rows 1 --repeats 1".split()
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, ROOT / "recipes/benchmark_prediction.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, env=surroundings, check=True)
    head, *sides = (line.split() for line in done.stdout.splitlines())
    assert head[:5] == ["processes", "rows/s", "lowest", "highest", "ratio"]
    assert [(line[0], line[1] == line[2] == line[3]) for line in sides] == [("1", True), ("2", True)]
    assert sides[0][4] == "1.00"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes/configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_can_be_read_by_the_recipe_of_its_command(path):
    jobs = {
        "ablation": AblationSettings,
        "low_shot": LowShotSettings,
        "pretrain_language_model": LanguageModelJob,
        "run_pipeline": PipelineSettings,
        "train_image_classifier": ImageSettings,
    }
    job = jobs[re.search(r"python recipes/(\w+)\.py", path.read_text())[1]]
    required = [word for field in list_settings(job) if field.required for word in (f"--{field.name}", "x")]
    assert parse_settings(job, [*required, "--config", str(path)], description="")


def test_a_mistake_is_one_line_and_code_2(run):
    code, out, err = run("run_pipeline", "--train_file", "trian.csv", "--output_dir", "none")
    assert code == 2
    assert err.startswith("run_pipeline.py: error: there is no file trian.csv; the folder . holds ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("finetune_language_model", ["--train_file", "more.csv"], "--model is missing: the folder of a pretrained"),
        ("pretrain_language_model", ["--train_file", "more.csv", "--model", "./x"], "there is no folder './x'"),
        ("package_language_model", ["--model", "./x"], "there is no folder './x'; give the folder that a stage wrote"),
        ("import_fastai", ["--weights", "no.pth", "--vocab", "no.pkl"], "there is no file 'no.pth'; give a .pth file"),
        ("show_filters", ["--before", "./x", "--after", "./x"], "there is no folder './x'; give the folder that a"),
        ("export_fastai", ["--model", "./x"], "there is no folder './x'; give the folder that a stage wrote"),
        ("train_classifier", ["--train_file", "t.csv", "--model", "awd-lstm-en"], "there is no file t.csv"),
        ("train_classifier", ["--train_file", "train.csv", "--model", "lm.pth"], "lm.pth is a pickled checkpoint"),
        ("find_learning_rate", ["--train_file", "train.csv"], "give --model, a folder"),
        ("run_pipeline", ["--train_file", "train.csv", "--max_seconds", "0"], "max_seconds must be positive, got 0"),
        ("run_pipeline", ["--train_file", "train.csv", "--classifier.lr", "-1"], "classifier: lr must be a number abo"),
        ("train_image_classifier", ["--train_images", "none"], "there is no folder or table none; give a folder that"),
        ("train_image_classifier", [], "give one of train_images, dataset, train (a dataset) to train on, got none"),
        ("run_pipeline", ["--train_file", "train.csv", "--language_model.epochs", "-1"], "epochs must be a whole num"),
        ("transferability", [], "give one of dataset, train_images, train_file to take tasks from, got none"),
        ("transferability", ["--train_file", "train.csv"], "need 4 classes, the table has 2 (bad, good)"),
    ],
)
def test_every_recipe_tells_its_mistakes_so(run, place, name, words, told):
    code, _, err = run(name, *words, "--output_dir", "refused")
    assert code == 2
    assert err.startswith(f"{name}.py: error: ")
    assert told in err
    assert err.count("\n") == 1
    assert not (place / "refused").exists()


@pytest.mark.parametrize("name", NAMES)
def test_help_describes_every_setting(run, name):
    code, out, err = run(name, "--help")
    assert (code, err) == (0, "")
    settings = [line.split()[0] for line in out.splitlines() if line.startswith("  --")]
    assert len(settings) >= 3
    assert out.startswith(f"usage: {name}.py [--config FILE ...] [--name VALUE ...]")


@pytest.mark.parametrize("name", NAMES)
def test_unknown_and_abbreviated_names_are_refused_with_the_nearest(run, name):
    code, _, err = run(name, "--progres", "true")
    assert code == 2
    assert f"{name}.py: error: unknown setting --progres; " in err
    if "--progress" in run(name, "--help", "all")[1]:
        assert "did you mean --progress" in err
    else:  # a name that is not near is worse than none
        assert "did you mean --progress" not in err and "--help all lists all" in err


def test_a_recipe_starts_as_a_program_of_its_own(place):
    words = [sys.executable, ROOT / "recipes/run_pipeline.py", "--train_file", "none.csv", "--output_dir", "nowhere"]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, cwd=place, env=surroundings, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("run_pipeline.py: error: there is no file none.csv; the folder . holds ")


MEASURED = dict.fromkeys(("perplexity", "perplexity_per_word", "bits_per_character", "token_accuracy"), 2.0)


@pytest.mark.parametrize(
    ("recipe", "function", "found"),
    [
        ("pretrain_language_model", "run_language_model", {"validation": MEASURED}),
        ("finetune_language_model", "run_language_model", {"validation": MEASURED}),
        ("train_classifier", "run_classifier", {"seconds": {}}),
        ("run_pipeline", "run_pipeline", {"seconds": {}, "classifier": "FOLDER"}),
        (
            "import_fastai",
            "import_fastai",
            SimpleNamespace(kind="classifier", sizes={}, labels=[], output_dir="FOLDER"),
        ),
    ],
)
def test_commands_that_a_recipe_prints_hold_for_any_folder(run, monkeypatch, recipe, function, found):
    folder = """my "best" run's $HOME"""
    if isinstance(found, dict):
        found = {name: folder if value == "FOLDER" else value for name, value in found.items()}
    else:
        found.output_dir = folder
    monkeypatch.setattr(f"ulmfit_pipe.{function}", lambda _settings: found)
    given = ["--weights", "w.pth", "--vocab", "v.pkl"] if recipe == "import_fastai" else ["--train_file", "train.csv"]
    code, out, _ = run(
        recipe, *given, "--output_dir", folder, *([] if recipe == "import_fastai" else ["--model", "lm"])
    )
    assert code == 0
    commands = [shlex.split(line) for line in out.splitlines() if "--model" in line]
    assert commands
    assert {words[words.index("--model") + 1].removesuffix("/language_model") for words in commands} == {folder}
    calls = [line for line in out.splitlines() if ".load(" in line]
    assert all(folder in ast.literal_eval(re.search(r'load\(("(\\.|[^"\\])*")', line)[1]) for line in calls)
