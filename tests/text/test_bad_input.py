"""What a user gives wrongly, at the level they give it: the message names place and way out, nothing is lost."""

import errno
import functools
import json
import os
import random
import shutil
from pathlib import Path

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch

from tests.support.tiny_runs import CLASSIFIER, LM, TINY_LM, folder_bytes, reviews, write_csv
from tests.support.tiny_transformers import save_bert, save_gpt2
from ulmfit_pipe import TextPipeline
from ulmfit_pipe.data.tables.readers import TableError
from ulmfit_pipe.data.text.tokenization import train_tokenizer
from ulmfit_pipe.settings.text import ClassifierSettings, LanguageModelSettings
from ulmfit_pipe.settings.text_runs import ClassifierJob
from ulmfit_pipe.stages import pretrained_files
from ulmfit_pipe.stages.artifacts import ArtifactError
from ulmfit_pipe.storage.atomic import CheckpointError
from ulmfit_pipe.text.jobs import run_classifier


@pytest.fixture
def train_csv(tmp_path):
    return write_csv(tmp_path / "train.csv", reviews(24))


@pytest.fixture
def fit(tmp_path, train_csv):
    """Return a function that fits a pipeline; the table, the model and any setting may be another."""

    def fit(train=train_csv, model=None, **settings):
        settings = {"language_model": LM, "classifier": CLASSIFIER, "output_dir": tmp_path / "run", **settings}
        return TextPipeline(model).fit(train, **settings)

    return fit


def refused(fit, error, words, *arguments, **settings):
    """Fit, and check the words of the error, and that nothing was written."""
    with pytest.raises(error) as caught:
        fit(*arguments, **settings)
    for word in words:
        assert word in str(caught.value)
    output = Path(settings.get("output_dir", "nowhere"))
    assert not output.exists()


# ---- tables


def test_no_file_names_it_and_what_the_folder_holds(fit, tmp_path):
    words = [f"there is no file {tmp_path / 'trian.csv'}", "holds train.csv"]
    refused(fit, TableError, words, tmp_path / "trian.csv")


def test_a_table_that_is_utf8_but_for_one_byte_names_it_and_its_line(fit, tmp_path):
    path = tmp_path / "mixed.csv"
    path.write_bytes("text,label\nnaïve,good\n".encode() + "café,bad\n".encode("latin-1"))
    refused(fit, TableError, [f"{path} is not UTF-8: byte 26 (line 3)", "encoding of the whole file with --enc"], path)


def test_a_missing_column_names_those_there_are(fit, tmp_path):
    path = write_csv(tmp_path / "other.csv", reviews(6), columns=("review", "label"))
    refused(fit, TableError, ["there is no column 'text'; there are review, label"], path)


def test_a_misspelt_text_column_in_python_is_one_name_not_letters(fit):
    refused(fit, TableError, ["there is no column 'txt'", "did you mean 'text'?"], text_column="txt")


@pytest.mark.parametrize(("content", "words"), [("", "is empty: it has no header"), ("text,label\n", "is empty")])
def test_an_empty_table_says_so(fit, tmp_path, content, words):
    path = tmp_path / "empty.csv"
    path.write_text(content)
    refused(fit, TableError, [str(path), words], path)


@pytest.mark.parametrize("text", ["", "   \t "])
def test_an_empty_text_names_file_row_and_column(fit, tmp_path, text):
    path = write_csv(tmp_path / "gap.csv", [*reviews(4), (text, "good"), *reviews(4)])
    words = [f"{path}, row 5 (header not counted), column 'text': the text is empty or only spaces", "delete the row"]
    refused(fit, TableError, words, path)


def test_a_text_that_is_none_names_file_row_and_column(fit, tmp_path):
    path = tmp_path / "none.parquet"
    pq.write_table(pa.table({"text": ["fine film", None, "dull film"], "label": ["good", "bad", "bad"]}), path)
    refused(fit, TableError, [f"{path}, row 2 (header not counted), column 'text': the text is None"], path)


def test_a_label_in_test_that_train_lacks_names_row_and_labels(fit, tmp_path):
    test = write_csv(tmp_path / "test.csv", [*reviews(3), ("a fine film", "godo")])
    words = [f"{test}, row 4", "column 'label': the label 'godo' is not among those that training knows (bad, good)"]
    refused(fit, TableError, [*words, "did you mean 'good'?"], test=test)


