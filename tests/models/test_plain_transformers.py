"""What is ours is refused by transformers alone, in words that say what to import; never read as something else."""

import json
import subprocess
import sys

import pytest
from transformers import BertConfig

from ulmfit_pipe.data.text.tokenization import train_tokenizer
from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM, AwdLstmForSequenceClassification
from ulmfit_pipe.models.heads.pooling_classifier import PoolingClassifierConfig, PoolingForSequenceClassification

PROGRAM = """
import json, sys
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers import BertConfig, PreTrainedTokenizerFast
place = sys.argv[1]
plain, trusting = {"trust_remote_code": False}, {"trust_remote_code": True}
ways = {
    "config": (AutoConfig, "language_model", plain),
    "config, trusting": (AutoConfig, "language_model", trusting),
    "language model": (AutoModelForCausalLM, "language_model", plain),
    "language model, trusting": (AutoModelForCausalLM, "language_model", trusting),
    "classifier": (AutoModelForSequenceClassification, "classifier", plain),
    "pooling classifier": (AutoModelForSequenceClassification, "pooling", plain),
    "tokenizer of a classifier": (AutoTokenizer, "classifier", plain),
    "tokenizer, asking": (AutoTokenizer, "tokenizer", {}),
    "tokenizer, trusting": (AutoTokenizer, "tokenizer", trusting),
    "tokenizer of another model": (AutoTokenizer, "tokenizer", {"config": BertConfig()}),
    "tokenizer as a fast one": (PreTrainedTokenizerFast, "tokenizer", {}),
}
found = {}
for name, (loader, folder, settings) in ways.items():
    try:
        loader.from_pretrained(f"{place}/{folder}", **settings)
        found[name] = "LOADED"
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
json.dump(found, open(f"{place}/found.json", "w"))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one new process, which has not imported ulmfit_pipe, says to every way to load what is ours."""
    place = tmp_path_factory.mktemp("saved")
    tokenizer = train_tokenizer(["one two three four"] * 9, kind="word", vocab_size=50)
    config = AwdLstmConfig(vocab_size=len(tokenizer), embedding_size=5, hidden_size=7)
    AwdLstmForCausalLM(config).save_pretrained(place / "language_model")
    AwdLstmForSequenceClassification(config).save_pretrained(place / "classifier")
    bert = BertConfig(vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    PoolingForSequenceClassification(PoolingClassifierConfig(encoder_config=bert)).save_pretrained(place / "pooling")
    for folder in ("classifier", "tokenizer"):
        tokenizer.save_pretrained(place / folder)
    command = [sys.executable, "-c", PROGRAM, str(place)]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return json.loads((place / "found.json").read_text())


def test_plain_transformers_loads_nothing_of_ours(found):
    assert len(found) == 11
    assert [name for name, line in found.items() if line == "LOADED"] == []


def test_a_model_names_what_to_import(found):
    for name in ("config, trusting", "language model, trusting"):
        assert "import_ulmfit_pipe_stages_first" in found[name]
        assert found[name].startswith(("ValueError: ", "OSError: "))


def test_a_tokenizer_is_refused_in_every_way(found):
    kinds = {name: line.split(":")[0] for name, line in found.items() if name.startswith("tokenizer,")}
    assert kinds == {"tokenizer, asking": "ValueError", "tokenizer, trusting": "OSError"}
    for name in ("tokenizer of another model", "tokenizer as a fast one"):
        assert found[name].startswith("ValueError: ")
