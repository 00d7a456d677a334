import json
import math
import socket

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

from ulmfit_pipe.training.metrics import (
    ClassificationMetric,
    LanguageModelMetric,
    MultiLabelMetric,
    average_precision,
    choose_thresholds,
    classification_scores,
    gather_rows,
    multi_label_scores,
    perplexity,
)


def add_batches(metric, logits, labels, losses, sizes):
    """Feed rows in batches of the given sizes; `losses` is one loss a row."""
    for part in torch.arange(len(labels)).split(sizes):
        metric.update(logits[part], labels[part], losses[part].sum(), float(len(part)))
    return metric


def single_label_rows(rows=23, num_labels=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, num_labels, generator=generator)
    labels = torch.randint(num_labels, (rows,), generator=generator)
    return logits, labels, torch.rand(rows, generator=generator)


def multi_label_rows(rows=29, num_labels=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, num_labels, generator=generator)
    labels = (torch.rand(rows, num_labels, generator=generator) < 0.4).float()
    return logits, labels, torch.rand(rows, generator=generator)


def sum_of(others):
    """A reduction as if the other processes held these metrics."""

    def reduce(values):
        return values + sum(other._sums.values for other in others)

    return reduce


def test_classification_scores_equal_scikit_learns():
    logits, labels, losses = single_label_rows()
    scores = add_batches(ClassificationMetric(5), logits, labels, losses, 7).compute()
    predictions = logits.argmax(1)
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, predictions), abs=1e-15)
    assert scores["macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro"), abs=1e-15)
    assert scores["loss"] == pytest.approx(losses.double().mean().item(), rel=1e-6)
    assert scores["n"] == 23


@pytest.mark.parametrize(
    ("labels", "predictions"),
    [([0, 0, 1], [0, 1, 1]), ([0, 0, 0], [3, 3, 3]), ([2, 2], [2, 2]), ([1, 3, 3, 0], [1, 3, 1, 3])],
)
def test_macro_f1_treats_absent_classes_as_scikit_learn_does(labels, predictions):
    metric = ClassificationMetric(4)
    logits = torch.nn.functional.one_hot(torch.tensor(predictions), 4).float()
    metric.update(logits, torch.tensor(labels), torch.tensor(1.0), len(labels))
    expected = f1_score(labels, predictions, average="macro", zero_division=0)
    assert metric.compute()["macro_f1"] == pytest.approx(expected, abs=1e-15)


def test_a_worked_example_of_classification_scores():
    right, actual, predicted = torch.tensor([[3, 4], [4, 6], [5, 5]])  # F1 of the classes: 6/9 and 8/11
    assert classification_scores(right, actual, predicted) == pytest.approx(
        {"accuracy": 0.7, "macro_f1": (6 / 9 + 8 / 11) / 2}
    )


def test_the_confusion_matrix_has_true_classes_in_rows():
    metric = ClassificationMetric(3)
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 9, 0]])
    metric.update(logits, torch.tensor([0, 2, 2]), torch.tensor(0.5), 3)
    assert metric.confusion().tolist() == [[1, 0, 0], [0, 0, 0], [0, 2, 0]]


def test_the_confusion_matrix_adds_up_over_processes():
    metrics = [ClassificationMetric(2), ClassificationMetric(2)]
    for metric, label in zip(metrics, (0, 1), strict=True):
        metric.update(torch.tensor([[9.0, 0]]), torch.tensor([label]), torch.tensor(0.5), 1)
    assert metrics[0].confusion(lambda values: values + metrics[1]._cells.values).tolist() == [[1, 0], [1, 0]]


