"""recipes/predict.py as a person runs it."""

import csv
import runpy
import sys
from pathlib import Path

import pytest

from ulmfit_pipe.data.text.tokenization import train_tokenizer, vocab_hash
from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForSequenceClassification

RECIPE = Path(__file__).parents[2] / "recipes" / "predict.py"


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "classifier"
    tokenizer = train_tokenizer(["the film was dull", "a warm and funny story"] * 9, kind="word")
    sizes = {"embedding_size": 5, "hidden_size": 7, "num_hidden_layers": 2, "head_hidden_size": 4}
    config = AwdLstmConfig(
        vocab_size=len(tokenizer), id2label={0: "bad", 1: "good"}, vocab_hash=vocab_hash(tokenizer), **sizes
    )
    AwdLstmForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def run_recipe(monkeypatch, capsys):
    """Return a function that runs the recipe with the given words; it gives the exit code and what was printed."""

    def run(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(RECIPE), *map(str, words)])
        code = 0
        try:
            runpy.run_path(str(RECIPE), run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_a_csv_comes_back_with_labels_and_scores(run_recipe, classifier_folder, tmp_path):
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("id,text,label\n007,The film was dull,good\n8,A warm story,bad\n")
    code, out, err = run_recipe("--model", classifier_folder, "--input_file", source, "--output_file", target)
    assert code == 0
    assert "the input's column 'label' is kept as 'label_given'; 'label' is the prediction" in out
    assert "2 rows in " in out
    with target.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "text", "label_given", "label", "score"]
    assert [row["id"] for row in rows] == ["007", "8"]
    assert [row["label_given"] for row in rows] == ["good", "bad"]
    assert {row["label"] for row in rows} <= {"bad", "good"}


def test_parts_are_written_once_and_joined_when_asked(run_recipe, classifier_folder, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text(f"id,text\n{name},A warm story\n")
    words = ["--model", classifier_folder, "--input_file", tmp_path / "[ab].csv", "--output_dir", tmp_path / "parts"]
    code, out, err = run_recipe(*words)
    assert code == 0
    assert out.startswith("2 rows in ") and f"written to {tmp_path / 'parts'}" in out
    code, out, err = run_recipe(*words, "--output_file", tmp_path / "joined.csv")
    assert code == 0
    assert f"every part is there already, in {tmp_path / 'parts'}\n2 rows, 2 of them finished before in " in out
    assert [line.split(",")[0] for line in (tmp_path / "joined.csv").read_text().splitlines()] == ["id", "a", "b"]
    (tmp_path / "b.csv").write_text("id,text\nb,Another story\n")
    code, out, err = run_recipe(*words)
    assert code == 2
    assert "holds the parts of another prediction; it differs in " in err and "b.csv: bytes (" in err


def test_help_names_every_setting_and_says_what_becomes_of_a_given_label(run_recipe):
    code, out, err = run_recipe("--help", "all")
    assert code == 0
    for name in ("--model", "--input_file", "--output_file", "--output_dir", "--part_rows", "--text_column"):
        assert name in out
    assert "kept as label_given or score_given" in " ".join(out.split())


def test_a_misspelt_setting_names_the_nearest_one(run_recipe):
    code, out, err = run_recipe("--inputfile", "in.csv")
    assert code == 2
    assert "unknown setting --inputfile; did you mean --input_file" in err
