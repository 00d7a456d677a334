"""Listing what a pickle names, in every protocol, without running it."""

import collections
import os
import pickle
import zipfile

import pytest
import torch

from ulmfit_pipe.models import pickle_names
from ulmfit_pipe.models.pickle_names import PickleNames, names_in_file

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Attack:
    """Leaves a folder behind when it is unpickled in the usual way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_bare_pickle_is_listed_in_every_protocol_and_never_run(tmp_path, protocol):
    content = [Attack(tmp_path / "attacked"), Attack(tmp_path / "again"), collections.Counter("a"), "builtins.eval"]
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    found = names_in_file(tmp_path / "p.pkl")
    assert [name for name in found.names if not name.startswith("pathlib")] == ["posix.mkdir", "collections.Counter"]
    assert found.protocol == protocol
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_torchs_files_are_listed_in_both_layouts(tmp_path, protocol, zipped):
    content = {"a": torch.ones(3), "b": torch.arange(2), "c": Attack("x")}
    torch.save(content, tmp_path / "w.pth", pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    found = names_in_file(tmp_path / "w.pth")
    assert {"torch._utils._rebuild_tensor_v2", "posix.mkdir"} <= {*found.names}
    if protocol:  # at 0 torch writes its storages as text
        assert {"torch.FloatStorage", "torch.LongStorage"} <= {*found.names}
    assert found.protocol == protocol


def test_a_name_that_is_remembered_and_used_again_is_named_right(tmp_path):
    twice = [collections.Counter, collections.deque, os.path.join, collections.Counter]
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(twice, protocol=4))
    assert names_in_file(tmp_path / "p.pkl").names == ["collections.Counter", "collections.deque", "posixpath.join"]


@pytest.mark.parametrize(
    "content", [b"", b"hello there", b"cat foo\nbar\nhello", b"\x89HDF\r\n\x1a\n", b"text,label\n"]
)
def test_what_is_no_pickle_names_nothing(tmp_path, content):
    (tmp_path / "p.pkl").write_bytes(content)
    assert names_in_file(tmp_path / "p.pkl") is None


def test_a_pickle_cut_short_is_listed_as_far_as_it_goes(tmp_path):
    whole = pickle.dumps([os.path.join, "a" * 99, os.path.split], protocol=4)
    (tmp_path / "p.pkl").write_bytes(whole[:60])
    assert names_in_file(tmp_path / "p.pkl") == PickleNames(["posixpath.join"], 4)


def test_names_are_fit_to_be_shown(tmp_path):
    (tmp_path / "p.pkl").write_bytes(b"\x80\x02cmod\x1b[31m\n" + b"n" * 200 + b"\n.")
    assert names_in_file(tmp_path / "p.pkl").names == ["mod??31m." + "n" * 71]


def test_no_more_of_a_file_is_read_than_names_can_stand_in(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_names, "MOST_BYTES", 40)
    late = pickle.dumps(["a" * 99, os.path.join], protocol=2)
    (tmp_path / "p.pkl").write_bytes(late)
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", late)
        archive.writestr("w/data/0", b"numbers")
    for name in ("p.pkl", "w.pth"):
        assert names_in_file(tmp_path / name) == PickleNames([], 2)
