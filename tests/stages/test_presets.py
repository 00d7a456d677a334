"""Every number of the recipes, as the reference table gives it."""

import math
import time

import pytest

from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.settings.guides import BY_PRESET
from ulmfit_pipe.settings.text import ClassifierSettings
from ulmfit_pipe.stages.presets import PRESETS, Dropouts, load_preset, resolve_preset, scale_epochs
from ulmfit_pipe.text.plans import classifier_phases, possible_epochs, settled, within_time
from ulmfit_pipe.training.schedules import Schedule

LM_GROUPS, CLASSIFIER_GROUPS = 4, 5  # of three layers
BERT_GROUPS = 14  # embeddings, twelve blocks, head


def plan(phases):
    return [(phase.name, phase.trainable, phase.epochs, phase.schedule) for phase in phases]


def rates(phase):
    return pytest.approx(phase.lrs, rel=1e-12)


def test_there_are_four_presets():
    assert sorted(PRESETS) == ["fastai", "paper", "scripts-2018", "transformer"]
    assert {name: preset.name for name, preset in PRESETS.items()} == {name: name for name in PRESETS}


@pytest.mark.parametrize(
    ("name", "sizes", "bptt"),
    [("paper", (400, 1150, 3), 70), ("scripts-2018", (400, 1150, 3), 70), ("fastai", (400, 1152, 3), 72)],
)
def test_sizes_windows_batches_and_vocabulary(name, sizes, bptt):
    preset = PRESETS[name]
    assert (preset.sizes, preset.bptt, preset.batch_size) == (sizes, bptt, 64)
    assert (preset.word_vocab_size, preset.word_min_count) == (60_000, 3)


@pytest.mark.parametrize("name", ["paper", "scripts-2018", "fastai"])
def test_ar_and_tar_are_2_and_1_everywhere(name):
    assert (PRESETS[name].alpha, PRESETS[name].beta) == (2.0, 1.0)


def test_dropouts_of_the_language_model():
    of_the_code = Dropouts(input=0.25, output=0.1, weight=0.2, embedding=0.02, hidden=0.15)
    assert PRESETS["paper"].lm_dropouts == Dropouts(input=0.4, output=0.4, weight=0.5, embedding=0.05, hidden=0.3)
    assert PRESETS["scripts-2018"].lm_dropouts == of_the_code
    assert PRESETS["fastai"].lm_dropouts == of_the_code


def test_dropouts_of_the_classifier():
    of_the_paper = Dropouts(output=0.4, hidden=0.3, input=0.4, embedding=0.05, weight=0.5)
    assert PRESETS["paper"].classifier_dropouts == of_the_paper
    assert PRESETS["scripts-2018"].classifier_dropouts == of_the_paper
    half = Dropouts(output=0.2, hidden=0.15, input=0.2, embedding=0.025, weight=0.25)
    assert PRESETS["fastai"].classifier_dropouts == half
    assert AwdLstmConfig().head_dropout == 0.1


def test_optimizers():
    paper, scripts, fastai = PRESETS["paper"], PRESETS["scripts-2018"], PRESETS["fastai"]
    assert paper.lm_optimizer == paper.classifier_optimizer
    assert (paper.lm_optimizer.betas, paper.lm_optimizer.weight_decay) == ((0.7, 0.99), 0.0)
    assert paper.lm_optimizer.max_grad_norm is None
    for optimizer, clip in ((scripts.lm_optimizer, 0.3), (scripts.classifier_optimizer, 25.0)):
        assert (optimizer.betas, optimizer.weight_decay) == ((0.8, 0.99), 1e-7)
        assert (optimizer.decoupled, optimizer.max_grad_norm) == (False, clip)
    for optimizer, decay in ((fastai.lm_optimizer, 0.1), (fastai.classifier_optimizer, 0.01)):
        assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ((0.8, 0.99), 1e-5, decay)
        assert (optimizer.decoupled, optimizer.max_grad_norm) == (True, None)


