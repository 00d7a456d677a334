"""Models in the layouts of fastai 1 and 0.7 are imported with the scores of torch's own modules."""

import json
import pickle

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.support.fastai_files import OLD_TOKENS, TOKENS, stored, weights_of
from ulmfit_pipe.settings.model_files import ImportFastaiSettings
from ulmfit_pipe.stages.artifacts import load_model, load_tokenizer
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.tools.fastai.import_fastai import import_fastai

LABELS = ["a", "b", "c", "d"]


@pytest.fixture
def importing(tmp_path):
    """Return a function that writes the two files, imports them, and gives the summary."""

    def run(state_dict, vocabulary, folder="out", **settings):
        torch.save(state_dict, tmp_path / "w.h5")
        (tmp_path / "itos.pkl").write_bytes(pickle.dumps(vocabulary, protocol=2))
        files = (str(tmp_path / "w.h5"), str(tmp_path / "itos.pkl"), str(tmp_path / folder))
        return import_fastai(ImportFastaiSettings(*files, **settings), say=str)

    return run


def torchs_language_model(*, hidden, layers, embedding=400, rows=11):
    """Build the published architecture of torch's own modules."""
    torch.manual_seed(5)
    sizes = [embedding, *[hidden] * (layers - 1), embedding]
    lstms = [nn.LSTM(inside, outside, batch_first=True) for inside, outside in zip(sizes, sizes[1:], strict=False)]
    embedded, decoder = nn.Embedding(rows, embedding), nn.Linear(embedding, rows)
    decoder.weight = embedded.weight
    return embedded, lstms, decoder


def names_of_0_7(embedded, lstms, decoder):
    """Name its weights as `fwd_wt103.h5` does."""
    weights = {"0.encoder.weight": embedded.weight, "0.encoder_with_dropout.embed.weight": embedded.weight}
    for layer, lstm in enumerate(lstms):
        stem = f"0.rnns.{layer}.module."
        weights |= {f"{stem}{part}": getattr(lstm, part) for part in ("weight_ih_l0", "bias_ih_l0", "bias_hh_l0")}
        weights[f"{stem}weight_hh_l0_raw"] = lstm.weight_hh_l0
    weights |= {"1.decoder.weight": decoder.weight, "1.decoder.bias": decoder.bias}
    return {name: value.data for name, value in weights.items()}


@pytest.mark.parametrize(
    ("hidden", "layers"),
    [(1150, 2), pytest.param(1150, 3, marks=pytest.mark.slow), pytest.param(1152, 3, marks=pytest.mark.slow)],
)
def test_the_published_widths_give_torchs_scores_under_the_names_of_fastai_0_7(importing, hidden, layers):
    embedded, lstms, decoder = torchs_language_model(hidden=hidden, layers=layers)
    found = importing(names_of_0_7(embedded, lstms, decoder), OLD_TOKENS)
    assert found.sizes == {"vocab_size": 14, "embedding_size": 400, "hidden_size": hidden, "num_hidden_layers": layers}
    old_ids = torch.tensor([[5, 2, 3, 6, 7], [0, 9, 2, 4, 3]])
    outputs = embedded(old_ids)
    for lstm in lstms:
        outputs, _ = lstm(outputs)
    expected = decoder(outputs)
    new_of_old = torch.tensor([0, 1, 9, 10, 5, 2, 7, 11, 12, 4, 13])  # where each of OLD_TOKENS went
    with torch.no_grad():
        logits = load_model(found.output_dir, AutoModelForCausalLM).eval()(new_of_old[old_ids]).logits
    kept = [old for old, token in enumerate(OLD_TOKENS) if token != "xxfake"]  # the filler's rows become one
    torch.testing.assert_close(logits[..., new_of_old[kept]], expected[..., kept], rtol=0, atol=1e-5)
    assert load_tokenizer(found.output_dir)("The film")["input_ids"] == [2, 8, 9, 10]


def older_classifier(layout):
    """The stored classifier with a head whose linear layers have biases, as fastai 1 or 0.7 names it; and that head."""
    torch.manual_seed(3)
    head = nn.Sequential(
        nn.BatchNorm1d(15), nn.Dropout(), nn.Linear(15, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 4)
    )
    for norm in (head[0], head[4]):
        norm.running_mean.uniform_(-0.1, 0.1)
        norm.running_var.uniform_(0.01, 0.1)
        norm.bias.data.uniform_(-1, 1)
    encoder = {k: v for k, v in weights_of(stored("classifier.npz")).items() if k.startswith("0.")}
    if (
        layout == "fastai 1"
    ):  # the inner module's copy of the recurrent weight, once dropped, stands beside the whole one
        copies = {f"0.module.rnns.{layer}.module.weight_hh_l0": torch.zeros(4, 4) for layer in range(3)}
        return {**encoder, **copies, **{f"1.layers.{k}": v for k, v in head.state_dict().items()}}, head.eval()
    encoder = {k.replace(".weight_hh_l0_raw", ".module.weight_hh_l0_raw"): v for k, v in encoder.items()}
    encoder = {k.replace("module.encoder_dp.emb", "encoder_with_dropout.embed"): v for k, v in encoder.items()}
    encoder = {k.replace("0.module.", "0."): v for k, v in encoder.items()}
    places = {"0": "0.bn", "2": "0.lin", "4": "1.bn", "6": "1.lin"}
    named = {f"{places[k[0]]}{k[1:]}": v for k, v in head.state_dict().items() if "tracked" not in k}
    return {**encoder, **{f"1.layers.{k}": v for k, v in named.items()}}, head.eval()


@pytest.mark.parametrize("layout", ["fastai 1", "fastai 0.7"])
def test_an_older_classifier_is_imported_with_the_scores_of_its_own_head(importing, layout):
    arrays = stored("classifier.npz")
    theirs, head = older_classifier(layout)
    found = importing(theirs, TOKENS, labels=LABELS)
    assert (found.kind, found.labels, found.sizes["head_hidden_size"]) == ("classifier", LABELS, 6)
    model = load_model(found.output_dir, AutoModelForSequenceClassification).eval()
    newer = importing(weights_of(arrays), TOKENS, folder="newer", labels=LABELS).output_dir
    pooled = []
    twin = load_model(newer, AutoModelForSequenceClassification).eval()
    twin.classifier.register_forward_hook(lambda module, given, scores: pooled.append(given[0]))
    for length in (5, 73, 200):
        ids = arrays[f"ids_{length}"].long()
        with torch.no_grad():
            torch.testing.assert_close(twin(ids).logits, arrays[f"logits_{length}"], rtol=0, atol=1e-5)
            torch.testing.assert_close(model(ids).logits, head(pooled.pop()), rtol=0, atol=1e-5)
    assert {*Predictor.load(found.output_dir).predict(["A good film"])[0]["scores"]} == {*LABELS}
    assert json.loads((found.output_dir / "stage.json").read_text())["kind"] == "classifier"
