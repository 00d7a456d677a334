"""Our folders become fastai's files; tests/reference/check_fastai_round_trip.py proves that fastai loads them."""

import json
import pickle

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig

from tests.support.fastai_files import OLD_TOKENS, REFERENCE, stored, weights_of
from ulmfit_pipe.data.text.text_rules import SPECIAL_TOKENS
from ulmfit_pipe.data.text.tokenization import build_word_tokenizer, tokens_in_order, vocab_hash
from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM
from ulmfit_pipe.settings.model_files import ExportFastaiSettings, ImportFastaiSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, load_model, load_tokenizer
from ulmfit_pipe.tools.fastai.export_fastai import export_fastai
from ulmfit_pipe.tools.fastai.import_fastai import import_fastai
from ulmfit_pipe.tools.fastai.safe_pickles import read_vocabulary, read_weights

LABELS = ["a", "b", "c", "d"]


def export(model, folder, **settings):
    return export_fastai(ExportFastaiSettings(str(model), str(folder), **settings))


@pytest.fixture
def imported(tmp_path):
    def run(name, vocabulary):
        torch.save(weights_of(stored(name)), tmp_path / "w.pth")
        (tmp_path / "v.pkl").write_bytes(pickle.dumps(vocabulary))
        files = (str(tmp_path / "w.pth"), str(tmp_path / "v.pkl"), str(tmp_path / "ours"))
        return import_fastai(ImportFastaiSettings(*files), say=str).output_dir

    return run


@pytest.mark.parametrize(
    ("name", "vocabulary", "kind"),
    [
        ("language_model.npz", [*SPECIAL_TOKENS, "film", "xxfake"], "language model"),
        ("classifier.npz", [[*SPECIAL_TOKENS, "film", "good"], LABELS], "classifier"),
    ],
)
def test_what_came_from_fastai_goes_back_key_by_key_in_fastais_order(imported, tmp_path, name, vocabulary, kind):
    summary = export(imported(name, vocabulary), tmp_path / "theirs")
    assert (summary.kind, summary.notes) == (kind, [])
    written, expected = read_weights(tmp_path / "theirs" / "model.pth"), weights_of(stored(name))
    assert list(written) == list(expected)
    assert all(torch.equal(written[key], expected[key]) for key in expected)
    encoder = read_weights(tmp_path / "theirs" / "encoder.pth")
    prefix = "0.module." if kind == "classifier" else "0."
    assert list(encoder) == [key.removeprefix(prefix) for key in expected if key.startswith(prefix)]
    assert pickle.loads((tmp_path / "theirs" / "vocab.pkl").read_bytes()) == vocabulary


def test_a_subword_model_is_written_with_its_tokens_and_a_note(tiny_language_model_folder, tmp_path):
    summary = export(tiny_language_model_folder, tmp_path / "theirs")
    assert summary.notes == [
        "the vocabulary is of subwords, whose tokenizer is not in fastai's files: tokenize text with ours"
    ]
    assert read_vocabulary(tmp_path / "theirs" / "vocab.pkl").tokens == tokens_in_order(
        load_tokenizer(tiny_language_model_folder)
    )
    model = load_model(tiny_language_model_folder, AutoModelForCausalLM)
    written = read_weights(tmp_path / "theirs" / "model.pth")
    assert torch.equal(written["1.decoder.weight"], model.model.embeddings.weight)
    assert summary.loading == [
        "config = {**awd_lstm_lm_config, **dict(emb_sz=10, n_hid=14, n_layers=2)}",
        'learn = language_model_learner(dls, AWD_LSTM, config=config, pretrained=False, path=".", '
        f'model_dir="{tmp_path / "theirs"}")',
        'learn.load("model")',
    ]
    assert json.loads((tmp_path / "theirs" / "stage.json").read_text())["kind"] == "language model"


def test_a_head_of_another_width_and_drop_mult_0_are_told_and_named(tiny_classifier_folder, tmp_path):
    summary = export(tiny_classifier_folder, tmp_path / "theirs", drop_mult_zero=True)
    assert (
        "text_classifier_learner(dls, AWD_LSTM, config=config, pretrained=False, drop_mult=0., lin_ftrs=[6],"
        in (summary.loading[1])
    )
    written = read_weights(tmp_path / "theirs" / "model.pth")
    with np.load(REFERENCE / "classifier.npz", allow_pickle=False) as arrays:
        heads = [key for key in arrays["keys_at_drop_mult_0"].tolist() if key.startswith("1.")]
    assert [key for key in written if key.startswith("1.")] == heads
    model = load_model(tiny_classifier_folder, AutoModelForSequenceClassification)
    assert torch.equal(written["1.layers.0.1.weight"], model.classifier.blocks[0].linear.weight)
    assert read_vocabulary(tmp_path / "theirs" / "vocab.pkl").labels == ["bad", "fair", "good"]


def test_a_backward_untied_model_says_what_fastai_must_be_told(tmp_path):
    tokenizer = build_word_tokenizer([*SPECIAL_TOKENS, *OLD_TOKENS])
    sizes = {"vocab_size": len(tokenizer), "embedding_size": 5, "hidden_size": 7, "num_hidden_layers": 2}
    more = {"direction": "backward", "tie_word_embeddings": False, "vocab_hash": vocab_hash(tokenizer)}
    AwdLstmForCausalLM(AwdLstmConfig(**sizes, **more)).save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    summary = export(tmp_path / "ours", tmp_path / "theirs")
    assert summary.notes == [
        "the model reads text backward: give fastai's loaders backwards=True",
        "the decoder has weights of its own: load it with learn.load, for pretrained_fnames would put the embedding's "
        "in their place",
    ]
    assert "n_layers=2, tie_weights=False" in summary.loading[0]


def test_another_architecture_and_a_foreign_folder_are_refused(tiny_language_model_folder, tmp_path):
    BertConfig(vocab_size=9, hidden_size=4, num_attention_heads=2).save_pretrained(tmp_path / "bert")
    with pytest.raises(ArtifactError, match="bert is a 'bert' model; fastai's layout is one of 'awd_lstm' models"):
        export(tmp_path / "bert", tmp_path / "theirs")
    with pytest.raises(ArtifactError, match="holds files that are not a stage's, not a export_fastai stage"):
        export(tiny_language_model_folder, tmp_path)
