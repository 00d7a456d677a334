import dataclasses
import json
from pathlib import Path

import joblib
import pytest
from accelerate import Accelerator
from datasets import ClassLabel

from tests.support.tiny_transformers import save_bert
from ulmfit_pipe.data.sample.docstrings import build_corpus
from ulmfit_pipe.settings.text import ClassifierSettings, LanguageModelSettings
from ulmfit_pipe.settings.text_runs import DemoSettings
from ulmfit_pipe.studies import demo
from ulmfit_pipe.studies.demo import DemoSize, DemoTables, Pretraining, contest_table, demo_size, run_demo, tfidf_scores

SMALL = LanguageModelSettings(
    epochs=1, vocab_size=200, embedding_size=8, hidden_size=12, num_hidden_layers=2, batch_size=4, bptt=20
)
TINY = DemoSize(
    seeds=2,
    fine_tuning=LanguageModelSettings(plan="full", epochs=1, batch_size=4, bptt=20),
    classifier=ClassifierSettings(plan="gradual", batch_size=8, epochs_per_phase=1, final_epochs=2),
    unlabelled_rows=80,
    ablated=True,
    pretraining=Pretraining(("joblib",), rows=60, settings=SMALL),
)


@pytest.fixture
def tiny_demo(monkeypatch):
    monkeypatch.setattr(demo, "QUICK", TINY)
    monkeypatch.setattr(demo, "QUICK_GIVEN", dataclasses.replace(TINY, seeds=1, pretraining=None, ablated=False))
    monkeypatch.setattr(demo, "TARGET_LIBRARIES", ("jinja2", "fsspec"))
    monkeypatch.setattr(demo, "MIN_WORDS", 12)
    monkeypatch.setattr(demo, "MOST_TEST_ROWS", 30)
    monkeypatch.setattr(demo, "VALIDATION_LABELS", 5)


def test_the_full_demonstration_sets_the_method_beside_its_baselines_on_the_same_labels(tiny_demo, tmp_path):
    output = str(tmp_path / "demo")
    metrics = run_demo(DemoSettings(output_dir=output, model=None, encoder=None, labels_per_class=9, seed=0))
    assert metrics["general_model"] == str(tmp_path / "demo/general_lm")
    assert set(metrics["scores"]) == {
        "TF-IDF + logistic regression",
        "same network from scratch",
        "pretrained language model, not fine-tuned",
        "ULMFiT: language model fine-tuned on the texts",
    }
    assert all(len(scores) == 2 for scores in metrics["scores"].values())
    assert {scores["n"] for values in metrics["scores"].values() for scores in values} == {30}
    assert len(metrics["examples"]) == 3
    assert json.loads((tmp_path / "demo" / "metrics.json").read_text())["test"]["n"] == 30
    assert (tmp_path / "demo" / "classifier_seed0" / "stage.json").is_file()


def test_the_demonstration_is_refused_under_a_launcher_of_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(ValueError, match="the demonstration runs in one process, .* launched in 2; start it without a"):
        run_demo(DemoSettings(output_dir=str(tmp_path / "demo")))


def test_the_labelled_rows_share_no_source_file_with_the_validation_rows(tiny_demo):
    corpus = build_corpus(("jinja2", "fsspec"))
    rest, test = demo.split_by_source(corpus, fraction=0.2, seed=0)
    tables = demo._labelled(rest, test, 9, 3)
    source = dict(zip(corpus["text"], corpus["source"], strict=True))
    assert not {source[text] for text in tables.train["text"]} & {source[text] for text in tables.validation["text"]}
    assert sorted(tables.train["label"]) == [0] * 9 + [1] * 9
    assert sorted(tables.validation["label"]) == [0] * 5 + [1] * 5


def test_the_scratch_twin_gets_the_epochs_of_all_phases():
    assert demo._all_epochs(TINY, layers=2) == 3 * 1 + 2
    assert demo._all_epochs(dataclasses.replace(TINY, classifier=demo.CLASSIFIER), layers=3) == 4 * 2 + 10