def test_memory_is_linear_in_the_classes_where_there_are_thousands():
    sizes = {}
    for num_labels in (1_000, 2_000, 20_000):
        metric = ClassificationMetric(num_labels)
        labels = torch.arange(0, num_labels, num_labels // 8)
        logits = torch.nn.functional.one_hot(labels.flip(0), num_labels).float()
        metric.update(logits, labels, torch.tensor(4.0), 8.0)
        reduced = []
        scores = metric.compute(lambda values, reduced=reduced: reduced.append(values.numel()) or values)
        assert scores == {"accuracy": 0.0, "macro_f1": 0.0, "loss": 0.5, "n": 8}
        sizes[num_labels] = (metric._sums.values.numel() + metric._cells.values.numel(), *reduced)
    assert sizes == {1_000: (1_003_002, 3_002), 2_000: (6_002, 6_002), 20_000: (60_002, 60_002)}
    with pytest.raises(
        ValueError, match="a confusion matrix is kept for up to 1,000 classes, here are 20,000; compare"
    ):
        metric.confusion()


def test_scores_of_two_thousand_classes_equal_scikit_learns_and_unpack_no_number(monkeypatch):
    logits, labels, losses = single_label_rows(rows=300, num_labels=2_000)
    logits[range(0, 300, 2), labels[::2]] = 9.0
    metric = add_batches(ClassificationMetric(2_000), logits, labels, losses, 64)
    monkeypatch.setattr(
        torch.Tensor, "__iter__", lambda self: iter(self.unbind(0)) if len(self) == 3 else pytest.fail("all")
    )
    scores = metric.compute()
    monkeypatch.undo()
    predictions = logits.argmax(1)
    assert scores["accuracy"] == pytest.approx(accuracy_score(labels, predictions), abs=1e-15)
    assert scores["macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro"), abs=1e-15)


def test_the_loss_is_divided_by_the_weight_given_and_n_counts_rows():
    metric = ClassificationMetric(2)
    metric.update(torch.zeros(3, 2), torch.tensor([0, 1, 1]), torch.tensor(6.0), 1.5)
    scores = metric.compute()
    assert (scores["loss"], scores["n"]) == (4.0, 3)


def test_batch_sizes_do_not_change_the_scores():
    logits, labels, losses = single_label_rows()
    whole = add_batches(ClassificationMetric(5), logits, labels, losses, 23).compute()
    assert add_batches(ClassificationMetric(5), logits, labels, losses, 1).compute() == pytest.approx(whole)


def test_three_unequal_processes_give_the_scores_of_one():
    logits, labels, losses = single_label_rows()
    whole = add_batches(ClassificationMetric(5), logits, labels, losses, 4).compute()
    shares = [slice(0, 11), slice(11, 23), slice(23, 23)]  # the last process has no row
    metrics = [add_batches(ClassificationMetric(5), logits[s], labels[s], losses[s], 4) for s in shares[:2]]
    metrics.append(ClassificationMetric(5))
    for own, metric in enumerate(metrics):
        others = [other for index, other in enumerate(metrics) if index != own]
        assert metric.compute(sum_of(others)) == pytest.approx(whole)


def test_computing_twice_with_an_in_place_reduction_gives_the_same_twice():
    logits, labels, losses = single_label_rows()
    metric = add_batches(ClassificationMetric(5), logits, labels, losses, 4)
    assert metric.compute(lambda values: values.mul_(2)) == metric.compute(lambda values: values.mul_(2))


def test_sums_do_not_keep_the_graph():
    metric = ClassificationMetric(2)
    logits = torch.randn(3, 2, requires_grad=True)
    metric.update(logits, torch.tensor([0, 1, 0]), logits.sum(), 3)
    assert not metric._sums.values.requires_grad


def test_a_million_small_losses_lose_no_digits():
    metric = LanguageModelMetric()
    for _ in range(1000):
        metric.update(torch.zeros(1, 1, 2), torch.tensor([[0]]), torch.tensor(1000.1), 1000)
    assert metric.compute()["loss"] == pytest.approx(float(torch.tensor(1000.1)) / 1000, rel=1e-12)


def test_scores_are_plain_json_numbers():
    logits, labels, losses = single_label_rows()
    scores = add_batches(ClassificationMetric(5), logits, labels, losses, 7).compute()
    assert json.loads(json.dumps(scores)) == scores


@pytest.mark.parametrize("bad", [-1, -100, 5])
def test_a_label_outside_the_classes_is_never_counted_as_another(bad):
    metric = ClassificationMetric(5)
    with pytest.raises((IndexError, RuntimeError), match="index"):
        metric.update(torch.zeros(2, 5), torch.tensor([1, bad]), torch.tensor(0.0), 2)


def test_metrics_without_rows_are_refused():
    with pytest.raises(ValueError, match=r"no row was evaluated; is the validation or test data empty\?"):
        ClassificationMetric(3).compute()
    with pytest.raises(ValueError, match=r"no row was evaluated"):
        MultiLabelMetric(3).compute()
    with pytest.raises(ValueError, match=r"no token was evaluated"):
        LanguageModelMetric().compute()


def test_logits_of_another_width_are_refused():
    for metric in (ClassificationMetric(4), MultiLabelMetric(4)):
        with pytest.raises(ValueError, match=r"must have the shape \(batch, 4\), got \(2, 3\); is num_labels"):
            metric.update(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), torch.tensor(0.0), 2)


