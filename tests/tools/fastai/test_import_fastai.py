"""fastai's files, as fastai 2.8.12 computed and named them, become folders of ours with the same logits."""

import collections
import json
import pickle

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.support import tiny_runs
from tests.support.fastai_files import OLD_TOKENS, TOKENS, stored, weights_of
from ulmfit_pipe import TextPipeline
from ulmfit_pipe.data.text.text_rules import SPECIAL_TOKENS
from ulmfit_pipe.data.text.tokenization import tokens_in_order
from ulmfit_pipe.settings.model_files import ImportFastaiSettings
from ulmfit_pipe.settings.text import LanguageModelSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, load_config, load_model, load_tokenizer
from ulmfit_pipe.text.classifier import train_classifier
from ulmfit_pipe.text.language_model import build_language_model_learner, train_language_model
from ulmfit_pipe.text.predict.predictor import Predictor
from ulmfit_pipe.tools.fastai.import_fastai import import_fastai
from ulmfit_pipe.tools.fastai.safe_pickles import UnsafePickleError
from ulmfit_pipe.tools.fastai.weights import from_fastai_state_dict

WORDS = LanguageModelSettings(epochs=1, frozen_epochs=1, batch_size=4, bptt=11, min_count=1)


def fastai_1(weights):
    copies = {f"0.rnns.{n}.module.weight_hh_l0": torch.zeros(4, 4) for n in range(3)}
    return {**weights, **copies}


def fastai_0_7(weights):
    renamed = {key.replace(".weight_hh_l0_raw", ".module.weight_hh_l0_raw"): value for key, value in weights.items()}
    return {key.replace("encoder_dp.emb", "encoder_with_dropout.embed"): value for key, value in renamed.items()}


LAYOUTS = {
    "learn.save(with_opt=False)": dict,
    "learn.save": lambda weights: {"model": weights, "opt": {"state": [{"step": 3}], "hypers": [{"lr": 0.1}]}},
    "fastai 1": fastai_1,
    "fastai 0.7": fastai_0_7,
    "salesforce": lambda weights: {key[2:]: value for key, value in fastai_0_7(weights).items()},
}


@pytest.fixture
def importing(tmp_path):
    """Return a function that writes the two files, imports them, and gives the summary and what was said."""

    def run(state_dict, vocabulary=TOKENS, folder="out", **settings):
        torch.save(state_dict, tmp_path / "w.pth")
        (tmp_path / "v.pkl").write_bytes(pickle.dumps(vocabulary, protocol=2))
        said = []
        files = {"weights": str(tmp_path / "w.pth"), "vocab": str(tmp_path / "v.pkl")}
        found = import_fastai(
            ImportFastaiSettings(**{**files, "output_dir": str(tmp_path / folder), **settings}), say=said.append
        )
        assert said == found.notes == json.loads((found.output_dir / "stage.json").read_text())["notes"]
        return found

    return run


def logits_of(folder, ids, kind=AutoModelForCausalLM):
    with torch.no_grad():
        return load_model(folder, kind).eval()(torch.as_tensor(ids).long()).logits


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_language_model_of_every_layout_has_fastais_logits(importing, layout):
    arrays = stored("language_model.npz")
    found = importing(LAYOUTS[layout](weights_of(arrays)))
    assert (found.kind, found.notes, found.labels) == ("language model", [], [])
    assert found.sizes == {"vocab_size": 11, "embedding_size": 5, "hidden_size": 7, "num_hidden_layers": 3}
    logits = logits_of(found.output_dir, arrays["first_ids"])
    torch.testing.assert_close(logits, arrays["first_logits"], rtol=0, atol=1e-6)
    tokenizer = load_tokenizer(found.output_dir, config=load_config(found.output_dir))
    assert tokenizer("A good film!")["input_ids"] == [2, 0, 10, 9, 0]