def test_only_fastai_trains_the_norms_of_frozen_groups():
    assert {name: preset.train_norm for name, preset in PRESETS.items()} == {
        "paper": False,
        "scripts-2018": False,
        "fastai": True,
        "transformer": False,
    }


def test_the_papers_language_model_trains_all_layers_at_once():
    (only,) = PRESETS["paper"].lm_phases(LM_GROUPS, None, None, None)
    assert plan([only]) == [("all", (0, 1, 2, 3), 15, Schedule.slanted_triangular(cut_frac=0.1, ratio=32))]
    assert rates(only) == [4e-3 / 2.6**3, 4e-3 / 2.6**2, 4e-3 / 2.6, 4e-3]


def test_the_papers_classifier_thaws_one_group_an_epoch():
    phases = PRESETS["paper"].classifier_phases(CLASSIFIER_GROUPS, None, None, None)
    triangle = Schedule.slanted_triangular(cut_frac=0.1, ratio=32)
    assert plan(phases) == [
        ("last 1", (4,), 1, triangle),
        ("last 2", (3, 4), 1, triangle),
        ("last 3", (2, 3, 4), 1, triangle),
        ("last 4", (1, 2, 3, 4), 1, triangle),
        ("all", (0, 1, 2, 3, 4), 50, triangle),
    ]
    for phase in phases:
        assert rates(phase) == [1e-2 / 2.6**power for power in (4, 3, 2, 1, 0)]


def test_the_scripts_language_model_has_their_own_rates_and_no_frozen_phase():
    (only,) = PRESETS["scripts-2018"].lm_phases(LM_GROUPS, None, None, None)
    assert plan([only]) == [("all", (0, 1, 2, 3), 25, Schedule.slanted_triangular(cut_frac=1 / 10, ratio=32))]
    assert rates(only) == [4e-3 / 6, 4e-3 / 3, 4e-3, 4e-3 / 2]


def test_the_scripts_language_model_of_another_depth_gets_the_papers_ladder():
    (only,) = PRESETS["scripts-2018"].lm_phases(3, None, None, None)
    assert rates(only) == [4e-3 / 2.6**2, 4e-3 / 2.6, 4e-3]


def test_the_scripts_classifier_thaws_last_one_last_two_all():
    phases = PRESETS["scripts-2018"].classifier_phases(CLASSIFIER_GROUPS, None, None, None)
    thaw = Schedule.slanted_triangular(cut_frac=1 / 3, ratio=8)
    assert plan(phases) == [
        ("last 1", (4,), 1, thaw),
        ("last 2", (3, 4), 1, thaw),
        ("all", (0, 1, 2, 3, 4), 50, Schedule.slanted_triangular(cut_frac=1 / 8, ratio=8)),
    ]
    for phase in phases:
        assert rates(phase) == [1e-2 / 2.6**power for power in (4, 3, 2, 1, 0)]


def test_fastais_language_model_warms_the_embedding_then_trains_all():
    first, rest = PRESETS["fastai"].lm_phases(LM_GROUPS, None, None, None)
    cycle = Schedule.one_cycle(pct_start=0.25, div=25.0, div_final=1e5, moms=(0.8, 0.7, 0.8))
    assert plan([first, rest]) == [("embeddings", (3,), 1, cycle), ("all", (0, 1, 2, 3), 10, cycle)]
    assert rates(first) == [2e-2] * 4
    assert rates(rest) == [2e-3] * 4


def test_fastais_classifier_has_the_tutorials_four_phases():
    phases = PRESETS["fastai"].classifier_phases(CLASSIFIER_GROUPS, None, None, None)
    cycle = Schedule.one_cycle()
    assert plan(phases) == [
        ("last 1", (4,), 1, cycle),
        ("last 2", (3, 4), 1, cycle),
        ("last 3", (2, 3, 4), 1, cycle),
        ("all", (0, 1, 2, 3, 4), 2, cycle),
    ]
    assert phases[0].lrs[4] == 2e-2
    for phase, peak in zip(phases[1:], (1e-2, 5e-3, 1e-3), strict=True):
        assert rates(phase) == [peak / 2.6**4 * 2.6**index for index in range(5)]  # slice(peak / 2.6**4, peak)


