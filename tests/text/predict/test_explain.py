"""Why this label: shares of words add up to the log-odds, agree with a plain sum, and belong to the right words."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.support.tiny_runs import reviews, table
from tests.support.tiny_transformers import save_bert, save_gpt2
from ulmfit_pipe import Predictor, build_classifier_learner, explain
from ulmfit_pipe.data.text.pretrained_tokenizers import encode_documents
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.text.predict.explain import words_of

TEXT = "The film was GREAT and its ending a warm funny story, sooooo good, but the brothers were dull dull dull dull."


@pytest.fixture(scope="module")
def folders(tmp_path_factory, save_tiny_classifier, tiny_multi_label_folder):
    """Return random classifiers of every kind by name."""
    place = tmp_path_factory.mktemp("explained")
    save_tiny_classifier(place / "ensemble")
    save_tiny_classifier(place / "ensemble/backward", direction="backward", seed=1)
    found = {
        "forward": save_tiny_classifier(place / "forward", gradient_window=11),
        "backward": save_tiny_classifier(place / "backward", direction="backward"),
        "ensemble": place / "ensemble",
        "multi-label": tiny_multi_label_folder,
    }
    for name, save, settings in (
        ("bert", save_bert, {}),
        ("gpt2", save_gpt2, {}),
        ("windows", save_bert, {"long_documents": "windows", "window_length": 12}),
        ("truncated", save_bert, {"max_length": 8}),
    ):
        save(place / f"{name}_base")
        found[name] = save_transformer(
            place / f"{name}_base", place / name, ClassifierSettings(keep="last", **settings)
        )
    return found


def save_transformer(base, folder, settings):
    """Save a classifier with a random head on a tiny transformer."""
    parts = build_classifier_learner(table(reviews(8)), None, model=base, settings=settings)
    with torch.no_grad():
        for name, weight in parts.network.named_parameters():
            if name.startswith(("classifier", "score")):
                weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    parts.network.save_pretrained(folder)
    parts.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "name", ["forward", "backward", "ensemble", "multi-label", "bert", "gpt2", "windows", "truncated"]
)
def test_shares_of_words_add_up_to_the_log_odds(folders, name):
    predictor = Predictor.load(folders[name])
    found = explain(predictor, TEXT)
    (row,) = predictor.predict([TEXT])
    best = max(row["scores"], key=row["scores"].get)
    assert (found.label, found.score) == (best, pytest.approx(row["scores"][best], abs=1e-6))
    assert found.log_odds == pytest.approx(np.log(found.score / (1 - found.score)), abs=1e-4)
    difference = found.log_odds - found.baseline
    assert sum(share for _, share in found.words) == pytest.approx(difference, abs=0.05 * max(abs(difference), 1))
    assert found.gap <= 0.05
    assert max(abs(share) for _, share in found.words) > 1e-6


def test_shares_are_the_integral_of_the_gradient_along_the_path(folders):
    predictor = Predictor.load(folders["bert"])
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folders["bert"]).eval(), predictor.tokenizer
    ids = torch.tensor(encode_documents(tokenizer, [TEXT]))
    table_of_words = model.get_input_embeddings().weight.detach()
    start = table_of_words[tokenizer.pad_token_id].expand(ids.shape[1], -1).clone()
    start[0], start[-1] = table_of_words[ids[0, 0]], table_of_words[ids[0, -1]]
    way = table_of_words[ids[0]] - start
    expected = torch.zeros(ids.shape[1])
    for alpha in (torch.arange(400) + 0.5) / 400:
        reached = (start + alpha * way)[None].requires_grad_()
        logits = model(inputs_embeds=reached, attention_mask=torch.ones_like(ids)).logits[0]
        odds = logits[1] - logits[0]
        expected += (torch.autograd.grad(odds, reached)[0][0] * way).sum(-1) / 400
    found = explain(predictor, TEXT, label="good")
    words = words_of(tokenizer, TEXT, ids[0].tolist())
    wanted = [float(expected[places].sum()) for _, places in words]
    assert [share for _, share in found.words] == pytest.approx(wanted, abs=0.02 * np.abs(wanted).max())


def test_a_backward_model_gives_each_word_its_own_share(folders):
    """Its shares are those of a forward model with the same weights that reads the words from the end."""
    backward, forward = Predictor.load(folders["backward"]), Predictor.load(folders["backward"])
    forward.models[0].config.direction = "forward"
    words = explain(backward, "a warm funny story").words
    ids = encode_documents(backward.tokenizer, ["a warm funny story"])[0]
    forward.tokenizer.encode_documents = lambda _texts: [ids[::-1]]
    assert [word for word, _ in words] == ["a", "warm", "funny", "story"]
    turned = explain(forward, "a warm funny story", label=explain(backward, "a warm funny story").label).words
    assert [share for _, share in turned][::-1] == pytest.approx([share for _, share in words], abs=1e-5)


def test_words_are_shown_as_they_were_written(folders):
    words = [word for word, _ in explain(Predictor.load(folders["forward"]), TEXT).words]
    assert words[3] == "GREAT" and "ooooo" in words and words[-2:] == ["dull dull dull dull", "."]
    assert [word for word, _ in explain(Predictor.load(folders["bert"]), "The film, GREAT.").words] == [
        "The",
        "film",
        ",",
        "GREAT",
        ".",
    ]


def test_words_that_are_truncated_have_no_share(folders):
    words = explain(Predictor.load(folders["truncated"]), "film " * 12).words
    shares = [share for _, share in words]
    assert len(shares) == 12 and all(shares[:5]) and not any(shares[7:])


def test_an_explanation_leaves_the_classifier_as_it_was(folders):
    predictor = Predictor.load(folders["forward"])
    before = predictor.predict([TEXT])
    explain(predictor, TEXT)
    (model,) = predictor.models
    assert model.config.gradient_window == 11
    assert not model.get_input_embeddings()._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    assert predictor.predict([TEXT]) == before


def test_a_label_can_be_chosen_and_an_unknown_one_is_refused(folders):
    predictor = Predictor.load(folders["forward"])
    assert explain(predictor, TEXT, label="fair").label == "fair"
    with pytest.raises(ValueError, match="'great' is not a label of the classifier; it knows bad, fair, good"):
        explain(predictor, TEXT, label="great")


def test_a_text_of_too_many_tokens_is_refused(folders):
    with pytest.raises(ValueError, match="the text has 100,001 tokens .* explain a part of at most 32,768 tokens"):
        explain(Predictor.load(folders["forward"]), "good bad " * 20_000)


def test_an_explanation_is_shown_in_text_colour_and_html_without_acting_on_a_terminal(folders):
    found = explain(Predictor.load(folders["bert"]), "film <b>\x1b[31m good")
    assert "\x1b[31m" not in str(found) + found.coloured() and "<b>" not in found._repr_html_().replace("<p><b>", "")
    assert str(found).splitlines()[0].startswith(f"{found.label} {found.score:.3f}; words by their share")
    assert "\x1b[4" in found.coloured() and 'title="' in found._repr_html_()
