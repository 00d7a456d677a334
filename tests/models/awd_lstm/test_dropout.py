import copy
import warnings

import pytest
import torch

from ulmfit_pipe.models.awd_lstm.dropout import (
    TimeSharedDropout,
    WeightDropLSTM,
    _in_one_chunk,
    drop_elements,
    drop_vocabulary_rows,
    dropout_mask,
)

NAMES = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]


def lstm_pair(weight_dropout=0.0):
    """Our layer, and torch's with the same weights: input 5, hidden 7."""
    torch.manual_seed(0)
    ours, torchs = WeightDropLSTM(5, 7, weight_dropout=weight_dropout), torch.nn.LSTM(5, 7, batch_first=True)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.97])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_mask_drops_the_share_asked_for_and_keeps_the_mean(p, dtype):
    torch.manual_seed(0)
    mask = dropout_mask(torch.ones(1, dtype=dtype), (301, 503), p)  # not a multiple of four numbers
    assert mask.dtype == dtype and mask.shape == (301, 503)
    kept = torch.ones(1, dtype=dtype).div_(1 - p).item()
    assert mask.unique().tolist() == [0, kept]
    tolerance = 4 * (p * (1 - p) / mask.numel()) ** 0.5  # four standard deviations
    assert (mask == 0).double().mean().item() == pytest.approx(p, abs=tolerance)
    by_place = (mask == 0).flatten()[: mask.numel() // 4 * 4].reshape(-1, 4).double().mean(0)
    assert by_place.tolist() == pytest.approx([p] * 4, abs=2 * tolerance)  # all four draws of a number


def test_neighbours_in_a_mask_are_dropped_independently():
    torch.manual_seed(0)
    dropped = (dropout_mask(torch.ones(1), (400_000,), 0.5) == 0).double() - 0.5
    for distance in (1, 2, 3, 4):
        assert abs((dropped[distance:] * dropped[:-distance]).mean().item()) < 4 * 0.25 / 400_000**0.5


def test_a_share_of_all_but_nothing_is_kept_apart_from_all():
    torch.manual_seed(0)
    mask = dropout_mask(torch.ones(1), (2**18,), 1 - 1e-9)
    assert 0 <= (mask > 0).sum() < 20


def test_dropped_elements_pass_their_gradient_by():
    torch.manual_seed(0)
    weight = torch.ones(7, 5, requires_grad=True)
    dropped = drop_elements(weight, 0.5)
    dropped.sum().backward()
    assert set(dropped.detach().unique().tolist()) == {0.0, 2.0}
    assert torch.equal(weight.grad, dropped.detach())


def test_time_shared_dropout_has_one_mask_for_all_steps_and_another_for_each_row():
    torch.manual_seed(0)
    out = TimeSharedDropout(0.25)(torch.ones(2, 3, 500))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert torch.equal(out[:, 0], out[:, 1]) and torch.equal(out[:, 0], out[:, 2])
    assert not torch.equal(out[0], out[1])
    assert (out == 0).float().mean().item() == pytest.approx(0.25, abs=0.05)


def test_time_shared_dropout_does_nothing_in_eval_or_at_zero():
    x = torch.randn(2, 3, 5)
    assert TimeSharedDropout(0.5).eval()(x) is x
    assert TimeSharedDropout(0.0)(x) is x
    assert "p=0.5" in repr(TimeSharedDropout(0.5))


def test_embedding_dropout_drops_every_occurrence_of_a_word_or_none():
    torch.manual_seed(1)
    ids = torch.arange(11).repeat(2, 3)
    dropped = drop_vocabulary_rows(torch.ones(2, 33, 5), ids, vocab_size=11, p=0.5)
    for word in range(11):
        assert dropped[ids == word].unique().tolist() in ([0.0], [2.0])
    assert set(dropped.unique().tolist()) == {0.0, 2.0}


def test_the_layer_is_torchs_lstm_in_eval():
    ours, torchs = lstm_pair(weight_dropout=0.5)
    x, state = torch.randn(2, 3, 5), (torch.randn(1, 2, 7), torch.randn(1, 2, 7))
    for start in (None, state):
        out, (h, c) = ours.eval()(x, start)
        expected, (expected_h, expected_c) = torchs(x, start)
        for ours_, torchs_ in ((out, expected), (h, expected_h), (c, expected_c)):
            torch.testing.assert_close(ours_, torchs_, atol=1e-7, rtol=0)


def test_in_training_the_recurrent_weight_is_dropped_elementwise_once_per_forward():
    ours, torchs = lstm_pair(weight_dropout=0.5)
    before, x = ours.weight_hh_l0.clone(), torch.randn(2, 3, 5)
    torch.manual_seed(7)
    out, _ = ours(x)
    torch.manual_seed(7)
    with torch.no_grad():
        torchs.weight_hh_l0.copy_(drop_elements(before, 0.5))
    torch.testing.assert_close(out, torchs(x)[0], atol=1e-7, rtol=0)
    assert not torch.equal(out, ours(x)[0])
    assert torch.equal(ours.weight_hh_l0, before)


def test_the_layer_has_four_plain_parameters_and_all_get_gradients():
    ours, _ = lstm_pair(weight_dropout=0.5)
    assert list(ours.state_dict()) == [name for name, _ in ours.named_parameters()] == NAMES
    ours(torch.randn(2, 3, 5))[0].sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in ours.parameters())
    assert "weight_dropout=0.5" in repr(ours)


