"""Every kind of batches begins at any batch of an epoch with what an epoch read from its start has there."""

import numpy as np
import pytest
import torch
from datasets import Dataset

from ulmfit_pipe.data.streams.classifier_batches import ClassifierBatches
from ulmfit_pipe.data.streams.lm_batches import LanguageModelBatches
from ulmfit_pipe.data.streams.masking import TokenMasking
from ulmfit_pipe.data.streams.token_blocks import TokenBlockBatches


def documents(count=60):
    random = np.random.default_rng(3)
    return [random.integers(4, 100, random.integers(1, 9)).tolist() for _ in range(count)]


def windows(**settings):
    return LanguageModelBatches(documents(), batch_size=3, bptt=7, variable_bptt=True, **settings)


def texts(**settings):
    table = Dataset.from_dict({"input_ids": documents(), "label": [0, 1] * 30})
    return ClassifierBatches(table, batch_size=7, num_labels=2, **settings)


def blocks(**settings):
    return TokenBlockBatches(documents(), block_size=5, batch_size=4, **settings)


def masked_blocks(**settings):
    return blocks(masking=TokenMasking(2, 100, (0, 1, 2, 3)), **settings)


@pytest.mark.parametrize("make", [windows, texts, blocks, masked_blocks])
@pytest.mark.parametrize("share", [{}, {"rank": 1, "world_size": 2}])
@pytest.mark.parametrize("first", [0, 1, 4])
def test_an_epoch_begun_at_a_batch_is_the_rest_of_it(make, share, first):
    batches = make(seed=5, **share)
    batches.set_epoch(2)
    whole, rest = list(batches)[first:], list(batches.from_batch(first))
    assert len(rest) == len(whole) == len(batches) - first > 0
    for mine, theirs in zip(rest, whole, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_after_the_last_batch_there_is_nothing():
    batches = windows()
    assert list(batches.from_batch(len(batches))) == []
