from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.support.toy_models import CLASSES, VOCAB, ToyLanguageModel, new_model, text_rows, token_rows
from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM
from ulmfit_pipe.training import objectives
from ulmfit_pipe.training.objectives import (
    ClassificationObjective,
    SequenceObjective,
    activation_penalty,
    detach,
    penalty_parts,
    widened,
)

WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 3.0])


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_summed_loss_over_count_is_torchs_mean(weights, smoothing):
    model, batch = new_model(), text_rows(11)
    objective = ClassificationObjective(class_weights=weights, label_smoothing=smoothing)
    output = objective(model, batch, None)
    expected = F.cross_entropy(
        model(batch["input_ids"]).logits, batch["labels"], weight=weights, label_smoothing=smoothing
    )
    mean = float(output.loss_sum.detach()) / objective.count(batch)
    assert mean == pytest.approx(float(expected.detach()), rel=1e-6)
    assert output.logits.shape == (11, CLASSES)
    assert not output.logits.requires_grad
    assert output.penalty is None
    assert output.carry is None


def test_multi_label_loss_over_count_is_torchs_mean():
    model, batch = new_model(), text_rows(11)
    batch["labels"] = torch.rand(11, CLASSES).round()
    logits = model(batch["input_ids"]).logits
    plain, weighted = (
        ClassificationObjective(multi_label=True),
        ClassificationObjective(multi_label=True, class_weights=WEIGHTS, label_smoothing=0.2),
    )
    assert plain.count(batch) == weighted.count(batch) == 11
    expected = F.binary_cross_entropy_with_logits(logits, batch["labels"])
    assert float(plain(model, batch, None).loss_sum.detach()) / 11 == pytest.approx(float(expected.detach()), rel=1e-6)
    smooth = batch["labels"] * 0.8 + 0.1
    expected = F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=WEIGHTS)
    assert float(weighted(model, batch, None).loss_sum.detach()) / 11 == pytest.approx(
        float(expected.detach()), rel=1e-6
    )