def test_one_class_only_is_refused(fit, tmp_path):
    path = write_csv(tmp_path / "one.csv", reviews(6, labels=("good",)))
    refused(fit, TableError, ["all 6 rows have the label 'good'; a classifier needs at least two classes"], path)


def test_a_class_with_one_row_may_train_when_a_validation_file_is_given(fit, tmp_path):
    path = write_csv(tmp_path / "lonely.csv", [*reviews(8), ("plain and usual", "fair")])
    validation = write_csv(tmp_path / "validation.csv", reviews(4, seed=5))
    metrics = fit(path, validation_file=validation)
    assert metrics["validation"]["n"] == 4


def test_labels_that_are_floats_name_row_and_way_out(fit, tmp_path):
    path = write_csv(tmp_path / "floats.csv", [("fine film", "1.0"), ("dull film", "0.0")])
    words = [f"{path}, row 1", "column 'label'", "the label is the decimal number 1.0", ".dropna(subset=['label'])"]
    refused(fit, TableError, words, path)


def test_nul_bytes_name_row_and_character(fit, tmp_path):
    path = tmp_path / "nul.jsonl"
    rows = [{"text": "fine film", "label": "good"}, {"text": "dull\0film", "label": "bad"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"{path}, row 2", "the text holds a NUL byte at character 4", "tr -d '\\000'"]
    refused(fit, TableError, words, path)


def test_nul_bytes_in_a_csv_are_refused_too(fit, tmp_path):
    path = tmp_path / "nul.csv"
    path.write_bytes(b"text,label\nfine film,good\ndull\0film,bad\n")
    refused(fit, TableError, [str(path), "row 2", "NUL"], path)


def test_duplicated_column_names_are_named(fit, tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("text,label,text\na,good,b\nc,bad,d\n")
    refused(fit, TableError, [f"{path}: the column name 'text' is there twice; rename one of the columns"], path)


def test_a_document_of_three_megabytes_is_read_whole_in_bounded_time(fit, tmp_path):
    chance = random.Random(0)
    long = " ".join(chance.choice(["extraordinarily", "straightforward"]) for _ in range(187_500))
    assert len(long) == 2_999_999
    path = write_csv(tmp_path / "long.csv", [*reviews(20), (long, "good")])
    validation = write_csv(tmp_path / "validation.csv", reviews(4, seed=5))
    classifier = ClassifierSettings(plan="head", final_epochs=1, gradient_window=44)
    language_model = LanguageModelSettings(**{**TINY_LM, "tokenizer": "word", "bptt": 500}, epochs=1, batch_size=64)
    metrics = fit(path, validation_file=validation, classifier=classifier, language_model=language_model)
    assert metrics["validation"]["n"] == 4
    stage = json.loads((tmp_path / "run/language_model/stage.json").read_text())
    assert stage["tokens"] > 165_000


# ---- folders and models


def test_an_output_folder_that_holds_another_run_names_what_differs(fit, tmp_path):
    fit()
    before = folder_bytes(tmp_path / "run")
    with pytest.raises(ArtifactError) as caught:
        fit(seed=3)
    assert f"{tmp_path / 'run' / 'classifier'} holds a finished classifier stage of another run" in str(caught.value)
    assert "seed (0 there, 3 now)" in str(caught.value)
    assert "Choose another output folder, or remove this one to train again" in str(caught.value)
    assert folder_bytes(tmp_path / "run") == before


@pytest.mark.parametrize("place", ["language_model", "classifier"])
def test_a_stage_folder_with_other_files_is_refused_before_anything_is_trained(fit, tmp_path, place):
    folder = tmp_path / "run" / place
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match=rf"{place} holds files that are not a stage's, not a {place} stage"):
        fit()
    assert folder_bytes(tmp_path / "run") == {f"{place}/thesis.txt": b"years of work"}


def test_an_output_folder_with_another_programs_metrics_is_refused(fit, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.json").write_text("{}")
    with pytest.raises(ArtifactError, match="holds metrics.json but no stage of a run, so it is another program's"):
        fit()
    assert (tmp_path / "run/metrics.json").read_text() == "{}"


def test_the_folder_of_a_single_stage_is_no_output_folder(fit, tmp_path):
    fit()
    with pytest.raises(ArtifactError, match="run/language_model is a single stage's folder, not a run's"):
        fit(output_dir=tmp_path / "run/language_model")


def test_an_output_folder_that_is_a_file_is_refused(fit, train_csv):
    with pytest.raises(ArtifactError, match="train.csv is a file; choose another output folder"):
        fit(output_dir=train_csv)


def test_a_tokenizer_of_another_model_is_refused_by_its_hash(fit, tmp_path, tiny_language_model_folder):
    mixed = shutil.copytree(tiny_language_model_folder, tmp_path / "mixed")
    train_tokenizer([text for text, _ in reviews(40)], vocab_size=120).save_pretrained(mixed)
    words = [f"the tokenizer of {mixed} does not belong to the model", "copy the tokenizer files of the folder"]
    refused(fit, ArtifactError, words, model=mixed)


def test_a_hub_id_without_network_says_so_and_how_to_give_a_folder(fit):
    words = ["'somebody/general-lm' is not a folder here and could not be fetched from the hub (HF_HUB_OFFLINE is set"]
    refused(fit, ArtifactError, [*words, "give a folder that holds config.json"], model="somebody/general-lm")


def test_a_hub_that_does_not_answer_is_told_apart_from_offline_mode(fit, monkeypatch):
    nowhere = functools.partial(huggingface_hub.HfApi, endpoint="http://127.0.0.1:9")  # nothing answers there
    monkeypatch.setattr(pretrained_files, "HfApi", nowhere)
    monkeypatch.setattr(pretrained_files, "is_offline_mode", lambda: False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    words = [
        "'somebody/general-lm' is not a folder here and could not be fetched from the hub",
        "(no network, or no such",
    ]
    refused(fit, ArtifactError, words, model="somebody/general-lm")


def test_a_folder_that_does_not_exist_is_no_hub_id(fit, tmp_path):
    refused(fit, ArtifactError, [f"there is no folder '{tmp_path / 'lm'}'"], model=tmp_path / "lm")


def test_a_checkpoint_cut_short_is_refused(fit, tmp_path, tiny_language_model_folder):
    cut = shutil.copytree(tiny_language_model_folder, tmp_path / "cut")
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-200])
    refused(fit, ArtifactError, [f"{cut} cannot be loaded", "cut short", "take another save"], model=cut)


def test_a_configuration_cut_short_is_refused(fit, tmp_path, tiny_language_model_folder):
    cut = shutil.copytree(tiny_language_model_folder, tmp_path / "cut")
    (cut / "config.json").write_text((cut / "config.json").read_text()[:100])
    refused(fit, ArtifactError, [f"{cut} cannot be loaded", "take another save"], model=cut)


def test_a_checkpoint_that_lacks_weights_is_refused_not_filled_at_random(fit, tmp_path, tiny_language_model_folder):
    lacking = shutil.copytree(tiny_language_model_folder, tmp_path / "lacking")
    weights = safetensors.torch.load_file(lacking / "model.safetensors")
    del weights["lm_head.bias"]
    safetensors.torch.save_file(weights, lacking / "model.safetensors", metadata={"format": "pt"})
    refused(fit, ArtifactError, [f"the weights of {lacking} lack lm_head.bias (1 in all)"], model=lacking)


def test_a_classifier_is_no_language_model_to_start_from(fit, tiny_classifier_folder):
    words = ["lack lm_head.bias", "it holds a classifier; give the folder of its language model"]
    refused(fit, ArtifactError, words, model=tiny_classifier_folder)


@pytest.mark.parametrize("name", ["lm.pth", "lm.pkl", "pytorch_model.bin"])
def test_a_pickle_offered_as_a_checkpoint_is_refused(fit, tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    words = [f"{tmp_path / name} is a pickled checkpoint", "which can run code when read, so it is refused"]
    refused(fit, ArtifactError, words, model=tmp_path / name)


def test_a_folder_with_pickled_weights_is_refused(fit, tmp_path, tiny_language_model_folder):
    folder = shutil.copytree(tiny_language_model_folder, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    words = ["has its weights in pytorch_model.bin, a pickled checkpoint", "so it is refused; convert it"]
    refused(fit, ArtifactError, words, model=folder)


# ---- numbers


@pytest.mark.parametrize("lr", [0.0, -1e-3, float("inf"), float("nan")])
@pytest.mark.parametrize("stage", [LanguageModelSettings, ClassifierSettings])
def test_a_learning_rate_of_zero_or_less_is_refused(stage, lr):
    with pytest.raises(ValueError, match="lr must be a number above 0, got .*; leave it out for the default"):
        stage(lr=lr)


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        (LanguageModelSettings, "epochs"),
        (LanguageModelSettings, "frozen_epochs"),
        (ClassifierSettings, "epochs_per_phase"),
        (ClassifierSettings, "final_epochs"),
    ],
)
@pytest.mark.parametrize("epochs", [0, -1, 1.5])
def test_epochs_below_one_are_refused(stage, name, epochs):
    with pytest.raises(ValueError, match=rf"{name} must be a whole number (of 1 or more|or null), got {epochs}"):
        stage(**{name: epochs})


def test_a_batch_of_one_row_cannot_train_a_head_with_batch_norm():
    with pytest.raises(ValueError, match="batch_size must be 2 or more, got 1: the head's batch norm"):
        ClassifierSettings(batch_size=1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"plan": "graduall"}, "plan must be one of .*got 'graduall'; did you mean 'gradual'"),
        ({"monitor": "acuracy"}, "monitor must be one of .*did you mean 'accuracy'"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"drop_mult": -0.5}, "drop_mult must be 0 or more, got -0.5"),
        ({"max_length": 0}, "max_length must be a whole number of 1 or more, got 0"),
        ({"lr_decay": 0.0}, "lr_decay must be a number above 0, got 0.0; leave it out for the default"),
    ],
)
def test_other_numbers_of_the_classifier_are_checked(settings, words):
    with pytest.raises(ValueError, match=words):
        ClassifierSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokenizer": "words"}, "tokenizer must be one of .*did you mean 'word'"),
        ({"drop_mult": -1.0}, "drop_mult must be 0 or more, got -1.0"),
        ({"alpha": -2.0}, "alpha must be 0 or more, got -2.0; 0 takes the penalty away"),
        ({"beta": float("nan")}, "beta must be 0 or more, got nan; 0 takes the penalty away"),
        ({"batch_size": 0}, "batch_size must be a whole number of 1 or more, got 0"),
        ({"bptt": -70}, "bptt must be a whole number of 1 or more, got -70"),
    ],
)
def test_other_numbers_of_the_language_model_are_checked(settings, words):
    with pytest.raises(ValueError, match=words):
        LanguageModelSettings(**settings)


