"""Figures of transferability -> differences, table and sentence, from scores written down by hand."""

import re

import pytest
from scipy import stats

from ulmfit_pipe.settings.studies import TransferabilitySettings
from ulmfit_pipe.studies.transferability.results import (
    COVERAGE,
    T_95,
    Difference,
    answer_of,
    csv_of,
    difference,
    differences_of,
    points_of,
    scores_of,
    table_of,
    write_transferability,
)

GROUPS = ["stem", "stage0", "stage1", "head"]


def scores(**curves):
    """Return scores of three seeds around each accuracy in per cent; the seeds differ by the same points in all."""
    found = {("baseB", 0): {0: 0.95, 1: 0.94, 2: 0.96}, ("new", 0): {0: 0.94, 1: 0.95, 2: 0.93}}
    for curve, values in curves.items():
        name = curve.replace("p", "+")
        for n, value in enumerate(values, start=1):
            found[name, n] = {seed: value / 100 + 0.01 * (seed - 1) for seed in range(3)}
    return found


# As in the paper: co-adaptation in the middle, specificity at the end, both won back by thawing.
PAPER = scores(BnB=[95, 93, 95], BnBp=[95, 95, 95], AnB=[95, 92, 88], AnBp=[95, 95, 96], random=[90, 80, 60])


def test_the_interval_is_students_over_paired_differences():
    pairs = {("a", 1): {0: 0.9, 1: 0.8, 2: 0.7, 5: 0.1}, ("b", 1): {0: 0.5, 1: 0.5, 2: 0.6, 4: 0.0}}
    found = difference(pairs, ("a", 1), ("b", 1))
    low, high = stats.t.interval(COVERAGE, 2, loc=0.8 / 3, scale=stats.sem([0.4, 0.3, 0.1]))
    assert (found.mean, found.seeds) == (pytest.approx(0.8 / 3), 3)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high), abs=2e-4)
    assert difference(pairs, ("a", 1), ("c", 1)) is None


def test_the_table_of_students_points_is_right():
    assert pytest.approx([stats.t.ppf((1 + COVERAGE) / 2, degrees) for degrees in range(1, 10)], abs=6e-4) == T_95


def test_with_more_seeds_than_the_table_has_its_last_number_is_taken():
    values = {("a", 1): dict.fromkeys(range(14), 0.5), ("b", 1): {seed: 0.4 + 0.01 * (seed % 2) for seed in range(14)}}
    found = difference(values, ("a", 1), ("b", 1))
    assert found.half == pytest.approx(T_95[-1] * stats.sem([0.1, 0.09] * 7))


@pytest.mark.parametrize(
    ("mean", "half", "sign"),
    [(0.02, 0.01, 1), (-0.02, 0.01, -1), (0.02, 0.03, 0), (0.0, 0.0, 0), (0.02, 0.0, 1), (-0.02, None, -1)],
)
def test_a_difference_counts_where_its_interval_leaves_out_zero(mean, half, sign):
    assert Difference(mean, half, 3).sign == sign


def test_a_difference_in_words():
    assert Difference(0.0712, 0.0213, 3).in_words() == "+7.1 points, 90 % interval +5.0 to +9.2 over 3 seeds"
    assert Difference(-0.01, None, 1).in_words() == "-1.0 points in the only seed"


def test_the_answer_finds_what_the_paper_found():
    assert answer_of(PAPER, GROUPS) == (
        "Unfreezing after training the head helps on these data: with all 3 layer groups below the head taken from the "
        "other task, the accuracy is 96.0 % unfrozen and 88.0 % frozen (+8.0 points, 90 % interval +8.0 to +8.0 over 3 "
        "seeds); freezing the other task's layers costs from n = 2 (stage0) on, up to 8.0 points at n = 3; of it, "
        "layers that were torn from those above them (fragile co-adaptation) cost at n = 2 (stage0), 2.0 points, and "
        "their being the other task's (specificity) costs from n = 2 (stage0) on, up to 7.0 points at n = 3."
    )


