import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset

from ulmfit_pipe.data.streams import token_arrays
from ulmfit_pipe.data.streams.token_arrays import read_token_arrays

LISTS = [[5, 6, 7], [], [8], [9, 10]]


def test_rows_of_a_dataset_come_back_as_int32():
    arrays = read_token_arrays(Dataset.from_dict({"input_ids": LISTS, "label": [0, 1, 0, 1]}))
    assert arrays.flat.dtype == np.int32
    assert arrays.flat.tolist() == [5, 6, 7, 8, 9, 10]
    assert arrays.starts.tolist() == [0, 3, 3, 4]
    assert arrays.lengths.tolist() == [3, 0, 1, 2]
    assert [arrays.row(i).tolist() for i in range(len(arrays))] == LISTS
    assert arrays.total == 6


def test_a_selected_and_reordered_dataset_is_read_in_its_own_order():
    dataset = Dataset.from_dict({"input_ids": LISTS}).select([3, 0, 2])
    assert [read_token_arrays(dataset).row(i).tolist() for i in range(3)] == [[9, 10], [5, 6, 7], [8]]


def test_a_plain_sequence_of_lists_gives_the_same_arrays():
    assert read_token_arrays(LISTS).flat.tolist() == [5, 6, 7, 8, 9, 10]
    assert read_token_arrays(LISTS).lengths.tolist() == [3, 0, 1, 2]
    assert len(read_token_arrays([])) == 0


def test_large_lists_and_wider_integers_are_read_too():
    table = pa.table({"input_ids": pa.array(LISTS, type=pa.large_list(pa.int64()))})
    assert read_token_arrays(Dataset(table)).flat.tolist() == [5, 6, 7, 8, 9, 10]


def test_many_small_pieces_are_joined_in_order(monkeypatch):
    monkeypatch.setattr(token_arrays, "ROWS_PER_READ", 3)
    lists = [[i] * (i % 4) for i in range(11)]
    arrays = read_token_arrays(Dataset.from_dict({"input_ids": lists}))
    assert [arrays.row(i).tolist() for i in range(11)] == lists


def test_a_missing_column_is_named_beside_those_there_are():
    with pytest.raises(ValueError, match=r"no column 'input_ids', it has \['text'\]; tokenize it first"):
        read_token_arrays(Dataset.from_dict({"text": ["a"]}))


def test_a_column_of_texts_is_refused():
    with pytest.raises(TypeError, match="column 'input_ids' must hold lists of integers, it holds string"):
        read_token_arrays(Dataset.from_dict({"input_ids": ["a"]}))


def test_a_missing_row_is_named():
    with pytest.raises(ValueError, match="missing value in row 1 "):
        read_token_arrays(Dataset.from_dict({"input_ids": [[1], None, [2]]}))


def test_a_plain_row_that_is_no_list_of_integers_is_named():
    with pytest.raises(TypeError, match="row 1 must be a list of integers, got str: 'ab'"):
        read_token_arrays([[1], "ab"])  # type: ignore[list-item]