def test_a_time_limit_of_zero_is_refused(fit):
    refused(fit, ValueError, ["max_seconds must be positive, got 0; leave it out for no limit"], max_seconds=0)


def test_a_metric_of_the_other_kind_of_labels_is_refused_before_training(fit, tmp_path):
    words = [
        "monitor 'micro_f1' is not a metric of a table with one label a row; choose one of accuracy, macro_f1, loss"
    ]
    refused(fit, ValueError, words, classifier=ClassifierSettings(monitor="micro_f1"), output_dir=tmp_path / "none")


def test_an_unknown_setting_in_python_names_the_nearest(fit):
    refused(fit, ValueError, ["fit has no setting 'max_second'; did you mean 'max_seconds'?"], max_second=3)


# ---- the disk


@pytest.mark.parametrize("failing", ["weights", "tokenizer"])
def test_a_full_disk_while_saving_leaves_the_finished_stages_and_no_rubbish(fit, tmp_path, monkeypatch, failing):
    from ulmfit_pipe.data.text.ulmfit_tokenizer import UlmfitTokenizer
    from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForSequenceClassification

    owner = AwdLstmForSequenceClassification if failing == "weights" else UlmfitTokenizer
    real = owner.save_pretrained

    def save(self, folder, *args, **kwargs):
        if "language_model" in str(folder):
            return real(self, folder, *args, **kwargs)
        Path(folder, "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(owner, "save_pretrained", save)
        with pytest.raises(CheckpointError) as caught:
            fit()
    assert f"could not save to {tmp_path / 'run' / 'classifier'}: No space left on device" in str(caught.value)
    assert "The disk is full: free some space" in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".classifier.progress", "language_model"]
    metrics = fit()  # the language model is not trained again
    assert metrics["seconds"]["classifier"] > 0


