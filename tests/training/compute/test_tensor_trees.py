from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import torch

from ulmfit_pipe.training.compute.tensor_trees import leaves_of, tensors_of, with_tensors

Pair = namedtuple("Pair", ["left", "right"])


@dataclass
class Output:
    logits: torch.Tensor
    states: tuple | None = None


def tree():
    ones = torch.ones(2)
    return ((Output(ones, (ones + 1, None)), [ones + 2, "text"]), {"mask": ones + 3, "pair": Pair(ones + 4, 5)})


def test_every_leaf_has_its_place():
    found = dict(leaves_of(tree()))
    assert list(found) == [
        (0, 0, "logits"),
        (0, 0, "states", 0),
        (0, 0, "states", 1),
        (0, 1, 0),
        (0, 1, 1),
        (1, "mask"),
        (1, "pair", 0),
        (1, "pair", 1),
    ]
    assert found[0, 1, 1] == "text"
    assert [value.tolist()[0] for value in tensors_of(tree()).values()] == [1, 2, 3, 4, 5]


def test_containers_keep_their_kind_when_tensors_change():
    (output, others), rest = with_tensors(tree(), lambda place, value: value * len(place))
    assert isinstance(output, Output) and isinstance(others, list) and isinstance(rest["pair"], Pair)
    assert output.logits.tolist() == [3, 3]
    assert output.states[0].tolist() == [8, 8] and output.states[1] is None
    assert rest["pair"].left.tolist() == [15, 15] and rest["pair"].right == 5
    ordered = with_tensors(OrderedDict(a=torch.ones(1)), lambda _place, value: value + 1)
    assert type(ordered) is OrderedDict and ordered["a"].tolist() == [2]


def test_branches_in_which_nothing_changes_are_the_given_ones():
    given = tree()
    assert with_tensors(given, lambda _place, value: value) is given
    changed = with_tensors(given, lambda place, value: value + 1 if place == (1, "mask") else value)
    assert changed[0] is given[0] and changed[1] is not given[1]