def test_a_metric_of_no_labels_is_refused():
    for kind in (ClassificationMetric, MultiLabelMetric):
        with pytest.raises(ValueError, match=r"num_labels must be at least 1, got 0; pass the number of classes"):
            kind(0)


def test_multi_label_scores_equal_scikit_learns():
    logits, labels, losses = multi_label_rows()
    scores = add_batches(MultiLabelMetric(3, thresholds=[0.3, 0.5, 0.6]), logits, labels, losses, 4).compute()
    probabilities = torch.sigmoid(logits.double()).numpy()
    given = probabilities >= np.array([0.3, 0.5, 0.6])
    assert scores == pytest.approx(
        {
            "accuracy": accuracy_score(labels, given),
            "micro_f1": f1_score(labels, given, average="micro"),
            "macro_f1": f1_score(labels, given, average="macro"),
            "mean_average_precision": average_precision_score(labels, probabilities, average="macro"),
            "loss": losses.double().mean().item(),
            "n": 29,
        }
    )


def test_average_precision_takes_equal_scores_together_as_scikit_learn_does():
    generator = np.random.default_rng(2)
    for _ in range(20):
        scores = generator.integers(0, 5, size=17) / 5
        labels = generator.random(17) < 0.5
        labels[3] = True
        assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores))


def test_multi_label_f1_is_zero_for_a_label_never_found_and_its_precision_is_left_out():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.3], [0.8, 0.2]])
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    assert multi_label_scores(probabilities, labels) == {
        "accuracy": 1.0,
        "micro_f1": 1.0,
        "macro_f1": 0.5,
        "mean_average_precision": 1.0,
    }
    nothing = multi_label_scores(probabilities, np.zeros((3, 2)))
    assert math.isnan(nothing["mean_average_precision"])


def test_very_sure_logits_keep_their_order():
    metric = MultiLabelMetric(1)
    logits = torch.tensor([[22.0], [20.0], [18.0]])  # all 1.0 after a float32 sigmoid
    metric.update(logits, torch.tensor([[1.0], [0.0], [0.0]]), torch.tensor(0.0), 3)
    assert metric.compute()["mean_average_precision"] == 1.0


def test_thresholds_part_the_rows_at_the_best_f1():
    probabilities = np.array([[0.9, 0.40, 0.2], [0.6, 0.20, 0.9], [0.3, 0.10, 0.4], [0.1, 0.05, 0.3]])
    labels = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]])
    assert choose_thresholds(probabilities, labels) == pytest.approx([0.45, 0.15, 0.5])


def test_of_equally_good_thresholds_the_nearest_to_a_half_is_taken():
    probabilities = np.array([[0.9], [0.8], [0.45]])  # F1 2/3 at 0.85 (one right of one) and again at 0.225 is 4/5
    assert choose_thresholds(probabilities, np.array([[1], [0], [1]])) == pytest.approx([0.225])
    tied = np.array([[0.9], [0.6], [0.4], [0.1]])  # from 0.75: 1 of 2 found, F1 2/3; from 0.05: all given, F1 2/3
    assert choose_thresholds(tied, np.array([[1], [0], [0], [1]])) == pytest.approx([0.75])


def test_chosen_thresholds_are_at_least_as_good_as_a_half_on_their_rows():
    for seed in range(5):
        logits, labels, _ = multi_label_rows(seed=seed)
        probabilities = torch.sigmoid(logits.double()).numpy()
        chosen = choose_thresholds(probabilities, labels.numpy())
        best = max_f1_by_trying(probabilities, labels.numpy())
        assert multi_label_scores(probabilities, labels.numpy(), chosen)["macro_f1"] == pytest.approx(best)


def max_f1_by_trying(probabilities, labels):
    tries = [
        max(f1_score(labels[:, k], probabilities[:, k] >= t) for t in probabilities[:, k])
        for k in range(labels.shape[1])
    ]
    return np.mean(tries)


def test_a_label_with_too_few_rows_with_or_without_it_keeps_a_half():
    probabilities = np.array([[0.4, 0.4, 0.4], [0.3, 0.3, 0.3], [0.2, 0.2, 0.2], [0.1, 0.1, 0.1]])
    labels = np.array([[1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]])
    assert choose_thresholds(probabilities, labels) == pytest.approx([0.25, 0.35, 0.15])
    assert choose_thresholds(probabilities, labels, least_rows=2) == pytest.approx([0.25, 0.5, 0.5])


