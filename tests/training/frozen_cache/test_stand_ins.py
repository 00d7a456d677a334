import torch
from torch import nn

from ulmfit_pipe.training.frozen_cache.stand_ins import OutputShapes, StandIn, shows_nan, without_numbers


def learned(*calls):
    """Shapes learned from pairs of (input shape, output shape)."""
    shapes = OutputShapes()
    for given, out in calls:
        shapes.learn({(0,): torch.ones(given)}, torch.ones(out))
    return shapes


def shape_of(shapes, *given):
    found = shapes.zeros({(0,): torch.ones(given)})
    return None if found is None else tuple(found[0].shape)


def test_sizes_follow_the_inputs_or_stay_as_they_were():
    shapes = learned(((2, 3), (2, 3, 5)), ((4, 7), (4, 7, 5)))
    assert shape_of(shapes, 9, 11) == (9, 11, 5)
    assert shapes.zeros({(0,): torch.ones(1, 2)})[0].eq(0).all()


def test_two_explanations_that_disagree_give_no_answer_until_a_call_settles_it():
    shapes = learned(((2, 5), (2, 5)))  # 5 for the input's 5, or 5 always?
    assert shape_of(shapes, 2, 5) == (2, 5)
    assert shape_of(shapes, 2, 6) is None
    shapes.learn({(0,): torch.ones(2, 6)}, torch.ones(2, 6))
    assert shape_of(shapes, 2, 8) == (2, 8)


def test_outputs_that_are_built_differently_are_never_guessed():
    shapes = learned(((2, 3), (2, 3)), ((4, 7), (4, 7, 1)))
    assert shape_of(shapes, 2, 3) is None


def test_calls_with_other_numbers_of_dimensions_are_kept_apart():
    shapes = learned(((2, 3), (2, 6)), ((4, 3), (4, 6)))
    assert shape_of(shapes, 4, 3) == (4, 6)
    assert shape_of(shapes, 4, 3, 1) is None


def test_what_is_no_tensor_and_no_plain_value_is_called_strange():
    shapes = OutputShapes()
    shapes.learn({(0,): torch.ones(2)}, (torch.ones(2), None, "text"))
    assert shapes.strange is None
    shapes.learn({(0,): torch.ones(2)}, (torch.ones(2), {1, 2}))
    assert shapes.strange == "set"
    assert shapes.zeros({(0,): torch.ones(2)}) is None


def test_a_module_left_out_gives_zeros_of_its_own_shape_without_running():
    layer = nn.Linear(3, 5)
    calls = []
    layer.register_forward_hook(lambda *_: calls.append("hook"))
    part = StandIn("layer", layer)
    part.install()
    for rows in (2, 4):
        assert layer(torch.ones(rows, 3)).ne(0).all()
    part.active = True
    given = layer(torch.ones(7, 3))
    assert given.shape == (7, 5) and given.eq(0).all() and not given.requires_grad
    part.remove()
    assert layer(torch.ones(7, 3)).ne(0).all()
    assert "forward" not in layer.__dict__


def test_a_forward_of_the_modules_own_is_put_back():
    layer = nn.Linear(3, 5)
    own = layer.forward = lambda rows: rows + 1
    part = StandIn("layer", layer)
    part.install()
    assert layer(torch.ones(2, 3)).tolist() == [[2, 2, 2]] * 2
    part.remove()
    assert layer.forward is own


def test_arguments_are_shown_and_outputs_changed_on_request():
    layer = nn.Linear(3, 5)
    part = StandIn("layer", layer)
    seen = []
    part.look, part.change = seen.append, without_numbers
    part.install()
    rows = torch.ones(2, 3)
    assert shows_nan(layer(rows))
    part.remove()
    assert seen == [((rows,), {})]


def test_nan_is_shown_by_floating_point_numbers_only():
    changed = without_numbers({"float": torch.ones(2), "whole": torch.ones(2, dtype=torch.long)})
    assert shows_nan(changed["float"]) and not shows_nan(changed["whole"])
    assert changed["whole"].tolist() == [1, 1]
    assert not shows_nan(torch.ones(0))
