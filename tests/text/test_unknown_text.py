"""Texts that a pretrained model does not know stop a run before it trains, with a line that says what to do."""

import re

import pytest
from datasets import Dataset

from tests.support.tiny_runs import CLASSIFIER, LM, heard, reviews, texts_of, write_csv
from tests.support.tiny_transformers import save_bert
from ulmfit_pipe.data.text.tokenization import train_tokenizer
from ulmfit_pipe.settings.choices import DEFAULT_MODEL
from ulmfit_pipe.settings.text_runs import ClassifierJob, LanguageModelJob, PipelineSettings
from ulmfit_pipe.text.jobs import run_classifier, run_language_model
from ulmfit_pipe.text.pipeline import run_pipeline
from ulmfit_pipe.text.unknown_text import check_known_texts

CHINESE = [("房间很大，床也舒服。", "good"), ("早餐太差，服务员态度不好。", "bad")] * 15
GERMAN = [
    "Das Hotel war ausgezeichnet, das Frühstück reichhaltig und das Personal freundlich.",
    "Leider war das Zimmer schmutzig und die Matratze durchgelegen; wir kommen nicht wieder.",
    "Die Bundesregierung hat am Dienstag ein neues Gesetz zur Energieversorgung beschlossen.",
]
ENGLISH = ["The room was clean and the staff were friendly.", "Breakfast was awful; we will not come back."]


@pytest.fixture
def chinese_csv(tmp_path):
    return str(write_csv(tmp_path / "chinese.csv", CHINESE))


def said_of(texts, *, model=DEFAULT_MODEL, unknown_text="error", **more):
    said, context = heard()
    check_known_texts(texts_of(*texts), model=model, unknown_text=unknown_text, context=context, **more)
    return said


def test_a_run_on_unknown_texts_stops_before_it_trains(chinese_csv, tmp_path):
    settings = PipelineSettings([chinese_csv], str(tmp_path / "run"))
    words = (
        r"9\d % of the characters of the training texts are unknown to awd-lstm-en or are in words that it can only "
        r"spell letter by letter, most of them Han letters \(\d\d % of the tokens are xxunk\); take a model of their "
        r"language or a multilingual one, such as --model bert-base-multilingual-cased or sentence-transformers/"
        r"paraphrase-multilingual-MiniLM-L12-v2; --model null trains one from scratch on these texts; --unknown_text "
        r"allow continues anyway"
    )
    with pytest.raises(ValueError, match=words) as caught:
        run_pipeline(settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/language_model").exists()


def test_single_stages_stop_too(chinese_csv, tmp_path):
    with pytest.raises(ValueError, match="unknown to awd-lstm-en .*; --model null trains one from scratch"):
        run_language_model(LanguageModelJob([chinese_csv], str(tmp_path / "lm"), model=DEFAULT_MODEL))
    borrowed = LanguageModelJob([chinese_csv], str(tmp_path / "lm"))
    borrowed = type(borrowed)(**{**vars(borrowed), "language_model": type(LM)(tokenizer_of=DEFAULT_MODEL)})
    with pytest.raises(ValueError, match="unknown to awd-lstm-en"):
        run_language_model(borrowed)
    with pytest.raises(ValueError, match=r"; ulmfit run --model null trains one from scratch"):
        run_classifier(ClassifierJob([chinese_csv], str(tmp_path / "c"), DEFAULT_MODEL))


def test_an_encoder_of_another_language_is_named_with_its_unknown_token(tmp_path):
    bert = save_bert(tmp_path / "bert")
    with pytest.raises(ValueError, match=rf"unknown to {re.escape(str(bert))} .*Han letters \(100 % .* are \[UNK\]\)"):
        said_of([text for text, _ in CHINESE], model=str(bert))
    assert said_of([text for text, _ in reviews(10)], model=str(bert)) == []


def test_unknown_texts_can_be_allowed_and_are_reported(tiny_language_model_folder, chinese_csv, tmp_path, capsys):
    job = ClassifierJob(
        [chinese_csv], str(tmp_path / "c"), str(tiny_language_model_folder), unknown_text="allow", classifier=CLASSIFIER
    )
    run_classifier(job)
    assert "note: 100 % of the characters of the training texts are unknown to" in capsys.readouterr().out


def test_a_little_that_is_unknown_is_reported():
    (line,) = said_of([*ENGLISH * 2, "😍 🔥 💯 😭 🎉 ✈ 📱 ☕ 🎂 🥱 🌙 😋"])
    assert line.startswith("note: 7 % of the characters of the training texts are unknown to awd-lstm-en")
    assert "none of them letters" in line


def test_texts_in_another_latin_language_are_reported_by_their_tokens_a_character():
    (line,) = said_of(GERMAN)
    assert re.match(
        r"note: the training texts have 1\.\d times the tokens per character of the texts that awd-lstm-en was "
        r"trained on; if they are in another language, take a model of that language or a multilingual one",
        line,
    )
    assert said_of(ENGLISH) == []


def test_a_model_from_scratch_or_with_a_new_vocabulary_is_not_asked(tmp_path):
    chinese = [text for text, _ in CHINESE]
    assert said_of(chinese, model=None) == []
    assert said_of(chinese, vocabulary="unigram") == []


def test_the_beginning_of_a_long_text_is_measured():
    long = Dataset.from_dict({"text": ["the room was clean. " * 50 + "房间很大" * 900] * 20})
    said, context = heard()
    check_known_texts(long, model=DEFAULT_MODEL, unknown_text="error", context=context)
    assert said == []


def test_a_model_from_scratch_learns_short_chinese_texts(tmp_path, chinese_csv):
    assert len(train_tokenizer([text for text, _ in CHINESE])) > 60
    metrics = run_pipeline(
        PipelineSettings([chinese_csv], str(tmp_path / "run"), model=None, language_model=LM, classifier=CLASSIFIER)
    )
    assert metrics["language_model"]["language_model"]["perplexity_per_word"] is None
