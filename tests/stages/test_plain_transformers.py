"""What is ours is loaded by plain transformers with the code in its folder, to the same scores; unasked it is refused.

One process, in which ulmfit_pipe cannot be imported, tries every way; the tests read what it found.
"""

import filecmp
import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
)

from tests.support.tiny_backbones import tiny_classifier, tiny_images
from ulmfit_pipe import Predictor
from ulmfit_pipe.data.text.tokenization import train_tokenizer
from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM
from ulmfit_pipe.models.heads.pooling_classifier import PoolingClassifierConfig, PoolingForSequenceClassification
from ulmfit_pipe.stages.artifacts import load_model

TEXTS = [
    "The film was DULL, and its ending was duller.",
    "It doesn't <br /> work&amp;that's why I'd go... sooooo good!!!! u.s.a. xxpad 12km/h",
    "A warm and funny story about three brothers. " * 20,  # several windows
]
IDS = [[5, 9, 7, 3, 4, 8], [6, 4, 5, 0, 0, 0]]  # 0 is padding
ENCODERS = ("concat", "mean")

PROGRAM = """
import json, sys
sys.modules["ulmfit_pipe"] = None
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageClassification
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, PreTrainedTokenizerFast
from transformers import pipeline
place = sys.argv[1]
given = json.load(open(f"{place}/given.json"))
plain, trusting = {"trust_remote_code": False}, {"trust_remote_code": True}
found = {}
ways = {
    "config": (AutoConfig, "language_model", plain),
    "language model": (AutoModelForCausalLM, "language_model", plain),
    "classifier": (AutoModelForSequenceClassification, "classifier", plain),
    "pooling classifier": (AutoModelForSequenceClassification, "concat", plain),
    "image classifier": (AutoModelForImageClassification, "images", plain),
    "tokenizer of a classifier": (AutoTokenizer, "classifier", plain),
    "tokenizer, asking": (AutoTokenizer, "tokenizer", {}),
    "tokenizer of another model": (AutoTokenizer, "tokenizer", {"config": BertConfig()}),
    "tokenizer as a fast one": (PreTrainedTokenizerFast, "tokenizer", {}),
    "a backbone with code of its own": (AutoModelForSequenceClassification, "foreign", trusting),
}
for name, (loader, folder, settings) in ways.items():
    try:
        loader.from_pretrained(f"{place}/{folder}", **settings)
        found[name] = "LOADED"
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"

def load(kind, folder):
    return kind.from_pretrained(f"{place}/{folder}", **trusting)

@torch.no_grad()
def logits(model, *inputs, **named):
    return model.eval()(*inputs, **named).logits.tolist()

tokenizer, model = load(AutoTokenizer, "classifier"), load(AutoModelForSequenceClassification, "classifier")
found["ids"] = tokenizer(given["texts"])["input_ids"]
found["text"] = tokenizer.decode(found["ids"][0], skip_special_tokens=True)
found["logits"] = logits(model, **tokenizer(given["texts"], padding=True, return_tensors="pt"))
scores = pipeline("text-classification", model=f"{place}/classifier", top_k=None, **trusting)(given["texts"])
found["scores"] = [{entry["label"]: entry["score"] for entry in row} for row in scores]
found["backbone"] = type(load(AutoModel, "classifier")).__name__
words = load(AutoTokenizer, "tokenizer")
found["word ids"] = words(given["texts"])["input_ids"]
found["language model logits"] = logits(load(AutoModelForCausalLM, "language_model"), torch.tensor(given["ids"]))
ids, mask = torch.tensor(given["ids"]), torch.tensor(given["ids"]).ne(0).long()
for name in given["encoders"]:
    classifier = load(AutoModelForSequenceClassification, name)
    found[name] = logits(classifier, input_ids=ids, attention_mask=mask)
found["images"] = logits(load(AutoModelForImageClassification, "images"), torch.tensor(given["images"]))
model.save_pretrained(f"{place}/again")
tokenizer.save_pretrained(f"{place}/again")
found["modules"] = sorted({type(part).__module__.split(".")[0] for part in (tokenizer, model, model.config)})
json.dump(found, open(f"{place}/found.json", "w"))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, save_tiny_classifier):
    """Folders of everything that is ours, and what the process without ulmfit_pipe found in them."""
    place = tmp_path_factory.mktemp("saved")
    save_tiny_classifier(place / "classifier")
    words = train_tokenizer(TEXTS * 9, kind="word", vocab_size=70)
    words.save_pretrained(place / "tokenizer")
    torch.manual_seed(0)
    sizes = {"embedding_size": 5, "hidden_size": 7, "direction": "backward"}
    AwdLstmForCausalLM(AwdLstmConfig(vocab_size=len(words), **sizes)).save_pretrained(place / "language_model")
    bert = BertConfig(vocab_size=11, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    for pooling in ENCODERS:
        config = PoolingClassifierConfig(encoder_config=bert, pooling=pooling, normalize=pooling == "mean")
        PoolingForSequenceClassification(config).save_pretrained(place / pooling)
    config.save_pretrained(place / "foreign")
    changed = (place / "foreign/config.json").read_text().replace('"model_type": "bert"', '"model_type": "theirs"')
    (place / "foreign/config.json").write_text(changed)
    tiny_classifier("resnet").save_pretrained(place / "images")
    given = {"texts": TEXTS, "ids": IDS, "encoders": ENCODERS, "images": tiny_images("resnet").tolist()}
    (place / "given.json").write_text(json.dumps(given))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HF_MODULES_CACHE"] = str(place / "modules")
    command = [sys.executable, "-c", PROGRAM, str(place)]
    subprocess.run(command, stdin=subprocess.DEVNULL, cwd=place, env=environment, check=True)
    return place


@pytest.fixture(scope="module")
def found(place):
    return json.loads((place / "found.json").read_text())


@torch.no_grad()
def logits_of(kind, folder, *inputs, **named):
    return load_model(folder, kind).eval()(*inputs, **named).logits


def near(found, expected):
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=0)


def test_nothing_of_ours_is_loaded_where_its_code_may_not_run(found):
    refused = {name: line for name, line in found.items() if isinstance(line, str) and ": " in line}
    assert {name: line.split(":")[0] for name, line in refused.items()} == dict.fromkeys(refused, "ValueError")
    assert len(refused) == 10
    for name in ("config", "language model", "classifier", "pooling classifier", "image classifier"):
        assert "contains custom code which must be executed" in refused[name], name


def test_a_backbone_whose_code_is_not_in_the_folder_is_named(found):
    words = "ValueError: the classifier's backbone is a 'theirs' model, which transformers does not know and whose code"
    assert found["a backbone with code of its own"].startswith(words)


def test_tokens_are_ours(found, place):
    for name, folder in (("ids", "classifier"), ("word ids", "tokenizer")):
        tokenizer = AutoTokenizer.from_pretrained(place / folder)
        assert found[name] == tokenizer(TEXTS)["input_ids"] == tokenizer.encode_documents(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(place / "classifier")
    assert found["text"] == tokenizer.decode(found["ids"][0], skip_special_tokens=True)
    assert found["text"].startswith("The film was DULL")


def test_a_classifier_gives_our_scores(found, place):
    encoded = AutoTokenizer.from_pretrained(place / "classifier")(TEXTS, padding=True, return_tensors="pt")
    near(found["logits"], logits_of(AutoModelForSequenceClassification, place / "classifier", **encoded))
    expected = [row["scores"] for row in Predictor.load(place / "classifier").predict(TEXTS)]
    assert [row.keys() for row in found["scores"]] == [{"bad", "fair", "good"}] * 3
    near(
        [[row[name] for name in expected[0]] for row in found["scores"]],
        torch.tensor([[*row.values()] for row in expected]),
    )
    assert abs(expected[0]["bad"] - expected[1]["bad"]) > 0.01  # the texts differ
    assert found["backbone"] == "AwdLstmModel"


def test_other_models_give_our_logits(found, place):
    ids = torch.tensor(IDS)
    near(found["language model logits"], logits_of(AutoModelForCausalLM, place / "language_model", ids))
    for name in ENCODERS:
        expected = logits_of(AutoModelForSequenceClassification, place / name, ids, attention_mask=ids.ne(0).long())
        near(found[name], expected)
    near(found["images"], logits_of(AutoModelForImageClassification, place / "images", tiny_images("resnet")))


def test_a_folder_saved_there_is_as_complete(found, place):
    assert found["modules"] == ["transformers_modules"]
    again = filecmp.dircmp(place / "classifier", place / "again")
    assert (again.left_only, again.right_only, again.diff_files) == ([], [], ["tokenizer_config.json"])
    assert Predictor.load(place / "again").predict(TEXTS) == Predictor.load(place / "classifier").predict(TEXTS)


def test_where_the_package_is_imported_nothing_is_asked_and_no_code_of_a_folder_runs(place, tmp_path):
    for folder, kind in {
        "classifier": AutoModelForSequenceClassification,
        "language_model": AutoModelForCausalLM,
        "concat": AutoModelForSequenceClassification,
        "images": AutoModelForImageClassification,
    }.items():
        assert list((place / folder).glob("*.py"))
        for file in (place / folder).glob("*.py"):
            file.write_text("raise RuntimeError('the code of the folder was run')\n")
        for trust in ({}, {"trust_remote_code": False}, {"trust_remote_code": True}):
            model = kind.from_pretrained(place / folder, **trust)
            assert {type(model).__module__.split(".")[0], type(model.config).__module__.split(".")[0]} == {
                "ulmfit_pipe"
            }
    for trust in ({}, {"trust_remote_code": True}):
        assert type(AutoTokenizer.from_pretrained(place / "classifier", **trust)).__module__.startswith("ulmfit_pipe.")
    for trusted in (False, True):
        assert len(Predictor.load(place / "classifier", trust_remote_code=trusted).predict(TEXTS)) == 3