def test_weights_of_several_labels_leave_the_rows_without_a_label_alone():
    model, batch = new_model(), text_rows(11)
    batch["labels"] = torch.zeros(11, CLASSES)
    losses = [
        float(ClassificationObjective(multi_label=True, class_weights=weights)(model, batch, None).loss_sum.detach())
        for weights in (None, WEIGHTS)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"alpha": -1}, "alpha and beta must be 0 or more, got -1 and 0.0"),
        ({"class_weights": torch.tensor([1.0, -1.0])}, r"class_weights must be 0 or more .* got \[1.0, -1.0\]"),
        ({"class_weights": torch.zeros(2)}, "not all 0"),
        ({"class_weights": torch.tensor([1.0, torch.nan])}, "class_weights must be 0 or more"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ClassificationObjective(**options)


class WithRawOutput(nn.Module):
    def __init__(self, *, masked):
        super().__init__()
        self.raw = nn.Parameter(torch.tensor([[[1.0], [3.0], [100.0]], [[2.0], [2.0], [2.0]]]))  # (2, 3, 1)
        self.masked = masked

    def forward(self, input_ids):
        mask = {"raw_mask": torch.tensor([[True, True, False], [True, True, True]])} if self.masked else {}
        return SimpleNamespace(logits=self.raw[:, 0].expand(-1, 2), raw_output=self.raw, **mask)


def test_ar_and_tar_look_at_real_positions_only_and_only_in_training():
    objective = ClassificationObjective(alpha=2.0, beta=1.0)
    batch = {"input_ids": torch.zeros(2, 3), "labels": torch.tensor([0, 1])}
    model = WithRawOutput(masked=True)
    # AR: 2 * mean(1, 9, 4, 4, 4); TAR: 1 * mean(4, 0, 0)
    assert float(objective(model, batch, None).penalty.detach()) == pytest.approx(2 * 22 / 5 + 4 / 3)
    assert objective(model.eval(), batch, None).penalty is None
    assert objective(WithRawOutput(masked=False), batch, None).penalty.item() > 1000
    assert ClassificationObjective()(WithRawOutput(masked=False), batch, None).penalty is None


def test_several_processes_are_given_each_penalty_with_the_positions_that_it_is_over():
    batch = {"input_ids": torch.zeros(2, 3), "labels": torch.tensor([0, 1])}
    objective = ClassificationObjective(alpha=2.0, beta=1.0)
    output = objective(WithRawOutput(masked=True), batch, None)
    assert [(round(float(term.detach()), 5), int(count)) for term, count in output.penalty_parts] == [
        (8.8, 5),  # 2 * 22 / 5
        (1.33333, 3),
    ]
    everywhere = objective(WithRawOutput(masked=False), batch, None).penalty_parts
    assert [int(count) for _, count in everywhere] == [6, 4]
    assert list(ClassificationObjective()(WithRawOutput(masked=True), batch, None).penalty_parts) == []


def test_a_share_of_one_token_texts_takes_part_in_tar_with_nothing():
    raw = torch.full((2, 1, 3), 2.0)
    parts = penalty_parts(raw, raw, alpha=0.0, beta=1.0, mask=torch.ones(2, 1, dtype=torch.bool))
    assert [(float(term), int(count)) for term, count in parts] == [(0.0, 0)]
    assert [(float(term), int(count)) for term, count in penalty_parts(raw, raw, alpha=0.0, beta=1.0)] == [(0.0, 0)]


def test_tar_of_a_one_token_window_is_left_out():
    raw = torch.full((2, 1, 3), 2.0)
    assert float(activation_penalty(raw, raw, alpha=2.0, beta=1.0)) == 8.0
    assert activation_penalty(raw, raw, alpha=0.0, beta=1.0) is None


def test_the_language_model_loss_is_a_sum_over_the_targets_that_count():
    model, batch = ToyLanguageModel(), token_rows(2)
    batch["targets"][0, 0] = -100
    objective = SequenceObjective(alpha=0.0, beta=0.0)
    output = objective(model, batch, None)
    expected = F.cross_entropy(model(batch["input_ids"]).logits.reshape(-1, VOCAB), batch["targets"].flatten())
    assert objective.count(batch) == 5
    assert float(output.loss_sum) / 5 == pytest.approx(float(expected.detach()), rel=1e-6)


def test_carried_state_continues_the_text_and_is_cut_off_its_graph():
    model, batch = ToyLanguageModel(), token_rows(2)
    objective = SequenceObjective()
    first = objective(model, {key: value[:, :1] for key, value in batch.items()}, None)
    second = objective(model, {key: value[:, 1:] for key, value in batch.items()}, first.carry)
    whole = objective(model, batch, None)
    assert torch.allclose(torch.cat([first.logits, second.logits], dim=1), whole.logits, atol=1e-6)
    assert not any(part.requires_grad for part in first.carry)


def test_penalties_of_the_language_model_are_means_and_off_in_evaluation():
    model, batch = ToyLanguageModel(), token_rows(2)
    raw = model(batch["input_ids"]).raw_output
    expected = 2 * raw.pow(2).mean() + (raw[:, 1:] - raw[:, :-1]).pow(2).mean()
    assert float(SequenceObjective()(model, batch, None).penalty) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert SequenceObjective()(model.eval(), batch, None).penalty is None


def test_half_precision_is_widened_and_double_precision_kept():
    assert widened(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert widened(torch.ones(1, dtype=torch.float64)).dtype == torch.float64


def test_nested_states_are_detached():
    state = ((torch.ones(1, requires_grad=True), [torch.ones(1, requires_grad=True)]), None)
    (first, (second,)), nothing = detach(state)
    assert not first.requires_grad
    assert not second.requires_grad
    assert nothing is None


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_a_loss_summed_in_chunks_and_its_gradient_are_torchs(kind: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(3)
    classes = objectives.CHUNK_NUMBERS // 20  # several chunks, the last one not full
    logits = (torch.randn(53, classes, generator=generator) * 5).to(kind).requires_grad_()
    targets = torch.randint(classes, (53,), generator=generator)
    targets[[0, 20, 52]] = objectives.IGNORED
    assert logits.numel() > objectives.CHUNK_NUMBERS
    ours = objectives.summed_cross_entropy(logits, targets)
    (our_gradient,) = torch.autograd.grad(ours / 50, logits)
    theirs = F.cross_entropy(objectives.widened(logits), targets, reduction="sum")
    (their_gradient,) = torch.autograd.grad(theirs / 50, logits)
    assert ours.dtype == theirs.dtype
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert our_gradient.dtype == kind
    assert not our_gradient[[0, 20, 52]].any()
    assert (our_gradient - their_gradient).abs().max() <= tolerance * their_gradient.abs().max()
    with torch.no_grad():
        assert objectives.summed_cross_entropy(logits, targets).item() == ours.item()


def test_a_target_that_is_no_class_is_refused_in_chunks_too() -> None:
    logits = torch.zeros(3, objectives.CHUNK_NUMBERS)
    with pytest.raises((RuntimeError, IndexError), match="out of bounds"):
        objectives.summed_cross_entropy(logits, torch.tensor([0, -1, 2]))


@pytest.mark.parametrize(("kind", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_decoders_loss_without_its_logits_has_the_same_value_and_gradients(
    kind: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(5)
    rows = objectives.DECODED_ROWS + 20  # two chunks, the last one not full
    hidden = torch.randn(2, rows // 2, 7, generator=generator, dtype=kind).requires_grad_()
    weight, bias = (torch.randn(*size, generator=generator, dtype=kind).requires_grad_() for size in [(11, 7), (11,)])
    targets = torch.randint(11, (2, rows // 2), generator=generator)
    targets[0, 3] = targets[1, -1] = objectives.IGNORED
    found = []
    for loss_sum in (
        objectives.decoded_cross_entropy(hidden, weight, bias, targets),
        F.cross_entropy(F.linear(hidden, weight, bias).flatten(0, 1), targets.flatten(), reduction="sum"),
    ):
        found.append((loss_sum, *torch.autograd.grad(loss_sum / 50, (hidden, weight, bias))))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()
    assert not found[0][1][0, 3].any()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_training_step_without_logits_is_the_step_with_them(frozen: bool, bf16: bool) -> None:
    config = AwdLstmConfig(vocab_size=50, embedding_size=8, hidden_size=12, num_hidden_layers=2)
    model = AwdLstmForCausalLM(config).train()
    model.lm_head.weight.requires_grad_(not frozen)  # the embeddings' too: they are one
    tokens = torch.randint(50, (3, 10), generator=torch.Generator().manual_seed(1))
    batch, found = {"input_ids": tokens[:, :-1], "targets": tokens[:, 1:]}, []
    for decodes in (True, False):
        torch.manual_seed(2)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            output = SequenceObjective(decodes=decodes)(model, batch, None)
        (output.loss_sum / 27 + output.penalty).backward()
        found.append((output.loss_sum.detach(), {name: value.grad for name, value in model.named_parameters()}))
        model.zero_grad()
        assert (output.logits.numel() == 0) == decodes
    (loss, ours), (their_loss, theirs) = found
    tolerance = 2e-2 if bf16 else 1e-5
    assert float(loss) == pytest.approx(float(their_loss), rel=tolerance)
    for name, gradient in theirs.items():
        if gradient is None:
            assert ours[name] is None
        else:
            assert (ours[name] - gradient).abs().max() <= tolerance * gradient.abs().max(), name
    assert SequenceObjective(decodes=True)(model.eval(), batch, None).logits.shape == (3, 9, 50)
