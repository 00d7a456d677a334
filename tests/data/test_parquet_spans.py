"""Spans of a Parquet file hold the rows that they hold in the whole, and a row group is read once for many of them."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ulmfit_pipe.data.parquet_spans import ParquetSpans

ROWS = 23


@pytest.fixture(params=[1, 4, 7, ROWS])
def path(request, tmp_path):
    """A table of numbered rows in row groups of so many."""
    file = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"number": list(range(ROWS))}), file, row_group_size=request.param)
    return file


def numbers_of(spans, size, first, rows):
    """The rows of a span, a list for each batch."""
    return [batch.column(0).to_pylist() for batch in spans.batches(size, first=first, rows=rows)]


def joined(batches):
    return [number for batch in batches for number in batch]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize("rows", [1, 5, 100])
def test_spans_in_their_order_are_the_whole_table(path, size, rows):
    spans = ParquetSpans(path)
    batches = [batch for first in range(0, ROWS, rows) for batch in numbers_of(spans, size, first, rows)]
    assert joined(batches) == list(range(ROWS))
    assert max(map(len, batches)) <= min(size, rows)


@pytest.mark.parametrize("size", [2, 3, 100])
def test_a_span_is_cut_into_the_same_batches_whatever_was_read_before(path, size):
    places = [(first, rows) for first in range(0, ROWS, 4) for rows in (3, 6)]
    alone = [numbers_of(ParquetSpans(path), size, *place) for place in places]
    for order in (places, places[::2], places[::-1], places[1::3] + places[::3]):
        spans = ParquetSpans(path)
        for place in order:
            assert numbers_of(spans, size, *place) == alone[places.index(place)], (order, place)


def test_spans_that_lie_on_in_a_row_group_do_not_begin_at_its_top(tmp_path):
    pq.write_table(pa.table({"number": list(range(ROWS))}), tmp_path / "one.parquet")
    spans, begun = ParquetSpans(tmp_path / "one.parquet"), []
    file = spans._file

    class Noting:
        num_row_groups = 1

        def iter_batches(self, size, *, row_groups):
            begun.append(list(row_groups))
            return file.iter_batches(size, row_groups=row_groups)

    spans._file = Noting()
    for first in (0, 5, 6, 15, 20):
        assert joined(numbers_of(spans, 4, first, 1)) == [first]
    assert begun == [[0]]
    assert joined(numbers_of(spans, 4, 5, 3)) == [5, 6, 7]
    assert begun == [[0], [0]]


def test_a_reading_that_was_broken_off_does_no_harm_to_the_next(path):
    spans = ParquetSpans(path)
    assert next(spans.batches(3, first=2, rows=9)).column(0)[0].as_py() == 2
    assert joined(numbers_of(spans, 3, 2, 9)) == list(range(2, 11))


def test_rows_that_are_not_there_are_left_out(path):
    spans = ParquetSpans(path)
    assert joined(numbers_of(spans, 3, 20, 9)) == [20, 21, 22]
    assert numbers_of(spans, 3, ROWS, 1) == numbers_of(spans, 3, 99, 1) == []


def test_row_groups_without_rows_are_passed_over(tmp_path):
    table = pa.table({"number": list(range(5))})
    with pq.ParquetWriter(tmp_path / "gaps.parquet", table.schema) as writer:
        for piece in (table.slice(0, 0), table.slice(0, 2), table.slice(0, 0), table.slice(2)):
            writer.write_table(piece)
    spans = ParquetSpans(tmp_path / "gaps.parquet")
    assert [joined(numbers_of(spans, 2, first, 2)) for first in (0, 2, 4)] == [[0, 1], [2, 3], [4]]
    assert spans.bytes_of_row > 0
