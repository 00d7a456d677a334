from pathlib import Path

from ulmfit_pipe.storage.record_differences import as_json, differences


def test_every_value_that_differs_is_named_with_its_place():
    old = {"a": 1, "deep": {"b": [1, 2], "c": "x"}, "gone": True}
    new = {"a": 1, "deep": {"b": (1, 3), "c": "y"}, "came": 0.5}
    assert differences(old, new) == [
        "came (None there, 0.5 now)",
        "deep.b ([1, 2] there, [1, 3] now)",
        "deep.c ('x' there, 'y' now)",
        "gone (True there, None now)",
    ]


def test_records_in_lists_are_compared_one_by_one():
    old = {"phases": [{"name": "a", "lrs": [1.0, 2.0]}, {"name": "b", "lrs": [1.0]}]}
    new = {"phases": [{"name": "a", "lrs": (1.0, 2.0)}, {"name": "b", "lrs": (3.0,)}]}
    assert differences(old, new) == ["phases.2.lrs ([1.0] there, [3.0] now)"]
    assert differences(old, {"phases": new["phases"][:1]})[0].startswith("phases ([{'name': 'a', ")


def test_a_long_value_is_cut_short():
    assert differences({"text": "x" * 99}, {"text": "y"}) == [f"text ('{'x' * 36}... there, 'y' now)"]


def test_a_cut_shows_where_two_values_part():
    old, new = {"text": "a" * 50 + "bc" * 30}, {"text": "a" * 50 + "d"}
    assert differences(old, new) == [f"text (...{'a' * 8}{'bc' * 13}... there, ...{'a' * 8}d' now)"]
    old, new = {"sizes": [1] * 50}, {"sizes": [1] * 51}
    assert differences(old, new) == ["sizes (... 1, 1, 1] there, ... 1, 1, 1, 1] now)"]


def test_of_a_long_list_the_items_that_differ_are_named():
    rates = [0.0011377787653, 0.0029582247898, 0.0076913844535]
    assert differences({"lrs": rates}, {"lrs": (rates[0], rates[1], 0.5)}) == ["lrs.3 (0.0076913844535 there, 0.5 now)"]
    assert differences({"phases": [{"lrs": rates}]}, {"phases": [{"lrs": [2 * rate for rate in rates]}]}) == [
        "phases.1.lrs.1 (0.0011377787653 there, 0.0022755575306 now) and 2 more of 3"
    ]


def test_a_tuple_is_the_list_that_json_makes_of_it():
    assert differences({"a": [1, 2]}, {"a": (1, 2)}) == []
    assert as_json({"a": (1, Path("b")), 3: None}) == {"a": [1, "b"], "3": None}
