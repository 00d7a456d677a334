import pytest
import torch
from torch import nn

from ulmfit_pipe.models.heads.classifier_heads import ConcatPooling, PoolingClassifierHead, PrefixPool

OUTPUTS = torch.tensor([[[1.0, -5.0], [3.0, -6.0], [2.0, -7.0]], [[4.0, -1.0], [9.0, 9.0], [9.0, 9.0]]])
MASK = torch.tensor([[True, True, True], [True, False, False]])


def head(dropout=0.4, hidden_dropout=0.1):
    torch.manual_seed(0)
    return PoolingClassifierHead(15, 6, 4, dropout=dropout, hidden_dropout=hidden_dropout)


def test_pooling_is_last_max_mean_over_real_positions():
    pooled = ConcatPooling()(OUTPUTS, MASK)
    assert pooled.tolist() == [[2, -7, 3, -5, 2, -6], [4, -1, 4, -1, 4, -1]]


def test_what_was_read_before_counts_in_max_and_mean():
    prefix = PrefixPool(torch.zeros(2, 2))
    prefix.update(torch.tensor([0]), torch.tensor([[[8.0, -9.0], [0.0, -1.0]]]))
    prefix.update(torch.tensor([0]), torch.tensor([[[6.0, -2.0]]]))
    pooled = ConcatPooling()(OUTPUTS, MASK, lengths=torch.tensor([6, 1]), prefix=prefix)
    torch.testing.assert_close(pooled, torch.tensor([[2, -7, 8, -1, 20 / 6, -5], [4, -1, 4, -1, 4, -1]]))


def test_the_mean_of_half_precision_outputs_is_summed_in_single():
    outputs = torch.ones(1, 3000, 2, dtype=torch.bfloat16)
    pooled = ConcatPooling()(outputs, torch.ones(1, 3000, dtype=torch.bool))
    assert pooled.dtype == torch.bfloat16
    assert pooled.unique().tolist() == [1.0]


def test_the_head_is_norm_dropout_linear_relu_norm_dropout_linear():
    ours, x = head(), torch.randn(3, 15)
    first, second = ours.blocks
    twin = nn.Sequential(first.norm, first.linear, nn.ReLU(), second.norm, second.linear).eval()
    torch.testing.assert_close(ours.eval()(x), twin(x))
    assert first.linear.bias is None and second.linear.bias is None
    assert first.norm.bias.unique().item() == second.norm.bias.unique().item() == pytest.approx(1e-3)
    assert (first.dropout.p, second.dropout.p) == (0.4, 0.1)


def test_key_names_do_not_depend_on_the_dropouts():
    keys = list(head(0.4, 0.1).state_dict())
    assert keys == list(head(0.0, 0.0).state_dict())
    assert "blocks.0.linear.weight" in keys
    head(0.0, 0.0).load_state_dict(head(0.4, 0.1).state_dict(), strict=True)


def test_a_training_batch_of_one_is_refused_and_frozen_norms_allow_it():
    ours = head().train()
    with pytest.raises(ValueError, match="needs at least 2 documents in a batch, got 1; use a larger batch size"):
        ours(torch.randn(1, 15))
    for block in ours.blocks:
        block.norm.eval()
    assert ours(torch.randn(1, 15)).shape == (1, 4)


def test_norms_over_several_processes_count_their_rows_themselves():
    ours = head().train()
    for block in ours.blocks:
        block.norm.global_batch = object()  # as training over several processes marks them
        block.norm.forward = lambda x: x
    assert ours(torch.randn(1, 15)).shape == (1, 4)