@pytest.mark.parametrize("layout", ["learn.save(with_opt=False)", "fastai 0.7"])
def test_an_encoder_file_gets_the_tied_decoder_and_no_bias_and_says_so(importing, layout):
    arrays = stored("language_model.npz")
    weights = weights_of(arrays)
    encoder = {key[2:]: value for key, value in LAYOUTS[layout](weights).items() if key.startswith("0.")}
    found = importing(encoder)
    assert found.kind == "encoder"
    assert found.notes == [
        "the file holds an encoder and no decoder: the decoder shares the embedding's weight",
        "there is no decoder bias in the file: it starts at 0",
    ]
    logits = logits_of(found.output_dir, arrays["first_ids"]) + weights["1.decoder.bias"]
    torch.testing.assert_close(logits, arrays["first_logits"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [1, 73, 200, 1369])
def test_a_classifier_has_fastais_logits_and_its_labels(importing, length):
    arrays = stored("classifier.npz")
    found = importing(weights_of(arrays), [TOKENS, ["a", "b", "c", "d"]])
    assert (found.kind, found.labels, found.sizes["head_hidden_size"]) == ("classifier", ["a", "b", "c", "d"], 50)
    logits = logits_of(found.output_dir, arrays[f"ids_{length}"], AutoModelForSequenceClassification)
    torch.testing.assert_close(logits, arrays[f"logits_{length}"], rtol=0, atol=1e-5)


def test_a_classifier_predicts_with_labels_from_the_settings(importing):
    weights = weights_of(stored("classifier.npz"))
    found = importing(weights, TOKENS, labels=["a", "b", "c", "d"])
    assert set(Predictor.load(found.output_dir).predict(["A good film"])[0]["scores"]) == {"a", "b", "c", "d"}
    several = importing(weights, TOKENS, folder="several", labels=["a", "b", "c", "d"], multi_label=True)
    assert isinstance(Predictor.load(several.output_dir).predict(["A good film"])[0]["label"], list)


def test_a_classifiers_encoder_becomes_a_language_model_that_is_gone_on_from(importing, tmp_path):
    arrays = stored("classifier.npz")
    found = importing(weights_of(arrays), [TOKENS, ["a", "b", "c", "d"]])
    assert found.language_model == found.output_dir / "language_model"
    assert found.notes == [
        "the classifier's encoder is in language_model/ too, as a language model to resume from: its decoder shares "
        "the embedding's weight and its bias starts at 0, as the file has no decoder"
    ]
    model = load_model(found.language_model, AutoModelForCausalLM)
    classifier = load_model(found.output_dir, AutoModelForSequenceClassification)
    theirs = classifier.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.model.state_dict().items())
    assert model.lm_head.weight is model.model.embeddings.weight
    assert not model.lm_head.bias.any()
    assert model.config.vocab_hash == classifier.config.vocab_hash
    texts = tiny_runs.texts_of(*[text for text, _ in tiny_runs.reviews(30)])
    built = build_language_model_learner(texts, texts, model=str(found.language_model), settings=WORDS)
    assert built.pretrained
    with pytest.raises(ArtifactError, match="it holds a classifier; give the folder of its language model"):
        build_language_model_learner(texts, texts, model=str(found.output_dir), settings=WORDS)


@pytest.mark.slow
def test_a_pipeline_starts_from_a_classifiers_encoder(importing, tmp_path):
    found = importing(weights_of(stored("classifier.npz")), [TOKENS, ["a", "b", "c", "d"]])
    train = tiny_runs.write_csv(tmp_path / "t.csv", tiny_runs.reviews(30))
    pipe = TextPipeline(found.language_model)
    pipe.fit(train, output_dir=tmp_path / "run", language_model=WORDS, classifier=tiny_runs.CLASSIFIER)
    assert pipe.predict(["a warm story"])[0]["label"] in ("bad", "good")


def test_a_backward_classifiers_language_model_reads_backward_in_our_order_of_tokens(importing):
    weights = weights_of(stored("classifier.npz"))
    tokens = [OLD_TOKENS[:8] + ["xxmaj", "xfld", "a"], ["a", "b", "c", "d"]]
    found = importing(weights, tokens, direction="backward")
    model = load_model(found.language_model, AutoModelForCausalLM)
    assert model.config.direction == "backward"
    row = load_tokenizer(found.language_model, config=model.config).convert_tokens_to_ids("film")
    assert torch.equal(model.model.embeddings.weight[row], weights["0.module.encoder.weight"][3])


def test_a_language_model_and_an_encoder_are_what_a_stage_goes_on_from_themselves(importing):
    weights = weights_of(stored("language_model.npz"))
    encoder = {key[2:]: value for key, value in weights.items() if key.startswith("0.")}
    for state_dict in (weights, encoder):
        found = importing(state_dict)
        assert found.language_model == found.output_dir
        assert not (found.output_dir / "language_model").exists()


