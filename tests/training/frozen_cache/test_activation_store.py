import tempfile

import pytest
import torch

from ulmfit_pipe.training.frozen_cache.activation_store import ActivationStore, StoreFullError

FLOATS = 4  # bytes


def rows_of(*sizes, dtype=torch.float32):
    return [(torch.arange(size) + 10 * place).to(dtype) for place, size in enumerate(sizes)]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("memory", [0, 5 * FLOATS, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_rows_come_back_bit_identical_from_memory_and_from_disk(memory, dtype):
    store = ActivationStore(memory=memory, disk=10_000)
    first, second = rows_of(3, 2, 0, dtype=dtype), [torch.full((2, 5), place, dtype=dtype) for place in range(3)]
    store.add(["a", "b", "c"], first)
    store.add(["d", "e", "f"], second)
    assert len(store.rows) == 6
    assert all(map(torch.equal, store.get(["c", "a", "e"]), [first[2], first[0], second[1]]))
    assert [kept.dtype for kept in store.get(["b"])] == [dtype]
    store.close()


def test_memory_is_used_up_to_the_bound_and_then_the_disk(folder):
    store = ActivationStore(memory=5 * FLOATS, disk=100 * FLOATS)
    store.add([0, 1, 2], rows_of(3, 2, 4))
    assert (store.in_memory, store.on_disk) == (5 * FLOATS, 4 * FLOATS)
    assert store.describe() == "20 B in memory and 16 B on disk"
    assert list(folder.iterdir()) == []  # the file has no name, so nothing is left of it however the process ends
    store.close()
    assert (store.in_memory, store.on_disk, len(store.rows)) == (0, 0, 0)
    assert store.describe() == "nothing"


def test_the_file_is_closed_with_the_store():
    store = ActivationStore(memory=0, disk=1000)
    store.add([0], rows_of(3))
    file = store._file
    assert not file.closed
    store.close()
    assert file.closed
    store.add([1], rows_of(2))  # it may be used again
    assert store.get([1])[0].tolist() == [0.0, 1.0]
    store.close()


def test_a_row_that_is_held_stays_as_it_is():
    store = ActivationStore(memory=1000)
    store.add([0], rows_of(3))
    store.add([0, 1], [torch.ones(3), torch.ones(2)])
    assert store.get([0])[0].tolist() == [0.0, 1.0, 2.0]
    assert store.in_memory == 5 * FLOATS


def test_a_full_store_says_what_it_holds():
    store = ActivationStore(memory=2048, disk=1024)
    store.add([0], rows_of(512))
    store.add([1], rows_of(200))
    with pytest.raises(
        StoreFullError, match="2 KiB in memory and 800 B on disk hold 2 rows, and there is room for 2 KiB and 1 KiB"
    ):
        store.add([2], rows_of(57))
    store.close()


def test_a_disk_that_takes_no_more_is_named(monkeypatch):
    class FullDisk:
        def seek(self, _place):
            pass

        def write(self, _content):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_options: FullDisk())
    store = ActivationStore(memory=0, disk=1000)
    with pytest.raises(StoreFullError, match=r"the disk took no more than 0 B \(No space left on device\)"):
        store.add([0], rows_of(3))


def test_half_of_the_free_disk_is_the_bound_by_default(monkeypatch):
    usage = type("Usage", (), {"free": 4000})
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: usage)
    assert ActivationStore(memory=0).disk == 2000
