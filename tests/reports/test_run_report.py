"""A run's page, from plain records."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from tests.support.run_records import HOSTILE, hostile_record, predictions, run_record, stage
from ulmfit_pipe.reports.charts import coverage_picture, curves, freeze_map
from ulmfit_pipe.reports.comparison import compare_runs, comparison_table
from ulmfit_pipe.reports.number_words import duration, number, percent
from ulmfit_pipe.reports.predictions import Level, Prediction
from ulmfit_pipe.reports.run_report import run_report
from ulmfit_pipe.reports.run_view import marked_words, verdict, view_of

VOID = ("meta", "input", "stop", "rect", "line", "circle", "polyline")


class Page(HTMLParser):
    """Collects tags, attributes that could load something, and visible text; tags must be balanced."""

    def __init__(self, content):
        super().__init__()
        self.source = content.decode()
        self.tags, self.loads, self.text, self.open, self.handlers = [], [], [], [], []
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script") and data.strip():
            self.text.append(data.strip())

    @property
    def words(self):
        return re.sub(r"\s+", " ", " ".join(self.text))


@pytest.fixture(scope="module")
def page():
    return Page(run_report(run_record()))


def test_the_page_begins_with_the_result_and_ends_with_the_run(page):
    shown = page.words[page.words.index("of 40 test texts are right") :]  # after the links to its parts
    headings = ("What is taken for what", "Each class", "What was trained", "Mistakes", "Trust", "What trained when")
    order = [shown.index(words) for words in (*headings, "Lengths", "The command:")]
    assert order == sorted(order)
    assert "awd-lstm-en, trained on 27 texts of train.csv; 30 November 2026" in page.words
    assert "ulmfit run --train_file train.csv" in page.words


def test_the_verdict_is_one_sentence_with_interval_and_baseline():
    record = run_record(predictions=[])
    record["metrics"]["test"] |= {"accuracy": 0.8175, "n": 1500, "interval": {"accuracy": [0.782, 0.851]}}
    assert " ".join(verdict(record).values()) == (
        "82 % of 1,500 test texts are right (95 % interval 78 to 85). That is clearly more than TF-IDF on the same "
        "rows: 60 %; always the most frequent class: 50 %."
    )
    record["metrics"]["test"]["baseline"]["ahead_interval"] = [-0.02, 0.04]
    assert "That is not clearly different from TF-IDF" in verdict(record)["beside"]
    record["metrics"]["test"]["baseline"]["ahead_interval"] = [-0.2, -0.1]
    assert "That is clearly less than TF-IDF" in verdict(record)["beside"]


def test_validation_rows_are_named_and_so_is_that_they_chose_the_epoch():
    record = run_record()
    record["metrics"]["validation"], record["metrics"]["test"] = record["metrics"]["test"], None
    found = verdict(record)["words"]
    assert found.startswith("of 40 validation texts are right")
    assert found.endswith("; they also chose the best epoch, so expect a little less on new ones.")


@pytest.mark.parametrize(
    ("metrics", "figure", "words"),
    [
        ({"test": None, "validation": None}, "–", "No rows were held out, so there is no score."),
        (
            {"cross_validation": {"accuracy": 0.8433, "interval": [0.8, 0.88], "rows": 300}},
            "84 %",
            "of 300 training texts are right in cross-validation (95 % interval 80 to 88); no table was held out.",
        ),
        (
            {"validation": {"perplexity": 1.153e93, "loss": 5.0}},
            "over 1,000,000",
            "is the perplexity of the language model on validation text; lower is better.",
        ),
        (
            {"test": {"accuracy": 0.5, "micro_f1": 0.625, "n": 8}, "validation": None},
            "50 %",
            "of 8 test texts have all their labels right.",
        ),
    ],
)
def test_the_verdict_of_other_runs(metrics, figure, words):
    found = verdict(run_record(metrics=metrics, predictions=[]))
    assert (found["figure"], found["words"]) == (figure, words)


def test_the_confusion_matrix_counts_truth_in_rows_and_its_cells_filter():
    rows = [Prediction(1, "a", "bad", "good", 0.9), Prediction(2, "b", "bad", "bad", 0.8)]
    rows += [Prediction(3 + row, "c", "good", "good", 0.7) for row in range(3)]
    source = run_report(run_record(predictions=rows)).decode()
    cells = re.findall(r'data-cell="(\d,\d)" title="([^"]+)">(\d)</button>', source)
    assert cells == [
        ("0,0", "truth bad, predicted bad: 1 of 2", "1"),
        ("0,1", "truth bad, predicted good: 1 of 2", "1"),
        ("1,1", "truth good, predicted good: 3 of 3", "3"),
    ]
    assert '<span title="truth good, predicted bad: 0 of 3">0</span>' in source
    assert source.count('<li data-cell="0,1" data-wrong="0" data-unsure="4">') == 1


def test_many_classes_have_their_most_confused_pairs_in_place_of_a_matrix():
    names = tuple(f"class {number}" for number in range(21))
    view = view_of(run_record(names=names, rows=300))
    assert view["matrix"] is None
    assert len(view["pairs"]) == 20
    assert view["pairs"][0]["count"] >= view["pairs"][-1]["count"]
    assert view_of(run_record(names=names[:20], rows=300))["matrix"] is not None


def test_a_sentence_says_what_is_right_where_only_sure_answers_count():
    rows = [Prediction(row, "x", "bad", "bad" if row != 5 else "good", 0.9) for row in range(1, 11)]
    rows += [Prediction(row, "x", "bad", "good", 0.6) for row in range(11, 21)]
    words = Page(run_report(run_record(predictions=rows))).words
    assert "If it answers only from a score of 0.8: 90 % right on 50 % of the texts." in words
    assert "The expected calibration error is 0.300: answers have a score of 0.75 on average, and 45 % of them" in words


def test_words_are_found_in_the_text_in_their_order_and_the_others_are_left_out():
    words = [["good", 2.0], ["film", -1.0], ["(gone)", 0.5], ["good", -0.5], ["", 3.0]]
    assert [(piece["text"], piece["share"]) for piece in marked_words("A Good film,\x1b good!", words)] == [
        ("A ", 0.0),
        ("Good", 2 / 3),
        (" ", 0.0),
        ("film", -1 / 3),
        (",\\x1b ", 0.0),
        ("good", -0.5 / 3),
        ("!", 0.0),
    ]
    assert marked_words("plain", []) == [{"text": "plain", "share": 0.0}]
    assert marked_words("\u0130 good", [["good", 1.0]])[0]["text"] == "\u0130 good"  # its small letters are more


def test_mistakes_that_were_explained_bear_their_words():
    rows = [Prediction(4, "a dull end", "good", "bad", 0.9), Prediction(5, "warm", "bad", "good", 0.8)]
    words = [["a", -0.5], ["dull", 2.0], ["-", 9.0], [HOSTILE, 0.25]]
    explained = {"prediction": "bad", "score": 0.9, "label": "bad", "words": words}
    record = run_record(predictions=rows, explanations={"4": explained, "5": explained})  # of 5 another run's
    page = Page(run_report(record))
    assert f"row 4 a dull end bad: dull +2.00, a −0.50, {HOSTILE} +0.25" in page.words
    assert '<mark class="for" style="--share: 22%">dull</mark>' in page.source
    assert page.words.count("dull +2.00") == 1
    assert "--explain true" not in page.words and "for the label given, against it" in page.words
    assert "ulmfit report runs/reviews --explain true colours the words" in Page(run_report(run_record())).words


def test_calibration_is_shown_where_the_record_has_it():
    record = run_record()
    record["metrics"]["calibration"] = {"ece_before": 0.1234, "ece_after": 0.045}
    assert (
        "Calibration took it from 0.123 to 0.045 on rows that it was not fitted on." in Page(run_report(record)).words
    )


def test_warnings_and_what_to_try_next_come_before_the_tables():
    record = run_record()
    record["metrics"] |= {
        "warnings": ["behind TF-IDF"],
        "try_next": ["ulmfit run --x 1  # why"],
        "cut_short": ["classifier"],
    }
    words = Page(run_report(record)).words
    assert words.index("Behind TF-IDF.") < words.index("max_seconds ended") < words.index("ulmfit run --x 1 # why")
    assert words.index("ulmfit run --x 1") < words.index("What is taken for what")


def test_the_page_loads_nothing_from_outside_and_runs_only_its_own_script(page):
    assert {value[:1] for value in page.loads} == {"#"}
    assert not {"link", "iframe", "object", "img", "base", "form"} & set(page.tags)
    assert not re.findall(r"https?://", page.source.replace("http://www.w3.org", ""))
    script = re.search(r"<script>(.*)</script>", page.source, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page.source).group(1)
    assert policy.replace("&#39;", "'") == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def test_hostile_labels_texts_and_names_are_shown_and_do_nothing():
    page = Page(run_report(hostile_record()))
    assert page.tags.count("script") == 1
    assert page.handlers == []
    assert page.words.count("<script>alert('1')") > 30
    assert "\x1b" not in page.source and "\u202e" not in page.source
    assert r"\x1b[2J \u202e RTL שלום 👩‍🚀" in page.words


def test_five_thousand_rows_of_long_texts_stay_below_a_megabyte_and_a_half():
    rows = [
        Prediction(row.row, "漢字" * 5000, row.truth, row.prediction, row.score)
        for row in predictions(5000, tuple(f"class {number}" for number in range(20)))
    ]
    source = run_report(run_record(names=tuple(f"class {number}" for number in range(20)), predictions=rows))
    assert len(source) < 1.5e6
    assert source.count(b"<li data-cell") > 400


def test_a_page_without_predictions_stages_or_scores_is_a_page():
    record = run_record(metrics={"test": None}, settings={}, defaults={}, effective={}, stages={}, predictions=[])
    words = Page(run_report(record)).words
    assert "No rows were held out" in words
    assert "date unknown" in words
    assert "Mistakes" not in words and "Trust" not in words


def test_several_labels_have_thresholds_and_no_matrix():
    rows = [Prediction(1, "x", "a|b", "a", 0.7, {"score_a": 0.9, "score_b": 0.4})]
    record = run_record(names=("a", "b"), predictions=rows)
    per_class = {name: {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 1} for name in ("a", "b")}
    record["metrics"]["test"] = {"accuracy": 0.0, "micro_f1": 0.6, "n": 1, "per_class": per_class}
    record["metrics"]["thresholds"] = {"a": 0.5, "b": 0.41}
    words = Page(run_report(record)).words
    assert "0.410" in words and "from score" in words
    assert "What is taken for what" not in words and "If it answers only" not in words
    assert (
        "The expected calibration error is 0.350: labels have a score of 0.65 on average, and 100 % of them are so"
        in words
    )


# The training


def test_the_freeze_map_has_a_band_for_each_group_and_phase_grey_where_frozen():
    drawn = freeze_map(stage())
    assert len(drawn["bands"]) == 12
    frozen = [band["title"] for band in drawn["bands"] if not band["stops"]]
    assert frozen == [
        "embeddings, phase last 1, steps 1 to 8: frozen",
        "lstm0, phase last 1, steps 1 to 8: frozen",
        "lstm1, phase last 1, steps 1 to 8: frozen",
        "embeddings, phase last 2, steps 9 to 16: frozen",
        "lstm0, phase last 2, steps 9 to 16: frozen",
        "embeddings, phase all, steps 17 to 24: frozen",
    ]
    head = [band for band in drawn["bands"] if band["title"].startswith("head")]
    assert head[0]["title"] == "head, phase last 1, steps 1 to 8: learning rate up to 0.004"
    assert {stop for band in head for stop in band["stops"]} == {"#fde725"}  # the highest rate
    assert head[0]["y"] < min(band["y"] for band in drawn["bands"] if band not in head)  # above all others
    assert (drawn["steps"], drawn["low"], drawn["high"]) == (24, "0.002", "0.004")


def test_how_far_each_group_moved_stands_beside_whether_it_trained():
    record = run_record()
    record["stages"]["classifier"]["rates"]["values"] = [[0.0, *rates[1:]] for rates in stage()["rates"]["values"]]
    words = Page(run_report(record)).words
    assert "What was updated : how far the weights that were kept are from where training started" in words
    assert (
        "moved head 12,345 trained 150% lstm1 12,345 trained 3% lstm0 12,345 trained 0.2% "
        "embeddings 12,345 frozen throughout unchanged" in words
    )
    older = run_record(stages={"classifier": stage(weight_changes=[])})
    assert "What was updated" not in Page(run_report(older)).words


def test_a_phase_has_its_seconds_and_its_memory():
    words = Page(run_report(run_record())).words
    assert "1 last 1 head 2 0.004 0.6 3.0 s 0.8 GiB 2 last 2 lstm1, head 2 0.004 0.6 3.0 s 1.2 GiB" in words
    assert "GiB" not in Page(run_report(run_record(stages={"classifier": stage(memory={})}))).words


def test_what_the_weights_were_worth_at_the_start_is_no_phase():
    start = {**stage()["epochs"][0], "phase": "probe", "step": 0, "total_steps": 0}
    record = stage(epochs=[start, *stage()["epochs"]])
    names = [
        (phase["number"], phase["name"]) for phase in view_of(run_record(stages={"c": record}))["stages"][0]["phases"]
    ]
    assert names == [("", "probe"), (1, "last 1"), (2, "last 2"), (3, "all")]
    drawn = curves(record["epochs"], {"loss": [1.0] * 7}, best=None, title="Loss")
    assert [(phase["number"], phase["name"]) for phase in drawn["phases"]] == names


def test_marks_of_the_coverage_curve_are_named_where_there_is_room():
    levels = [Level(0.5, 1.0, 0.9), Level(0.6, 0.98, 0.92), Level(0.7, 0.9, 0.95), Level(0.8, 0.5, 1.0)]
    drawn = coverage_picture(levels[::-1], levels)
    assert [mark["label"] for mark in drawn["marks"]] == [".5", "", ".7", ".8"]
    assert [tick["label"] for tick in drawn["ticks"]] == ["90", "92.5", "95", "97.5", "100"]


def test_texts_that_are_in_training_too_are_counted_and_warned_of():
    words = Page(run_report(run_record())).words
    assert "repeated in training in validation training 4 test 0 3 Rows whose text is, word for word, in an" in words
    assert (
        "3 of the 40 test texts are also among the training texts, word for word, so the score is flattered." in words
    )


def test_thinned_rates_are_laid_over_all_steps():
    rates = {"stride": 4, "values": stage()["rates"]["values"][::4]}
    thinned, whole = freeze_map(stage(rates=rates)), freeze_map(stage())
    assert [band["title"] for band in thinned["bands"]] == [band["title"] for band in whole["bands"]]


def test_a_training_without_a_step_has_no_map_and_no_curves():
    record = stage(epochs=stage()["epochs"][:1], rates={"stride": 1, "values": []})
    assert freeze_map(record) is None
    assert freeze_map(stage(rates={"stride": 1, "values": [[0.0] * 4]})) is None
    assert "Loss over the epochs" not in run_report(run_record(stages={"classifier": record})).decode()


def test_curves_mark_the_best_epoch_and_leave_out_what_is_no_number():
    epochs = stage()["epochs"]
    drawn = curves(
        epochs, {"training": [1.0, None, float("nan"), 2.0, 1.5, 1.0], "none": [None] * 6}, best=3, title="Loss"
    )
    (line,) = drawn["lines"]
    assert [point["title"] for point in line["points"]] == [
        "epoch 1, phase last 1: training 1",
        "epoch 4, phase last 2 (kept): training 2",
        "epoch 5, phase all: training 1.5",
        "epoch 6, phase all: training 1",
    ]
    assert drawn["best"] == line["points"][1]["x"]
    assert [phase["name"] for phase in drawn["phases"]] == ["last 1", "last 2", "all"]
    assert curves(epochs, {"none": [None] * 6}, best=None, title="Loss") is None


def test_settings_that_differ_come_first_and_the_others_bear_what_they_came_to():
    view = view_of(run_record())
    assert [(row["name"], row["value"]) for row in view["changed"]] == [("train_file", ["data/train.csv"]), ("seed", 7)]
    assert [(row["name"], row["came_to"]) for row in view["others"]] == [("model", None), ("classifier.lr", 0.02)]


# Numbers


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (True, "true"),
        (1576960, "1,576,960"),
        (1.153e93, "over 1,000,000"),
        (-1.5e9, "below −1,000,000"),
        (float("nan"), "–"),
        (float("inf"), "over 1,000,000"),
        (5e-05, "5e-5"),
        (0.02, "0.02"),
        (12345.678, "12,346"),
        (3.0, "3"),
        ([], "–"),
        ([0.1, "a"], "0.1, a"),
        ({"a": 1}, "a 1"),
    ],
)
def test_numbers_are_short(value, words):
    assert number(value) == words


def test_shares_and_durations_are_in_words():
    assert [
        percent(share) for share in (0, 0.004, 0.825, 0.9937, 0.99999, 1, None)
    ] == "0 0.4 82 99.4 99.9 100 –".split()
    assert [duration(value) for value in (0.42, 45.4, 192, 7500, None)] == [
        "0.4 s",
        "45 s",
        "3 min 12 s",
        "2 h 05 min",
        "–",
    ]


# Several runs


def two_runs():
    other = run_record(name="other", folder="runs/other", settings={**run_record()["settings"], "classifier.lr": 0.01})
    other["metrics"] = {**other["metrics"], "test": {"accuracy": 0.5, "n": 40}}
    return [run_record(), other]


def test_runs_are_compared_by_scores_and_by_the_settings_that_differ():
    lines = comparison_table(two_runs()).splitlines()
    assert lines[0].split() == ["run", "score", "95", "%", "interval", "macro", "F1", "baseline", "on", "time"]
    assert re.match(r"reviews +\d\d % +\d\d to \d+ +0.500 +60 % +40 test texts +1 min 03 s", lines[2])
    assert lines[5].split() == ["setting", "reviews", "other"]
    assert lines[7].split() == ["classifier.lr", "–", "0.01"]
    assert comparison_table([run_record(), run_record(folder="b")]).endswith("no setting differs but the output folder")


def test_the_page_of_several_runs_is_one_page_with_both():
    page = Page(compare_runs(two_runs()))
    assert "2 ULMFiT runs" in page.words
    assert "classifier.lr – 0.01" in page.words
    assert {value[:1] for value in page.loads} <= {"#"}
