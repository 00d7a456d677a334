"""The head that starts from logistic regression on frozen features, for every kind of head, in whole stages too."""

import dataclasses
import json
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.tiny_runs import FILLERS, heard, multi_label_table, reviews, table
from tests.support.tiny_transformers import SAVED, save_bert
from ulmfit_pipe.models.heads.classifier_heads import PoolingClassifierHead
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages import stage
from ulmfit_pipe.stages.artifacts import ArtifactError, read_stage
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.text import classifier
from ulmfit_pipe.text import plans as classifier_plan
from ulmfit_pipe.text.classifier import build_classifier_learner, train_classifier
from ulmfit_pipe.text.head_probe import ProbeError, find_head, frozen_features, set_head, start_head
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.training.linear_probe import Features, LinearProbe, fit_probe

TRAIN, VALIDATION = table(reviews(24)), table(reviews(10, seed=7))
LONG = table([*reviews(22), (" ".join(FILLERS * 5) + " dull", "bad"), (" ".join(FILLERS * 4) + " warm", "good")])
AUTO = ClassifierSettings(final_epochs=2, batch_size=8, rest_lr=1e-3)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Return the folders of a BERT, a DistilBERT and a GPT-2."""
    home = tmp_path_factory.mktemp("probed")
    return {kind: save(home / kind) for kind, save in SAVED.items()}


def build(model, train=TRAIN, **settings):
    numbers = ClassifierSettings(**{"plan": "probe", "batch_size": 8, **settings})
    return build_classifier_learner(train, VALIDATION, model=str(model), settings=numbers, context=heard()[1])


def probed(parts):
    """Return the head's features, and the probe that was fitted on them."""
    head, accelerator = find_head(parts.network, len(parts.label_names)), parts.learner.accelerator
    features = frozen_features(parts.learner.model, head, parts.learner.task.train_batches, accelerator=accelerator)
    bias = getattr(head, "bias", True) is not None
    alone = not isinstance(head, torch.nn.Linear)
    return head, features, fit_probe(features, num_labels=2, each_alone=alone, bias=bias, seed=0)


def logits_of(parts):
    """Return what the network scores every training text, in the table's order."""
    parts.learner.model.eval()
    found = {}
    for batch in parts.learner.task.train_batches:
        rows = batch.pop("row")
        batch.pop("labels")
        with torch.no_grad():
            logits = parts.learner.model(**batch).logits
        found.update(zip(rows.tolist(), logits, strict=True))
    return torch.stack([found[row] for row in range(len(found))]).double().numpy()


@pytest.mark.parametrize("kind", list(SAVED))
@pytest.mark.parametrize("head", ["own", "concat-pooling", "mean-pooling"])
def test_every_head_gives_the_probes_scores_once_it_is_set(pretrained, kind, head):
    parts = build(pretrained[kind], head=head)
    part, features, probe = probed(parts)
    assert features.labels.tolist() == TRAIN["label"][:]
    set_head(part, probe, features)
    np.testing.assert_allclose(logits_of(parts), features.values @ probe.weight.T + probe.bias, atol=1e-3)


def test_the_two_blocks_of_an_awd_lstm_give_the_probes_scores(tiny_language_model_folder):
    parts = build(tiny_language_model_folder)
    part, features, probe = probed(parts)
    set_head(part, probe, features)
    np.testing.assert_allclose(logits_of(parts), features.values @ probe.weight.T + probe.bias, atol=1e-3)


