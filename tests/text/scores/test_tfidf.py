"""The baseline on texts of every script, with one label a row and several."""

import numpy as np
import pytest

from tests.support.tiny_runs import multi_label_table, reviews, table
from ulmfit_pipe.text.scores import tfidf
from ulmfit_pipe.text.scores.tfidf import fit_tfidf, label_array, new_vectorizer

CHINESE = ["这部电影非常好看", "音乐很难听", "演员很好", "故事难看"]


def features_of(*texts):
    return set(new_vectorizer(texts, num_labels=2).fit(texts).get_feature_names_out())


def test_english_is_counted_by_words_and_pairs():
    assert features_of("A warm film.", "warm music") == {"warm", "film", "warm film", "music", "warm music"}


def test_a_script_without_spaces_is_counted_by_up_to_three_characters():
    found = features_of(*CHINESE)
    assert {"好", "好 看", "非 常 好"} <= found
    assert max(len(name.split()) for name in found) == 3
    assert {"ไ", "ไ ม"} <= features_of("ไม่ดี")


def test_signs_inside_words_do_not_part_them():
    assert "हिन्दी" in features_of("हिन्दी भाषा")


def test_texts_without_words_are_counted_by_characters():
    assert {"😀", "😀😀"} <= features_of("😀😀", "😢")
    assert "7" in features_of("7", "8", "a")


def test_chinese_reviews_are_told_apart():
    rows = [(text, "good" if "好" in text else "bad") for text in CHINESE * 5]
    rows_of = table(rows)
    assert (fit_tfidf(rows_of, seed=0).answers(rows_of) == np.array(rows_of["label"][:])).all()


def test_several_labels_a_row_have_a_model_and_a_threshold_each():
    train, test = multi_label_table(60), multi_label_table(30, seed=5)
    fitted = fit_tfidf(train, seed=0)
    labels, answers = label_array(test), fitted.answers(test)
    assert answers.shape == (30, 3) and len(fitted.thresholds) == 3
    assert 2 * (labels & answers).sum() / (labels.sum() + answers.sum()) > 0.6


def test_work_and_characters_bound_the_rows(monkeypatch):
    train = table(reviews(40))
    monkeypatch.setattr(tfidf, "MOST_CHARACTERS", sum(map(len, train["text"])) // 2)
    assert fit_tfidf(train, seed=0).details["rows"] == 20
    monkeypatch.undo()
    monkeypatch.setattr(tfidf, "MOST_WORK", 200)
    assert 2 <= fit_tfidf(train, seed=0).details["rows"] < 20
    monkeypatch.undo()
    assert fit_tfidf(train, seed=0, most_rows=10).details["rows"] == 10


@pytest.mark.parametrize("rows", [2, 3, 40])
def test_texts_that_are_longer_than_all_characters_together_are_cut(monkeypatch, rows):
    train = table([(f"{text} {'x ' * 200}latest", label) for text, label in reviews(rows)])
    monkeypatch.setattr(tfidf, "MOST_CHARACTERS", 300)
    fitted = fit_tfidf(train, seed=0)
    assert fitted.details["rows"] == 2
    assert "latest" not in fitted.vectorizer.vocabulary_
    assert fitted.answers(train).shape == (rows,)


def test_two_rows_of_two_classes_need_no_folds():
    fitted = fit_tfidf(table([("warm", "good"), ("dull", "bad")]), seed=0)
    assert fitted.details == {"rows": 2, "C": tfidf.DEFAULT_C}
    assert fitted.probabilities(table([("dull", "bad")]))[0].argmax() == 0
    assert fitted.probabilities(table([("dull", "bad")])).sum() == pytest.approx(1)
