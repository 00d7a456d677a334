"""Both text stages on models of many architectures: what they end in is plain transformers and scores alike there."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from tests.support.small_transformers import ARCHITECTURES
from tests.support.tiny_runs import heard, reviews, table, texts_of
from tests.support.tiny_transformers import decoder_tokenizer, encoder_tokenizer
from ulmfit_pipe.settings.text import ClassifierSettings, LanguageModelSettings
from ulmfit_pipe.text.classifier import build_classifier_learner, train_classifier
from ulmfit_pipe.text.language_model import train_language_model
from ulmfit_pipe.text.predict.predictor import Predictor

PADDED = {"max_position_embeddings": 66}  # their positions begin behind the padding id's
MORE = {
    "roberta": PADDED,
    "xlm-roberta": PADDED,
    "camembert": PADDED,
    "mpnet": PADDED,
    "deberta-v2": {"position_buckets": 8},
    "mobilebert": {"initializer_range": 0.2},  # its norms do not normalize
    "modernbert": {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
}
ENCODERS = [*MORE, "albert", "electra", "deberta", "roformer"]
DECODERS = "gpt-neo gpt-neox opt mistral qwen2 qwen3 gemma gemma3 phi bloom falcon stablelm".split()
QUICK = {"deberta-v2", "qwen3"}  # the others are slow together
TEXTS = [*(text for text, _ in reviews(3, seed=3)), "warm"]


def save_model(name, folder):
    """Write the model without a head, as many come, with a tokenizer of the reviews' words."""
    tokenizer = encoder_tokenizer() if name in ENCODERS else decoder_tokenizer()
    architecture = ARCHITECTURES[name]
    ends = {} if tokenizer.pad_token else {"bos_token_id": 0, "eos_token_id": 0}
    length = {"max_position_embeddings": 64} if "max_position_embeddings" in architecture.sizes else {}
    settings = {"vocab_size": len(tokenizer), "initializer_range": 0.4, **ends, **length, **MORE.get(name, {})}
    torch.manual_seed(0)
    AutoModel.from_config(architecture.config(**settings)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in [*ENCODERS, *DECODERS]]
)
def test_a_tuned_language_model_becomes_a_classifier_that_plain_transformers_scores_alike(name, tmp_path):
    model, (said, context) = save_model(name, tmp_path / "model"), heard()
    rows, held_out = table(reviews(12)), table(reviews(6, seed=7))
    texts = texts_of(*(text for text, _ in reviews(20)))
    tuned = train_language_model(
        texts,
        texts,
        model=model,
        output_dir=tmp_path / "lm",
        settings=LanguageModelSettings(epochs=1, batch_size=8, block_size=24, plan="gradual", lr=1e-3),
        context=context,
    )
    record = json.loads((tuned.path / "stage.json").read_text())
    assert len(record["epochs"]) == len(record["groups"]) >= 3  # one a phase
    guessed = "masked ones are guessed" if name in ENCODERS else "the next one is guessed"
    assert any(guessed in line for line in said)

    given = {"model": str(tuned.path), "settings": ClassifierSettings(epochs_per_phase=1, final_epochs=1, batch_size=8)}
    parts = build_classifier_learner(rows, held_out, context=context, **given)
    stored = load_file(tuned.path / "model.safetensors")
    for group in parts.learner.layer_groups[:-1]:
        for parameter_name, parameter in group.parameters:
            assert torch.equal(parameter, stored[parameter_name]), parameter_name
    classifier = train_classifier(rows, held_out, output_dir=tmp_path / "classifier", context=context, **given)

    ours = torch.tensor([list(row["scores"].values()) for row in Predictor.load(classifier.path).predict(TEXTS)])
    assert ours[:, 0].max() - ours[:, 0].min() > 1e-3  # or agreeing to 1e-5 would say little
    torch.testing.assert_close(plain_scores(classifier.path), ours, atol=1e-5, rtol=0)


@torch.no_grad()
def plain_scores(folder):
    """Score the texts with transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert type(model).__module__.startswith("transformers.")
    return model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.softmax(-1)