def test_transformers_optimizer_is_berts_in_both_stages():
    preset = PRESETS["transformer"]
    assert preset.lm_optimizer == preset.classifier_optimizer
    optimizer = preset.classifier_optimizer
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ((0.9, 0.999), 1e-6, 0.01)
    assert (optimizer.decoupled, optimizer.max_grad_norm) == (True, 1.0)
    assert (preset.batch_size, preset.alpha, preset.beta) == (32, 0.0, 0.0)


def test_transformers_classifier_trains_the_head_then_the_upper_half_then_all():
    head, upper, rest = PRESETS["transformer"].classifier_phases(BERT_GROUPS, None, None, None)
    warm_up = Schedule.slanted_triangular(cut_frac=0.1, ratio=32)
    assert plan([head, upper, rest]) == [
        ("head", (13,), 1, warm_up),
        ("upper half", tuple(range(7, 14)), 1, warm_up),
        ("all", tuple(range(14)), 3, warm_up),
    ]
    assert head.lrs[13] == 1e-3
    for phase in (upper, rest):
        assert rates(phase) == [5e-5 * 0.9 ** (13 - index) for index in range(14)]


@pytest.mark.parametrize(("groups", "names"), [(2, ["head", "all"]), (3, ["head", "upper half", "all"])])
def test_transformers_classifier_of_few_groups_leaves_out_the_phase_that_would_repeat_another(groups, names):
    phases = PRESETS["transformer"].classifier_phases(groups, None, None, None)
    assert [phase.name for phase in phases] == names


def test_transformers_language_model_trains_all_layers_alike():
    (only,) = PRESETS["transformer"].lm_phases(BERT_GROUPS, None, None, None)
    assert plan([only]) == [("all", tuple(range(14)), 3, Schedule.slanted_triangular(cut_frac=0.1, ratio=32))]
    assert rates(only) == [5e-5] * 14


def phases_for(name, **settings):
    return classifier_phases(BERT_GROUPS, ClassifierSettings(**settings), PRESETS[name], rows=25_000)


def test_a_given_rate_is_the_heads_and_rest_lr_that_of_all_that_follows():
    head, upper, rest = phases_for("transformer", lr=2e-3)
    assert (head.lrs[-1], upper.lrs[-1], rest.lrs[-1]) == pytest.approx((2e-3, 1e-4, 1e-4))
    head, upper, rest = phases_for("transformer", plan="preset", rest_lr=3e-5)
    assert head.lrs[-1] == 1e-3
    for phase in (upper, rest):
        assert rates(phase) == [3e-5 * 0.9 ** (13 - index) for index in range(14)]


def test_auto_is_a_probe_and_all_groups_for_a_transformer_and_the_presets_phases_where_they_are_named():
    for rows, epochs in ((32, 25), (200, 15), (640, 5), (25_000, 4)):  # 100 steps of 32 rows, 4 to 25 epochs
        (phase,) = classifier_phases(BERT_GROUPS, ClassifierSettings(), PRESETS["transformer"], rows=rows)
        assert (phase.name, phase.trainable, phase.epochs) == ("all", tuple(range(14)), epochs)
    assert classifier_phases(BERT_GROUPS, ClassifierSettings(plan="probe"), PRESETS["transformer"], rows=32) == []
    named = phases_for("transformer", plan="preset", epochs_per_phase=2)
    assert phases_for("transformer", epochs_per_phase=2) == named
    assert phases_for("fastai") == phases_for("fastai", plan="preset")
    (given,) = phases_for("transformer", final_epochs=7, rest_lr=2e-5, schedule="constant")
    assert (given.epochs, given.lrs[-1], given.schedule.name) == (7, 2e-5, "constant")


def test_auto_keeps_the_best_epoch_where_there_are_validation_rows_and_the_last_where_not():
    asked = ClassifierSettings(), PRESETS["fastai"]
    assert [settled(*asked, held_out=held_out, rows=90).keep for held_out in (True, False)] == ["best", "last"]
    assert settled(ClassifierSettings(keep="last"), PRESETS["fastai"], held_out=True, rows=90).keep == "last"