def test_everything_is_given_where_that_is_best():
    assert choose_thresholds(np.array([[0.2], [0.6]]), np.array([[1], [1]])) == pytest.approx([0.1])


def test_thresholds_that_do_not_fit_are_refused():
    for bad in ([0.5, 0.5], [0.5, 0.5, 1.5], [0.5, 0.5, math.nan]):
        with pytest.raises(ValueError, match=r"thresholds must be 3 numbers in \[0, 1\], one per label, got \[0.5"):
            MultiLabelMetric(3, thresholds=bad)


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"share the shape \(rows, num_labels\), got \(2, 3\) and \(2, 4\)"):
        multi_label_scores(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"targets must be 0 or 1, got \[0, 2\]"):
        choose_thresholds(np.zeros((2, 1)), np.array([[0], [2]]))
    with pytest.raises(ValueError, match="no row was evaluated"):
        choose_thresholds(np.zeros((0, 2)), np.zeros((0, 2)))


def test_language_model_scores_are_per_token():
    logits = torch.full((2, 3, 7), -9.0)
    best = torch.tensor([[1, 2, 3], [4, 5, 6]])
    logits.scatter_(2, best.unsqueeze(2), 9.0)
    metric = LanguageModelMetric()
    metric.update(logits, torch.tensor([[1, 2, 0], [4, -100, 0]]), torch.tensor(10.0), 5)
    metric.update(logits[:, :1], best[:, :1], torch.tensor(4.0), 2)
    assert metric.compute() == pytest.approx(
        {"loss": 2.0, "perplexity": math.exp(2.0), "token_accuracy": 5 / 7, "n": 7}
    )


def test_the_perplexity_of_masked_tokens_is_named_a_pseudo_perplexity():
    metric = LanguageModelMetric(masked=True)
    metric.update(torch.eye(7)[:3], torch.tensor([0, 1, 5]), torch.tensor(6.0), 3)
    assert metric.compute() == pytest.approx(
        {"loss": 2.0, "pseudo_perplexity": math.exp(2.0), "token_accuracy": 2 / 3, "n": 3}
    )


def test_perplexity_of_a_hopeless_loss_is_infinite():
    assert perplexity(800.0) == math.inf
    assert perplexity(math.inf) == math.inf
    assert math.isnan(perplexity(math.nan))
    assert perplexity(0.0) == 1.0


def test_unequal_shares_are_gathered_whole():
    shares = [torch.arange(6.0).reshape(3, 2), torch.zeros(0, 2), torch.tensor([[7.0, 8.0]])]
    lengths = torch.tensor([3, 0, 1])

    def gather_as_of(own):
        def gather(tensor):
            if tensor.ndim == 1:
                return lengths
            assert tensor.shape == (3, 2)  # every process must hand in the same shape
            padded = [torch.cat([share, torch.full((3 - len(share), 2), -1.0)]) for share in shares]
            padded[own] = tensor
            return torch.cat(padded)

        return gather

    for own, rows in enumerate(shares):
        assert torch.equal(gather_rows(rows, gather=gather_as_of(own)), torch.cat(shares))


def test_rows_of_one_process_are_left_alone():
    rows = torch.randn(3, 2)
    assert gather_rows(rows) is rows


def test_no_rows_anywhere_gather_to_none():
    gathered = gather_rows(torch.zeros(0, 2), gather=lambda tensor: torch.cat([tensor, tensor]))
    assert gathered.shape == (0, 2)


def score_a_share(rank, port, results):
    import os

    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)

    def reduce(values):
        return accelerator.reduce(values, reduction="sum")

    share = [slice(0, 10), slice(10, None)][rank]  # unequal
    rows, many = single_label_rows(), multi_label_rows()
    single = add_batches(ClassificationMetric(5), *(part[share] for part in rows), 4)
    multi = add_batches(MultiLabelMetric(3), *(part[share] for part in many), 4)
    results[rank] = (single.compute(reduce), multi.compute(reduce))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.two_process
def test_two_real_processes_print_the_numbers_of_one():
    one = (
        add_batches(ClassificationMetric(5), *single_label_rows(), 4).compute(),
        add_batches(MultiLabelMetric(3), *multi_label_rows(), 4).compute(),
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with torch.multiprocessing.get_context("spawn").Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(score_a_share, (port, results), nprocs=2)
        for rank in range(2):
            assert results[rank][0] == pytest.approx(one[0])
            assert results[rank][1] == pytest.approx(one[1])
