import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from tests.support.toy_models import VOCAB, ToyBatches, ToyLanguageModel, lm_groups_of, token_rows
from ulmfit_pipe.training.loop import fit
from ulmfit_pipe.training.metrics import LanguageModelMetric
from ulmfit_pipe.training.objectives import IGNORED, TokenObjective
from ulmfit_pipe.training.records import Phase, Task, TrainingOptions
from ulmfit_pipe.training.schedules import Schedule


def new_language_model(seed=0):
    torch.manual_seed(seed)
    return ToyLanguageModel()


def rows_with_gaps(count):
    rows = token_rows(count)
    rows["targets"][:, 1] = IGNORED
    rows["targets"][0] = IGNORED
    return rows


@pytest.mark.parametrize("batch", [token_rows(4), rows_with_gaps(4)])
def test_summed_loss_over_count_is_torchs_mean_over_the_targets_that_count(batch):
    model, objective = new_language_model(), TokenObjective()
    output = objective(model, {**batch, "row": torch.arange(4)}, None)
    logits = model(batch["input_ids"]).logits
    expected = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=IGNORED)
    assert float(output.loss_sum.detach()) / objective.count(batch) == pytest.approx(float(expected.detach()), rel=1e-6)
    wanted = batch["targets"] != IGNORED
    assert objective.count(batch) == wanted.sum() == len(output.logits)
    assert torch.equal(output.logits, logits[wanted])
    assert torch.equal(output.labels, batch["targets"][wanted])
    assert not output.logits.requires_grad
    assert output.penalty is None
    assert output.carry is None


def test_gradients_are_those_of_the_targets_that_count():
    batch, first, second = rows_with_gaps(4), new_language_model(), new_language_model()
    TokenObjective()(first, batch, None).loss_sum.backward()
    logits = second(batch["input_ids"]).logits
    F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=IGNORED, reduction="sum").backward()
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_batch_that_asks_for_nothing_adds_nothing():
    batch = token_rows(2)
    batch["targets"].fill_(IGNORED)
    output = TokenObjective()(new_language_model(), batch, None)
    assert float(output.loss_sum.detach()) == 0
    assert output.logits.shape == (0, VOCAB)
    assert TokenObjective().count(batch) == 0


def test_half_precision_logits_are_summed_in_single_precision():
    def halved(model, inputs, wanted):
        return model(**inputs).logits[wanted].bfloat16()

    output = TokenObjective(logits_at=halved)(new_language_model(), token_rows(4), None)
    assert output.loss_sum.dtype == torch.float32
    assert output.logits.dtype == torch.bfloat16


def test_the_loop_trains_on_tokens_and_measures_them(accelerator):
    rows = rows_with_gaps(24)
    model = new_language_model()
    task = Task(ToyBatches(rows), TokenObjective(), ToyBatches(rows), lambda: LanguageModelMetric(masked=True))
    phase = Phase("all", (0, 1), (0.05, 0.05), Schedule.constant(), epochs=8)
    records, _ = fit(
        model, lm_groups_of(model), phase, task, accelerator=accelerator, options=TrainingOptions(progress=False)
    )
    losses = [record.metrics["loss"] for record in records]
    assert losses[-1] < losses[0]
    assert {"pseudo_perplexity", "token_accuracy"} < set(records[-1].metrics)
    assert records[-1].metrics["n"] == int((rows["targets"] != IGNORED).sum())