def test_special_tokens_of_fastai_0_7_keep_their_rows_under_our_names(importing):
    arrays = stored("language_model.npz")
    weights = weights_of(arrays)
    found = importing(fastai_0_7(weights), OLD_TOKENS)
    assert found.notes == [
        "read as ours: _unk_ as xxunk, _pad_ as xxpad, tk_rep as xxrep, xbos as xxbos, t_up as xxup, xfld as xxfld",
        "the special tokens are at other ids in the file: every row was moved with its token",
        "not in the vocabulary, so they start at the mean row: xxeos, xxwrep, xxmaj; our text rules write such marks, "
        "so fine-tune the model on text before you rely on it",
    ]
    tokens = tokens_in_order(load_tokenizer(found.output_dir))
    assert tokens == [*SPECIAL_TOKENS, "the", "film", "good", "xxfake 12", "xxfake 13"]
    new_of_old = [0, 1, 9, 10, 5, 2, 7, 11, 12, 4, 13]  # where each token of OLD_TOKENS went
    model = load_model(found.output_dir, AutoModelForCausalLM).eval()
    kept = [old for old, token in enumerate(OLD_TOKENS) if token != "xxfake"]
    moved = [new_of_old[old] for old in kept]
    assert torch.equal(model.model.embeddings.weight[moved], weights["0.encoder.weight"][kept])
    assert torch.equal(model.lm_head.bias[moved], weights["1.decoder.bias"][kept])
    for missing in (3, 6, 8):
        torch.testing.assert_close(model.model.embeddings.weight[missing], weights["0.encoder.weight"].mean(0))
        torch.testing.assert_close(model.lm_head.bias[missing], weights["1.decoder.bias"].mean())
    old_ids = torch.tensor([[5, 2, 3, 6, 7], [0, 9, 2, 4, 3]])
    old_model = importing(weights, folder="plain").output_dir
    logits = model(torch.tensor(new_of_old)[old_ids]).logits[..., moved]
    torch.testing.assert_close(logits, logits_of(old_model, old_ids)[..., kept], rtol=0, atol=1e-6)


def test_the_order_of_fastai_1_is_put_into_ours(importing):
    weights = weights_of(stored("language_model.npz"))
    order = "xxunk xxpad xxbos xxeos xxfld xxmaj xxup xxrep xxwrep film good".split()
    found = importing(weights, order)
    assert found.notes == ["the special tokens are at other ids in the file: every row was moved with its token"]
    embedding = load_model(found.output_dir, AutoModelForCausalLM).model.embeddings.weight
    for row, token in enumerate([*SPECIAL_TOKENS, "film", "good"]):
        assert torch.equal(embedding[row], weights["0.encoder.weight"][order.index(token)])


def test_a_moved_classifier_scores_the_same_text_alike(importing):
    arrays = stored("classifier.npz")
    weights = weights_of(arrays)
    found = importing(weights, [OLD_TOKENS[:8] + ["xxmaj", "xfld", "a"], ["a", "b", "c", "d"]])
    ids = load_tokenizer(found.output_dir).convert_tokens_to_ids(["xxbos", "xxmaj", "the", "film", "good"])
    plain = importing(weights, [TOKENS, ["a", "b", "c", "d"]], folder="plain")
    moved = logits_of(found.output_dir, [ids], AutoModelForSequenceClassification)
    same = logits_of(plain.output_dir, [[5, 8, 2, 3, 7]], AutoModelForSequenceClassification)
    torch.testing.assert_close(moved, same, rtol=0, atol=1e-6)


def test_half_precision_an_untied_decoder_and_a_missing_bias_are_read(importing):
    weights = weights_of(stored("language_model.npz"))
    half = {key: value.half() for key, value in weights.items() if key != "1.decoder.bias"}
    half["1.decoder.weight"] = half["1.decoder.weight"] * 2
    found = importing(half, direction="backward")
    model = load_model(found.output_dir, AutoModelForCausalLM)
    config = model.config
    assert (config.direction, config.tie_word_embeddings, model.lm_head.bias.abs().sum()) == ("backward", False, 0)
    assert torch.equal(model.lm_head.weight, half["1.decoder.weight"].float())
    assert found.notes == ["there is no decoder bias in the file: it starts at 0"]


def test_a_missing_decoder_weight_beside_a_bias_is_said(importing):
    weights = weights_of(stored("language_model.npz"))
    del weights["1.decoder.weight"]
    found = importing(weights)
    assert found.kind == "language model"
    assert found.notes == ["there is no decoder weight in the file: the decoder shares the embedding's"]
    assert load_model(found.output_dir, AutoModelForCausalLM).config.tie_word_embeddings


