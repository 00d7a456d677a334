"""Small random models, saved as the stages save them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ulmfit_pipe.data.text.tokenization import train_tokenizer, vocab_hash
from ulmfit_pipe.data.text.ulmfit_tokenizer import UlmfitTokenizer
from ulmfit_pipe.models import builtin_models
from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM, AwdLstmForSequenceClassification

SENTENCES = [
    "The film was dull, and its ending was duller.",
    "A warm and funny story about three brothers.",
    "Nobody expected the music to be this good!",
    "The plot goes nowhere for two long hours.",
    "It works; the actors seem to enjoy every minute.",
]


@pytest.fixture(scope="module", autouse=True)
def quick_training(quick_ends_of_phases, request) -> None:
    """Draw pictures only where they are looked at."""
    if request.path.name not in ("test_report.py", "test_show_filters.py"):
        request.getfixturevalue("blank_pictures")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> UlmfitTokenizer:
    """Return a subword tokenizer of a few sentences."""
    return train_tokenizer(SENTENCES * 4, vocab_size=120)


@pytest.fixture(scope="session")
def save_tiny_classifier(tiny_tokenizer) -> Callable[..., Path]:
    """Return a function that writes a random classifier folder, with any setting of its configuration changed."""

    def save(folder: Path, *, labels: tuple[str, ...] = ("bad", "fair", "good"), seed: int = 0, **settings) -> Path:
        torch.manual_seed(seed)
        config = tiny_config(
            tiny_tokenizer,
            id2label=dict(enumerate(labels)),
            label2id={name: index for index, name in enumerate(labels)},
            **{"problem_type": "single_label_classification", **settings},
        )
        model = AwdLstmForSequenceClassification(config)
        _normalize_head(model, tiny_tokenizer)
        model.save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def tiny_classifier_folder(tmp_path_factory, save_tiny_classifier) -> Path:
    """Return the folder of a random classifier with the labels bad, fair, good."""
    return save_tiny_classifier(tmp_path_factory.mktemp("models") / "classifier")


@pytest.fixture(scope="session")
def tiny_multi_label_folder(tmp_path_factory, save_tiny_classifier) -> Path:
    """Return the folder of a random classifier that gives any of funny, long, sad, warm."""
    return save_tiny_classifier(
        tmp_path_factory.mktemp("models") / "multi_label",
        labels=("funny", "long", "sad", "warm"),
        problem_type="multi_label_classification",
        thresholds=[0.3, 0.45, 0.5, 0.55],
    )


@pytest.fixture(scope="session")
def tiny_language_model_folder(tmp_path_factory, tiny_tokenizer) -> Path:
    """Return the folder of a random language model."""
    folder = tmp_path_factory.mktemp("models") / "language_model"
    torch.manual_seed(0)
    AwdLstmForCausalLM(tiny_config(tiny_tokenizer)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def builtin(tmp_path, monkeypatch, tiny_tokenizer) -> dict[str, Path]:
    """Put small random twins in the place of the built-in models, and return their folders by name."""
    pretrained = tmp_path / "package/models/pretrained"
    for seed, (name, direction) in enumerate([("awd-lstm-en", "forward"), ("awd-lstm-en-backward", "backward")]):
        torch.manual_seed(seed)
        AwdLstmForCausalLM(tiny_config(tiny_tokenizer, direction=direction)).save_pretrained(pretrained / name)
        tiny_tokenizer.save_pretrained(pretrained / name)
    monkeypatch.setattr(builtin_models, "PRETRAINED", pretrained)
    return builtin_models.builtin_models()


def _normalize_head(model: AwdLstmForSequenceClassification, tokenizer: UlmfitTokenizer) -> None:
    """Give the head's norms the statistics of the sentences: a fresh head scores every text nearly alike."""
    for block in model.classifier.blocks:
        block.norm.momentum = 1.0
    encoded = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        model.train()(encoded["input_ids"], attention_mask=encoded["attention_mask"])
    model.eval()


def tiny_config(tokenizer: UlmfitTokenizer, **settings) -> AwdLstmConfig:
    """Return a configuration of a few thousand weights that reads 11 tokens at a time."""
    sizes = {"embedding_size": 10, "hidden_size": 14, "num_hidden_layers": 2, "head_hidden_size": 6}
    windows = {"bptt": 11, "gradient_window": 33}
    known = {"vocab_size": len(tokenizer), "vocab_hash": vocab_hash(tokenizer)}
    return AwdLstmConfig(**{**sizes, **windows, **known, **settings})