def test_the_layer_survives_dtype_moves_and_copies_without_a_warning():
    ours, torchs = lstm_pair(weight_dropout=0.5)
    x = torch.randn(2, 3, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        moved = copy.deepcopy(ours).to(torch.float64).to(torch.float32).eval()
        out, _ = moved(x)
        ours.train()(x)[0].sum().backward()
    torch.testing.assert_close(out, torchs(x)[0], atol=1e-7, rtol=0)
    assert ours.weight_hh_l0.grad is not None and moved.weight_hh_l0.grad is None


def test_gradients_may_be_taken_in_eval_mode():
    ours, torchs = lstm_pair()
    x = torch.randn(2, 3, 5)
    ours.eval()(x)[0].pow(2).sum().backward()
    torchs(x)[0].pow(2).sum().backward()
    for name in NAMES:
        torch.testing.assert_close(getattr(ours, name).grad, getattr(torchs, name).grad, atol=1e-6, rtol=1e-5)


def test_the_weights_for_cudnn_are_views_of_one_buffer_and_pass_gradients_back():
    ours, _ = lstm_pair()
    weights = list(ours.parameters())
    pieces = _in_one_chunk(weights)
    assert [p.storage_offset() for p in pieces] == [0, 140, 336, 364]
    assert len({p.untyped_storage().data_ptr() for p in pieces}) == 1
    assert all(torch.equal(piece, weight) for piece, weight in zip(pieces, weights, strict=True))
    sum(piece.pow(2).sum() for piece in pieces).backward()
    assert all(torch.equal(weight.grad, 2 * weight) for weight in weights)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_cudnn_runs_without_a_warning_and_gives_the_cpus_gradients(every_warning):
    ours, _ = lstm_pair(weight_dropout=0.5)
    x, on_gpu = torch.randn(2, 3, 5), copy.deepcopy(ours).cuda()
    ours.eval()(x)[0].pow(2).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on_gpu.train()(x.cuda())[0].sum().backward()
        on_gpu.zero_grad()
        on_gpu.eval()(x.cuda())[0].pow(2).sum().backward()
    for name in NAMES:
        grad = getattr(on_gpu, name).grad.cpu()
        torch.testing.assert_close(grad, getattr(ours, name).grad, atol=1e-3, rtol=1e-3)