@pytest.mark.parametrize(
    ("name", "rows", "held_out", "given", "plan"),
    [
        ("fastai", 499, False, {}, "probe-full"),
        ("fastai", 499, False, {"batch_size": 4, "drop_mult": 0.5}, "probe-full"),
        ("fastai", 500, False, {}, "preset"),
        ("fastai", 499, True, {}, "preset"),
        ("fastai", 499, False, {"final_epochs": 2}, "preset"),
        ("fastai", 499, False, {"from_scratch": True}, "preset"),
        ("fastai", 499, False, {"schedule": "one-cycle"}, "preset"),
        ("fastai", 499, False, {"plan": "gradual"}, "gradual"),
        ("paper", 499, False, {}, "preset"),
        ("transformer", 499, False, {}, "probe-full"),
        ("transformer", 25_000, True, {"final_epochs": 2}, "probe-full"),
        ("transformer", 499, False, {"lr": 1e-3}, "preset"),
    ],
)
def test_auto_is_settled_by_the_preset_the_rows_and_what_else_is_given(name, rows, held_out, given, plan):
    assert settled(ClassifierSettings(**given), PRESETS[name], held_out=held_out, rows=rows).plan == plan


def test_an_awd_lstm_goes_on_from_the_probe_with_its_own_rates_and_few_rows_are_read_more_often():
    asked = ClassifierSettings(plan="probe-full")
    for rows, epochs in ((80, 10), (499, 4)):  # 100 steps of 8 rows, 4 to 25 epochs
        (phase,) = classifier_phases(CLASSIFIER_GROUPS, asked, PRESETS["fastai"], rows=rows, batch_size=8)
        assert (phase.name, phase.epochs, phase.schedule) == ("all", epochs, Schedule.one_cycle())
        assert phase.lrs == pytest.approx([5e-3 / 1.3 ** (CLASSIFIER_GROUPS - 1 - k) for k in range(CLASSIFIER_GROUPS)])


def test_a_time_limit_leaves_fewer_epochs_whose_schedule_ends_with_them():
    phases = phases_for("transformer", plan="preset")  # epochs 1, 1 and 3
    assert within_time(phases, 5.0) == (phases, "")
    (last,), line = within_time(phases, 2.9)
    assert (last.name, last.epochs) == ("all", 2)
    assert line == "max_seconds leave time for 2 of 5 epochs; the schedule is made for these"
    assert within_time(phases, 0.9)[0] == []
    assert "so nothing is unfrozen" in within_time(phases, 0.9)[1]
    assert possible_epochs(2.0, None) == math.inf
    assert possible_epochs(2.0, time.monotonic() + 70) == pytest.approx(70 * 0.85 / 7, abs=0.05)


def test_the_named_plans_take_transformers_rates_and_their_ratio():
    (full,) = phases_for("transformer", plan="full")
    assert rates(full) == [5e-5 * 0.9 ** (13 - index) for index in range(14)]
    first, *more = phases_for("transformer", plan="gradual")
    assert (first.trainable, first.lrs[-1]) == ((13,), pytest.approx(1e-3))
    assert all(rates(phase) == [5e-5 * 0.9 ** (13 - index) for index in range(14)] for phase in more)
    (head,) = phases_for("transformer", plan="head")
    assert head.lrs[-1] == 1e-3
    probe, rest = phases_for("transformer", plan="lp-ft")
    assert (probe.lrs[-1], rest.lrs[-1]) == pytest.approx((1e-3, 5e-5))


def test_a_given_rate_and_ratio_hold_in_the_named_plans_whatever_the_preset():
    for name in ("transformer", "fastai"):
        for plan_name in ("full", "gradual"):
            for phase in phases_for(name, plan=plan_name, lr=3e-5, lr_decay=1.25):
                assert rates(phase) == [3e-5 / 1.25 ** (13 - index) for index in range(14)]
    assert rates(phases_for("fastai", plan="full")[0]) == [2e-2 / 2.6 ** (13 - index) for index in range(14)]