def test_a_full_disk_while_an_old_stage_is_replaced_leaves_it_bit_identical(tmp_path, tiny_language_model_folder):
    from ulmfit_pipe.stages.artifacts import save_stage

    def write(folder):
        shutil.copytree(tiny_language_model_folder, folder, dirs_exist_ok=True)

    def fail(folder):
        write(folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    saved = save_stage(tmp_path / "lm", stage="language_model", record={"seconds": 1.0}, write=write)
    before = folder_bytes(saved)
    with pytest.raises(CheckpointError, match="No space left on device; what was there before is untouched"):
        save_stage(saved, stage="language_model", record={"seconds": 2.0}, write=fail)
    assert folder_bytes(saved) == before
    assert list(tmp_path.iterdir()) == [saved]


# ---- few rows, many classes, odd models: a classifier, or one sentence


@pytest.fixture
def classify(tmp_path, tiny_language_model_folder):
    """Return a function that trains a classifier alone on rows, and returns its metrics."""

    def classify(rows, *, model=tiny_language_model_folder, validation=None, test=None, **settings):
        files = {
            name: None if given is None else str(write_csv(tmp_path / f"{name}.csv", given))
            for name, given in (("train", rows), ("validation_file", validation), ("test_file", test))
        }
        numbers = ClassifierSettings(plan="full", final_epochs=1, **settings)
        files |= {"train_file": [files.pop("train")], "validation_fraction": 0.1}
        job = ClassifierJob(output_dir=str(tmp_path / "out"), model=str(model), classifier=numbers, **files)
        return run_classifier(job)

    return classify


def test_two_rows_a_class_are_one_to_train_on_and_one_to_measure(classify):
    assert classify(reviews(4))["validation"]["n"] == 2


def test_one_row_a_class_is_refused(classify):
    with pytest.raises(TableError, match=r"every class has one row only \(bad, good\).*Add rows, or give a validation"):
        classify(reviews(2))


def test_a_class_of_the_test_table_alone_is_refused_with_its_row(classify):
    words = r"test_file\.csv, row 3 .*the label 'fair' is not among those that training knows \(bad, good\)"
    with pytest.raises(TableError, match=words):
        classify(reviews(20), test=reviews(6, labels=("bad", "good", "fair")))


def test_a_thousand_classes_of_three_rows_are_trained(classify, capsys):
    rows = [(text, f"class {number % 1000}") for number, (text, _) in enumerate(reviews(3000))]
    metrics = classify(rows, batch_size=64)
    assert metrics["validation"]["n"] == 1000
    assert max(map(len, capsys.readouterr().out.splitlines())) < 500


def test_texts_that_are_all_alike_are_reported(classify, capsys):
    assert classify([("the same text", label) for _, label in reviews(20)])["validation"]["accuracy"] == 0.5
    said = capsys.readouterr().out
    assert "17 of 18 training texts repeat an earlier one" in said
    assert "with different labels, such as 'the same text'" in said


@pytest.mark.parametrize("head", ["own", "concat-pooling", "mean-pooling"])
def test_an_encoder_without_a_pooling_file_is_trained(classify, tmp_path, head):
    encoder = save_bert(tmp_path / "encoder")
    assert not (encoder / "1_Pooling").exists()
    assert classify(reviews(20), model=encoder, head=head)["validation"]["n"] == 2


def test_a_decoder_without_padding_token_pads_with_its_end_of_text_token(classify, tmp_path, capsys):
    assert classify(reviews(20), model=save_gpt2(tmp_path / "decoder"))["validation"]["n"] == 2
    assert "has no padding token: its end-of-text token '<|endoftext|>' is used instead" in capsys.readouterr().out


def test_the_last_row_of_an_epoch_does_not_reach_batch_norm_alone(classify, capsys):
    metrics = classify(reviews(33), validation=reviews(4, seed=1), batch_size=32)
    assert metrics["validation"]["n"] == 4
    assert "33 training" in capsys.readouterr().out


def test_one_validation_row_a_label_is_enough_to_measure(classify):
    labels = ("bad", "fair", "good")
    assert classify(reviews(24, labels=labels), validation=reviews(3, labels=labels, seed=5))["validation"]["n"] == 3