def test_the_fillers_numbers_make_no_token_that_stands_there_already(importing):
    tokens = [*SPECIAL_TOKENS, "xxfake 10", "xxfake"]
    found = importing(weights_of(stored("language_model.npz")), tokens)
    assert tokens_in_order(load_tokenizer(found.output_dir)) == [*SPECIAL_TOKENS, "xxfake 10", "xxfake 11"]


def test_labels_beside_a_language_model_are_left_out_and_it_is_said(importing):
    found = importing(weights_of(stored("language_model.npz")), [TOKENS, ["neg", "pos"]])
    assert found.notes == ["the labels in the vocabulary file are left out: the weights hold no classifier"]


def test_every_stage_takes_the_imported_model(importing, tmp_path):
    weights = weights_of(stored("language_model.npz"))
    found = importing(weights)
    train, rest = tiny_runs.table(tiny_runs.reviews(30)), tiny_runs.table(tiny_runs.reviews(8, seed=1))
    settings = tiny_runs.LanguageModelSettings(epochs=1, batch_size=4, bptt=11, min_count=1)
    _, context = tiny_runs.heard()
    train_language_model(
        train, rest, output_dir=tmp_path / "lm", model=str(found.output_dir), settings=settings, context=context
    )
    for start in (tmp_path / "lm", found.output_dir):
        output = tmp_path / f"classifier_on_{start.name}"
        train_classifier(
            train, rest, model=str(start), output_dir=output, settings=tiny_runs.CLASSIFIER, context=context
        )
        assert Predictor.load(output).predict(["a warm story"])[0]["label"] in ("bad", "good")
    assert from_fastai_state_dict(weights)["model.embeddings.weight"].shape == (11, 5)


def test_an_import_is_done_again_over_itself_and_not_over_anything_else(importing, tmp_path):
    weights = weights_of(stored("language_model.npz"))
    assert importing(weights).output_dir == importing(weights).output_dir
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="full holds files that are not a stage's, not a import_fastai stage"):
        importing(weights, folder="full")


def test_files_that_do_not_belong_together_are_refused(importing):
    weights = weights_of(stored("language_model.npz"))
    with pytest.raises(ArtifactError, match="v.pkl has 10 tokens, but the embedding in .*w.pth has 11 rows"):
        importing(weights, TOKENS[:-1])
    with pytest.raises(ArtifactError, match="there is no file 'nowhere.pth'; give a .pth file as weights"):
        importing(weights, weights="nowhere.pth")
    with pytest.raises(UnsafePickleError, match="it names collections.OrderedDict"):
        importing(weights, collections.OrderedDict(the=0))
    subwords = ["▁the", "▁a", *TOKENS[2:]]
    with pytest.raises(ArtifactError, match=r"is a vocabulary of subwords \(2 of 11 tokens start with '▁'\)"):
        importing(weights, subwords)
    for key, wrong, words in (
        (
            "1.decoder.bias",
            torch.zeros(9),
            r"the decoder's bias has the shape \(9,\), but the embedding asks for \(11,\)",
        ),
        ("0.encoder.weight", torch.zeros(11), r"model.embeddings.weight must have the axes \(vocab, embedding\)"),
        ("1.decoder.bias", torch.full((11,), torch.nan), "11 of the 11 numbers under '1.decoder.bias' are NaN"),
        ("0.encoder.weight", torch.eye(11, 5).to_sparse(), "under '0.encoder.weight' is a sparse"),
    ):
        with pytest.raises(ValueError, match=words):
            importing({**weights, key: wrong}, OLD_TOKENS)
    del weights["0.rnns.1.module.bias_ih_l0"]
    with pytest.raises(ArtifactError, match="do not make a whole AWD-LSTM: .*model.layers.1.bias_ih_l0"):
        importing(weights)


def test_a_classifiers_labels_must_be_known_and_as_many_as_its_outputs(importing):
    weights = weights_of(stored("classifier.npz"))
    with pytest.raises(ArtifactError, match="is a classifier of 4 labels and .*v.pkl names none; give their names"):
        importing(weights)
    with pytest.raises(ArtifactError, match=r"2 labels are named \(a, b\), .* has 4; give all in the order of"):
        importing(weights, labels=["a", "b"])
    with pytest.raises(ArtifactError, match="a label is named twice among a, b, c, a; give each output a name"):
        importing(weights, labels=["a", "b", "c", "a"])
    with pytest.raises(ArtifactError, match=r"2 labels are named \(a\?\[31m, b{152}\), the classifier"):
        importing(weights, [TOKENS, ["a\x1b[31m", "b" * 10_000]])