def test_the_demonstration_sets_the_method_beside_tfidf_and_a_pretrained_encoder(tiny_demo, tmp_path, builtin):
    encoder = save_bert(tmp_path / "encoder")
    metrics = run_demo(DemoSettings(output_dir=str(tmp_path / "demo"), encoder=str(encoder), labels_per_class=9))
    assert metrics["general_model"] == "awd-lstm-en"
    assert "pretraining" not in metrics["seconds"]
    assert not (tmp_path / "demo/general_lm").exists()
    assert list(metrics["scores"]) == [
        "TF-IDF + logistic regression",
        "pretrained encoder, frozen, logistic regression",
        "pretrained encoder, all layers trained",
        "ULMFiT: language model fine-tuned on the texts",
    ]
    stages = [json.loads((tmp_path / f"demo/{name}_seed2018/stage.json").read_text()) for name in ("probe", "encoder")]
    assert [{epoch["phase"] for epoch in stage["epochs"]} for stage in stages] == [{"probe"}, {"probe", "all"}]
    frozen, whole = (metrics["scores"][name][0] for name in list(metrics["scores"])[1:3])
    assert frozen["loss"] != whole["loss"]


def test_the_encoder_is_the_one_of_the_installed_package_if_any(monkeypatch):
    monkeypatch.setattr(demo, "ENCODER_PACKAGE", "a_package_that_nobody_has")
    assert demo.installed_encoder() is None
    monkeypatch.setattr(demo, "ENCODER_PACKAGE", "joblib")
    assert demo.installed_encoder() == str(Path(joblib.__file__).parent / "model")


def test_the_network_from_scratch_is_as_large_as_the_pretrained_one(tiny_demo, tmp_path, builtin, monkeypatch):
    monkeypatch.setattr(demo, "QUICK_GIVEN", dataclasses.replace(demo.QUICK_GIVEN, ablated=True))
    run_demo(DemoSettings(output_dir=str(tmp_path / "demo"), encoder=None, labels_per_class=9))
    start, end = (builtin["awd-lstm-en"], tmp_path / "demo/scratch_1.0_seed2018")
    sizes = ("embedding_size", "hidden_size", "num_hidden_layers", "vocab_hash")
    configs = [json.loads((folder / "config.json").read_text()) for folder in (start, end)]
    assert [configs[0][name] for name in sizes] == [configs[1][name] for name in sizes]


def test_only_a_demonstration_without_a_model_pretrains():
    assert demo_size(DemoSettings()).pretraining is None
    assert demo_size(DemoSettings(full=True)).pretraining is None
    assert demo_size(DemoSettings(model=None)).pretraining == demo.QUICK.pretraining
    assert demo_size(DemoSettings(model=None, full=True)).seeds == 3


def test_tfidf_tells_apart_what_words_tell_apart():
    rows = {
        "text": [f"{word} alpha {number}" for number in range(6) for word in ("apple", "stone")],
        "label": [0, 1] * 6,
    }
    table = demo.Dataset.from_dict(rows).cast_column("label", ClassLabel(names=["fruit", "rock"]))
    scores = tfidf_scores(DemoTables(table, table, table), seed=0)
    assert scores == {"accuracy": 1.0, "macro_f1": 1.0, "n": 12}


def test_the_table_of_several_seeds_gives_mean_and_spread_and_puts_the_best_last():
    worse = [{"accuracy": 0.5, "macro_f1": 0.4}, {"accuracy": 0.7, "macro_f1": 0.6}]
    better = [{"accuracy": 0.9, "macro_f1": 0.8}, {"accuracy": 0.8, "macro_f1": 0.8}]
    lines = str(contest_table({"a": better, "b": worse})).splitlines()
    assert lines[2].split() == ["b", "0.600", "0.500", "-", "0.700", "0.500", "2"]
    assert lines[3].split() == ["a", "0.850", "0.800", "-", "0.900", "0.800", "2"]
    assert lines[4] == "from - to: lowest and highest seed"


def test_the_table_of_one_seed_gives_the_interval_of_its_test_rows():
    lines = str(contest_table({"a": [{"accuracy": 0.9, "macro_f1": 0.8, "n": 100}]})).splitlines()
    assert lines[2].split() == ["a", "0.900", "0.826", "-", "0.945", "0.800", "1"]  # Wilson, by hand
    assert lines[3] == "from - to: 95 % interval over the test paragraphs"