def test_the_answer_says_that_unfreezing_harms_or_does_nothing_where_it_does():
    harm = scores(BnB=[95, 95], BnBp=[95, 95], AnB=[95, 95], AnBp=[95, 91])
    assert answer_of(harm, GROUPS[1:]).startswith("Unfreezing after training the head does harm on these data: ")
    same = scores(BnB=[95], BnBp=[95], AnB=[95], AnBp=[95])
    found = answer_of(same, ["stem", "head"])
    assert found.startswith("Unfreezing after training the head neither helps nor harms for sure on these data: with ")
    assert "with the layer group below the head taken from the other task" in found
    assert found.endswith(
        "freezing the other task's layers costs nowhere for sure; of it, layers that were torn from those above them "
        "(fragile co-adaptation) cost nowhere for sure, and their being the other task's (specificity) costs nowhere "
        "for sure."
    )


def test_costs_in_places_that_do_not_reach_the_last_n_are_named_one_by_one():
    middle = scores(BnB=[93, 92, 95], BnBp=[95, 95, 95], AnB=[93, 92, 95], AnBp=[95, 95, 95])
    words = "(fragile co-adaptation) cost at n = 1 (stem) and 2 (stage0), up to 3.0 points at n = 2, and"
    assert words in answer_of(middle, GROUPS)


def test_a_cost_at_the_last_n_alone_counts_from_there_on():
    last = scores(BnB=[95, 95, 95], BnBp=[95, 95, 95], AnB=[95, 95, 91], AnBp=[95, 95, 95])
    assert "freezing the other task's layers costs from n = 3 (stage1) on, 4.0 points; of it" in answer_of(last, GROUPS)


def test_where_the_last_n_was_not_run_the_answer_speaks_of_new_layers():
    found = answer_of({key: value for key, value in PAPER.items() if key[1] != 3}, GROUPS)
    assert found.startswith(
        "Unfreezing after training the new layers helps on these data: with all 2 layer groups up to stage0 taken "
    )


def test_without_a_pair_of_seeds_there_is_no_answer_yet():
    words = "The figures do not show yet whether unfreezing helps: AnB and AnB+ have no seed in common."
    assert answer_of({("baseB", 0): {0: 0.9}}, GROUPS) == words
    assert answer_of({("AnB+", 1): {0: 0.9}, ("AnB", 1): {1: 0.9}}, GROUPS) == words


def test_points_and_table_have_the_papers_order_and_the_spread():
    points = points_of(PAPER)
    assert [point["curve"] for point in points][:4] == ["baseB", "new", "BnB", "BnB"]
    assert points[0] == {
        "curve": "baseB",
        "n": 0,
        "accuracy": pytest.approx(0.95),
        "lowest": 0.94,
        "highest": 0.96,
        "seeds": 3,
    }
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table_of(points, GROUPS).splitlines()]
    assert lines[0] == ["test accuracy %", "BnB", "BnB+", "AnB", "AnB+", "random"]
    assert lines[2] == ["baseB (the line)", "95.0 (94.0-96.0)", "-", "-", "-", "-"]
    assert lines[3] == ["n = 0, all new", *["94.0 (93.0-95.0)"] * 5]
    assert lines[6][0] == "n = 3, up to stage1"
    assert lines[6][5] == "60.0 (59.0-61.0)"
    one_seed = points_of({("AnB", 2): {0: 0.5}})
    assert re.search(r"n = 2, up to stage0 \| - +\| - +\| 50\.0 +\| - ", table_of(one_seed, GROUPS))


def test_the_differences_are_kept_with_their_sign():
    found = {(one["what"], one["n"]): one for one in differences_of(PAPER)}
    assert len(found) == 9
    assert found["specificity", 3]["mean"] == pytest.approx(0.07)
    assert (found["specificity", 3]["sign"], found["co-adaptation", 3]["sign"]) == (1, 0)


def test_records_become_scores_and_lines_of_csv():
    record = {"curve": "AnB", "copied": 2, "cell": {"seed": 1}, "accuracy": 0.5, "error": 0.5, "macro_f1": 0.4}
    record |= {"rows": 12, "n": 6, "steps": 4, "seconds": 0.1}
    assert scores_of([record]) == {("AnB", 2): {1: 0.5}}
    assert csv_of([record]).decode() == (
        "curve,n,seed,accuracy,error,macro_f1,rows,test_rows,steps,seconds\nAnB,2,1,0.5,0.5,0.4,12,6,4,0.1\n"
    )


def test_a_folder_without_a_finished_network_is_refused(tmp_path):
    settings = TransferabilitySettings(dataset="digits", output_dir=str(tmp_path), layers=[1])
    with pytest.raises(ValueError, match="cells holds no finished network; run the experiment first"):
        write_transferability(settings, groups=GROUPS, say=print)
