import numpy as np
import pytest

from ulmfit_pipe.data.streams.token_arrays import TokenArrays, read_token_arrays
from ulmfit_pipe.data.streams.token_stream import order_documents

DOCUMENTS = read_token_arrays([[5, 6, 7], [], [8], [9, 10]])


def test_an_unshuffled_stream_is_the_documents_in_order():
    stream = order_documents(DOCUMENTS, seed=3, epoch=2, shuffle=False)
    assert stream.tokens_at(np.arange(6)).tolist() == [5, 6, 7, 8, 9, 10]


def test_a_shuffled_stream_is_the_documents_in_the_drawn_order():
    order = np.random.default_rng([3, 2, 0]).permutation(4)
    expected = [token for index in order for token in DOCUMENTS.row(index)]
    stream = order_documents(DOCUMENTS, seed=3, epoch=2, shuffle=True)
    assert stream.tokens_at(np.arange(6)).tolist() == expected
    assert stream.tokens_at(np.array([[5, 0], [3, 3]])).tolist() == [
        [expected[5], expected[0]],
        [expected[3], expected[3]],
    ]


def test_documents_with_gaps_between_them_in_memory_follow_one_another_in_the_stream():
    documents = TokenArrays(DOCUMENTS.flat, np.array([1, 3, 4]), np.array([2, 0, 1]))
    stream = order_documents(documents, seed=0, epoch=0, shuffle=False)
    assert stream.tokens_at(np.arange(3)).tolist() == [6, 7, 9]


def test_a_negative_epoch_is_refused():
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -2"):
        order_documents(DOCUMENTS, seed=0, epoch=-2, shuffle=False)