def test_auto_is_fastai_for_an_awd_lstm_and_transformer_for_any_other_model():
    assert resolve_preset("auto", "awd_lstm") == "fastai"
    assert resolve_preset("auto", "bert") == resolve_preset("auto", "llama") == "transformer"
    assert resolve_preset("paper", "awd_lstm") == resolve_preset("paper", "bert") == "paper"
    with pytest.raises(
        ValueError, match="preset 'transformer' has no dropouts and windows for an AWD-LSTM; take 'auto'"
    ):
        resolve_preset("transformer", "awd_lstm")
    with pytest.raises(ValueError, match="preset must be one of .* got 'bert'"):
        resolve_preset("bert", "bert")


@pytest.mark.parametrize("name", ["paper", "scripts-2018", "fastai", "transformer"])
def test_given_epochs_and_rates_take_the_presets_place(name):
    phases = PRESETS[name].classifier_phases(CLASSIFIER_GROUPS, 3, 7, 0.5)
    assert [phase.epochs for phase in phases] == [3] * (len(phases) - 1) + [7]
    assert phases[0].lrs[4] == 0.5
    assert PRESETS[name].lm_phases(LM_GROUPS, 3, 7, 0.5)[-1].epochs == 7


@pytest.mark.parametrize("name", ["paper", "scripts-2018", "fastai", "transformer"])
def test_a_zero_is_refused_and_never_taken_for_nothing_given(name):
    for build in (PRESETS[name].lm_phases, PRESETS[name].classifier_phases):
        with pytest.raises(ValueError, match="epochs must be 1 or more.* got epochs=0"):
            build(CLASSIFIER_GROUPS, None, 0, None)
    with pytest.raises(ValueError, match=r"a learning rate must be a positive number, got 0\.0"):
        PRESETS[name].classifier_phases(CLASSIFIER_GROUPS, None, None, 0.0)


def test_epochs_grow_with_the_square_root_of_missing_data_up_to_ten():
    assert scale_epochs(2, size=25_000, full_size=25_000) == 2
    assert scale_epochs(2, size=99_000, full_size=25_000) == 2
    assert scale_epochs(2, size=6_250, full_size=25_000) == 4  # a quarter: twice the epochs
    assert scale_epochs(2, size=5_452, full_size=25_000) == 5  # TREC-6: 4.28, rounded up
    assert scale_epochs(2, size=100, full_size=25_000) == 10
    assert scale_epochs(50, size=100, full_size=25_000) == 50
    assert scale_epochs(1, size=0, full_size=25_000) == 10


def test_an_unknown_preset_names_those_there_are():
    words = r"preset must be one of \['fastai', 'paper', 'scripts-2018', 'transformer'\], got 'fast'"
    with pytest.raises(ValueError, match=words):
        load_preset("fast")


def test_the_numbers_that_help_shows_are_the_presets():
    found = {}
    for name in ("fastai", "transformer", "paper", "scripts-2018"):
        preset = load_preset(name)
        language_model, classifier = (
            preset.lm_phases(4, None, None, None),
            preset.classifier_phases(5, None, None, None),
        )
        numbers = {
            "language_model.lr": max(max(phase.lrs) for phase in language_model),
            "language_model.epochs": language_model[-1].epochs,
            "language_model.batch_size": preset.batch_size,
            "language_model.bptt": preset.bptt,
            "classifier.lr": max(max(phase.lrs) for phase in classifier),
            "classifier.epochs_per_phase": classifier[0].epochs,
            "classifier.final_epochs": classifier[-1].epochs,
            "classifier.batch_size": preset.batch_size,
            "classifier.lr_decay": preset.lr_decay,
        }
        for setting, number in numbers.items():
            if number:  # a transformer has no bptt
                found.setdefault(setting, []).append(f"{name} {number:.3g}")
    assert {setting: ", ".join(words) for setting, words in found.items()} == BY_PRESET