def test_two_blocks_hold_as_many_directions_as_they_have_pairs_of_hidden_units():
    random = np.random.default_rng(0)
    x = (0.01 * random.normal(size=(60, 30)) + 0.3).astype(np.float32)
    features = Features(x, np.zeros(60, dtype=int), seconds=1.0)
    head = PoolingClassifierHead(30, 50, 30, dropout=0.1, hidden_dropout=0.1)  # 24 pairs and a unit for the bias
    for directions, alike in ((15, 1.0 - 1e-6), (30, 0.95)):
        weight = 100 * random.normal(size=(directions, 30)).repeat(30 // directions, axis=0)
        probe = LinearProbe(weight, random.normal(size=30), strength=1.0, held_out=None)
        set_head(head, probe, features)
        with torch.no_grad():
            scores = head.eval()(torch.from_numpy(x)).double().numpy()
            at_once = head.train()(torch.from_numpy(x)).double().numpy()  # with dropout, by the batch's statistics
        wanted = x.astype(float) @ weight.T + probe.bias
        assert np.corrcoef(scores.ravel(), wanted.ravel())[0, 1] > alike
        assert np.corrcoef(at_once.ravel(), wanted.ravel())[0, 1] > 0.8
        if directions < 24:
            np.testing.assert_allclose(scores, wanted, atol=1e-3)


def test_windows_are_averaged_as_their_scores_are(pretrained):
    parts = build(pretrained["bert"], LONG, long_documents="windows", window_length=16)
    part, features, probe = probed(parts)
    assert len(features.labels) == 24
    set_head(part, probe, features)
    np.testing.assert_allclose(logits_of(parts), features.values @ probe.weight.T + probe.bias, atol=1e-3)


def test_a_head_that_one_vector_does_not_explain_is_refused(pretrained):
    parts = build(pretrained["bert"])

    class Twice(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, **inputs):
            output = self.network(**inputs)
            output.logits = output.logits * 2
            return output

    head = find_head(parts.network, 2)
    batches, accelerator = parts.learner.task.train_batches, parts.learner.accelerator
    with pytest.raises(ProbeError, match="the scores are not the output of its last layer for one vector per text"):
        frozen_features(Twice(parts.network), head, batches, accelerator=accelerator)
    with pytest.raises(ProbeError, match="a Linear has no linear layer with 3 outputs"):
        find_head(torch.nn.Linear(4, 5), 3)


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_text_that_would_take_longer_than_there_is_time_is_skipped_and_counted(pretrained, place):
    parts = build(pretrained["bert"])
    head, accelerator = find_head(parts.network, 2), parts.learner.accelerator
    batches = list(parts.learner.task.train_batches)
    ids = torch.zeros(1, 1, dtype=torch.int64).expand(2, 10**12)  # years of reading, and no memory
    batches.insert(place, {"input_ids": ids, "labels": torch.zeros(2), "row": torch.tensor([90, 91])})
    until = time.monotonic() + 600
    found = frozen_features(parts.learner.model, head, batches, accelerator=accelerator, until=until)
    assert (len(found.labels), found.skipped) == (24, 2)
    assert found.skipped_seconds > 600


def test_a_plan_that_is_the_probe_trains_nothing_else_and_reports_its_folds(pretrained, tmp_path):
    said, context = heard()
    result = train_classifier(
        TRAIN,
        VALIDATION,
        model=str(pretrained["bert"]),
        output_dir=tmp_path / "probe",
        settings=ClassifierSettings(plan="probe"),
        context=context,
    )
    stored, after = load_file(pretrained["bert"] / "model.safetensors"), load_file(tmp_path / "probe/model.safetensors")
    assert all(torch.equal(after[f"bert.{name}"], value) for name, value in stored.items() if "pooler" not in name)
    record = read_stage(tmp_path / "probe")
    assert [epoch["phase"] for epoch in record["epochs"]] == ["probe"]
    assert record["best"] == {"phase": "probe", "epoch": 0}
    assert record["probe"]["rows"] == record["probe"]["held_out"]["rows"] == 24
    assert record["epochs"][0]["metrics"]["accuracy"] == result.metrics["accuracy"]
    (line,) = [line for line in said if line.startswith("probe: ")]
    assert "of 24 texts; cross-validated accuracy" in line
    assert Predictor.load(tmp_path / "probe").score(VALIDATION) == result.metrics


def test_auto_trains_all_groups_from_the_probe_and_keeps_it_where_that_is_no_better(pretrained, tmp_path):
    said, context = heard()
    ruinous = dataclasses.replace(AUTO, rest_lr=30.0)
    result = train_classifier(
        TRAIN,
        VALIDATION,
        model=str(pretrained["bert"]),
        output_dir=tmp_path / "auto",
        settings=ruinous,
        context=context,
    )
    record = read_stage(tmp_path / "auto")
    assert [(epoch["phase"], epoch["epoch"]) for epoch in record["epochs"]] == [("probe", 0), ("all", 0), ("all", 1)]
    assert record["best"] == {"phase": "probe", "epoch": 0}
    assert result.metrics["accuracy"] == record["epochs"][0]["metrics"]["accuracy"]
    assert "no epoch with unfrozen layers was better on the validation rows, so the probe is what is kept" in said


def test_without_validation_rows_the_last_epoch_is_kept(pretrained, tmp_path):
    result = train_classifier(
        TRAIN, None, model=str(pretrained["bert"]), output_dir=tmp_path / "last", settings=AUTO, context=heard()[1]
    )
    record = read_stage(tmp_path / "last")
    assert (result.metrics, record["best"]) == ({}, None)
    assert record["identity"]["settings"]["keep"] == "last"


def test_several_labels_a_row_start_from_a_regression_each(pretrained):
    train = multi_label_table(40)
    parts = build_classifier_learner(
        train,
        None,
        model=str(pretrained["bert"]),
        settings=ClassifierSettings(plan="probe", batch_size=8, head="mean-pooling"),
        context=heard()[1],
    )
    found = start_head(parts.learner, parts.network, context=heard()[1], num_labels=3, rows=40)
    assert found.start.metrics == {}
    targets = np.array([[label in row for label in range(3)] for row in train["label"]])
    given = 1 / (1 + np.exp(-logits_of(parts)))
    loss = -np.log(np.where(targets, given, 1 - given)).sum(1).mean()
    assert found.start.train_loss == pytest.approx(loss, rel=1e-4)
    assert loss < 3 * np.log(2) - 0.2  # what guessing gives, with a margin


def test_a_time_limit_that_leaves_no_epoch_ends_with_the_probe(pretrained, tmp_path):
    said, context = heard()
    context.deadline = time.monotonic() - 1
    train_classifier(
        TRAIN, None, model=str(pretrained["bert"]), output_dir=tmp_path / "short", settings=AUTO, context=context
    )
    assert "max_seconds leave no time for an epoch of training, so nothing is unfrozen: the probe is the result" in said
    assert [epoch["phase"] for epoch in read_stage(tmp_path / "short")["epochs"]] == ["probe"]


# ---- whether unfreezing pays, for few rows of an AWD-LSTM


def fold_scores(frozen, trained, metric="accuracy"):
    return classifier.FoldScores(metric, frozen, trained, rows=24)


@pytest.mark.parametrize(
    ("found", "phases", "line"),
    [
        (fold_scores(0.75, 0.5), {"probe"}, "so nothing is unfrozen: the probe is the result"),
        (fold_scores(0.75, 0.75), {"probe"}, "so nothing is unfrozen: the probe is the result"),
        (fold_scores(0.75, 0.76), {"probe", "all"}, "so all layers are trained"),
        (fold_scores(0.75, 0.5, "loss"), {"probe", "all"}, "so all layers are trained"),
        (None, {"probe"}, "too few rows per label for 3 folds, so nothing is unfrozen: the probe is the result"),
    ],
)
def test_few_rows_of_an_awd_lstm_are_unfrozen_for_where_that_is_better_on_held_out_folds(
    tiny_language_model_folder, tmp_path, monkeypatch, found, phases, line
):
    monkeypatch.setattr(classifier, "scores_on_folds", lambda *_tables, **_numbers: found)
    said, context = heard()
    train_classifier(TRAIN, None, model=str(tiny_language_model_folder), output_dir=tmp_path / "out", context=context)
    record = read_stage(tmp_path / "out")
    assert {epoch["phase"] for epoch in record["epochs"]} == phases
    assert any(words.endswith(line) for words in said)
    if found is not None:
        assert record["probe"]["folds"]["trained"] == found.trained
        assert (
            f"on 3 held-out folds of the 24 training rows: 0.750 with the frozen network, {found.trained:.3f}"
            in "".join(said)
        )


def test_the_comparison_on_folds_leaves_no_trace_in_what_is_trained(tiny_language_model_folder, tmp_path, monkeypatch):
    scores = []
    compare = classifier.scores_on_folds

    def seen(*tables, **numbers):
        scores.append(compare(*tables, **numbers))
        return dataclasses.replace(scores[-1], frozen=0.0, trained=1.0)

    monkeypatch.setattr(classifier, "scores_on_folds", seen)
    monkeypatch.setattr(classifier_plan, "AUTO_STEPS", 1)
    for name, settings in (("auto", None), ("given", ClassifierSettings(plan="probe-full", keep="last"))):
        train_classifier(
            TRAIN,
            None,
            model=str(tiny_language_model_folder),
            output_dir=tmp_path / name,
            settings=settings,
            context=heard()[1],
        )
    (found,) = scores
    assert (found.metric, found.rows) == ("accuracy", 24)
    for share in (found.frozen, found.trained):
        assert 0 <= share <= 1
        assert share * 24 == pytest.approx(round(share * 24))
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("auto", "given"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_result_that_folds_decided_is_not_the_one_of_a_plan_asked_for(
    tiny_language_model_folder, tmp_path, monkeypatch
):
    probe_wins = classifier.FoldScores("accuracy", frozen=1.0, trained=0.0, rows=24)
    monkeypatch.setattr(classifier, "scores_on_folds", lambda *_tables, **_numbers: probe_wins)
    monkeypatch.setattr(classifier_plan, "AUTO_STEPS", 1)
    model, folder = str(tiny_language_model_folder), tmp_path / "out"
    results = [
        train_classifier(TRAIN, None, model=model, output_dir=folder, context=heard()[1]) for _ in ("first", "again")
    ]
    assert [result.skipped for result in results] == [False, True]
    asked_for = ClassifierSettings(plan="probe-full", keep="last")
    with pytest.raises(ArtifactError, match=r"finished classifier stage of another run; it differs in settings\.plan"):
        train_classifier(TRAIN, None, model=model, output_dir=folder, settings=asked_for, context=heard()[1])


def test_a_time_limit_without_room_for_folds_keeps_the_probe(tiny_language_model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "possible_epochs", lambda *_numbers: 30.0)  # 25 fit, three times 25 do not
    said, context = heard()
    train_classifier(TRAIN, None, model=str(tiny_language_model_folder), output_dir=tmp_path / "out", context=context)
    assert "max_seconds leave no time for held-out folds, so nothing is unfrozen: the probe is the result" in said


def test_a_label_with_a_row_for_each_fold_is_needed(tiny_language_model_folder):
    few = TRAIN.select([0, 1, 2, 3])
    assert sorted(few["label"]) == [0, 0, 1, 1]
    model, settings = str(tiny_language_model_folder), ClassifierSettings(plan="probe-full")
    context = heard()[1].for_model("awd_lstm")
    assert classifier.scores_on_folds(few, model=model, settings=settings, context=context) is None


def sentence_encoder(folder, **config):
    """Write a BERT as sentence-transformers saves one: mean, normalized, 12 tokens, a prompt."""
    save_bert(folder)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [
        {"path": f"{number}_{kind}" if number else "", "type": f"st.{kind}"} for number, kind in enumerate(kinds)
    ]
    (folder / "1_Pooling").mkdir()
    contents = {
        "modules.json": modules,
        "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": 12, "do_lower_case": True},
        "config_sentence_transformers.json": {"prompts": {"classify": "film : "}, "default_prompt_name": "classify"},
        **config,
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def test_a_sentence_encoder_is_read_as_it_was_made_in_training_and_prediction(tmp_path):
    said, context = heard()
    folder = sentence_encoder(tmp_path / "encoder")
    train_classifier(
        TRAIN,
        None,
        model=str(folder),
        output_dir=tmp_path / "out",
        settings=ClassifierSettings(plan="probe"),
        context=context,
    )
    line = "read as it was made: mean of its tokens, normalized, texts up to 12 tokens, with the prompt 'film : '"
    assert any(line in words for words in said)
    predictor = Predictor.load(tmp_path / "out")
    config = predictor.models[0].config
    assert (config.pooling, config.normalize, predictor.reading.max_length) == ("mean", True, 12)
    ids = predictor.tokenizer("DULL music")["input_ids"]
    assert predictor.tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", "film", "[UNK]", "dull", "music", "[SEP]"]
    network = predictor.models[0]
    inputs = predictor.tokenizer("the music", return_tensors="pt")
    with torch.no_grad():
        outputs = network.backbone(input_ids=inputs["input_ids"]).last_hidden_state
        vector = torch.nn.functional.normalize(outputs.mean(1), dim=-1)
        torch.testing.assert_close(network.classifier.linear(vector), network(**inputs.data).logits)


def test_more_of_a_text_is_read_where_it_is_asked_for(tmp_path):
    folder = sentence_encoder(tmp_path / "encoder")
    parts = build(folder, LONG, max_length=40)
    assert max(batch["input_ids"].shape[1] for batch in parts.learner.task.train_batches) == 40


def test_a_sentence_encoder_whose_pooling_is_not_known_names_the_heads_that_are(tmp_path):
    folder = sentence_encoder(tmp_path / "encoder", **{"1_Pooling/config.json": {"pooling_mode": "weightedmean"}})
    with pytest.raises(ValueError, match=r"not known here \(it pools by weightedmean\); set head to 'mean-pooling'"):
        build(folder)
    assert build(folder, head="mean-pooling").network.config.pooling == "mean"


def test_a_training_that_was_killed_resumes_with_the_epochs_that_its_time_allowed(pretrained, tmp_path, monkeypatch):
    def train(folder, epochs, **changes):
        context = RunContext(checkpoint_seconds=0.0, say=lambda _line: None, **changes)
        monkeypatch.setattr(classifier, "possible_epochs", lambda *_: epochs)
        return train_classifier(
            TRAIN, None, model=str(pretrained["bert"]), output_dir=folder, settings=AUTO, context=context
        )

    class KilledError(RuntimeError):
        """Ends a training as a kill would."""

    def killed(*_arguments, **_named):
        raise KilledError

    train(tmp_path / "whole", 1.0)
    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(stage, "save_training", killed)
        train(tmp_path / "cut", 1.0)
    train(tmp_path / "cut", 2.0, resume=True)  # there is more time now, but the schedule was made for one epoch
    assert len(read_stage(tmp_path / "cut")["epochs"]) == 2
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(cut[name], value) for name, value in whole.items())
