"""Listing what a pickle names, in every protocol, without running it."""

import collections
import os
import pickle
import warnings
import zipfile

import pytest
import torch

from tests.support.fastai_files import Attack
from ulmfit_pipe.tools.fastai import pickle_names
from ulmfit_pipe.tools.fastai.pickle_names import PickleNames, names_in_file, odd_archive, shown_text

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


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


def test_a_zip_file_is_read_no_further_than_that_in_all_its_entries_together(tmp_path, monkeypatch):
    first, second = pickle.dumps(os.path.join, protocol=2), pickle.dumps(os.path.split, protocol=2)
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/a.pkl", first)
        archive.writestr("w/DATA.PKL", second)
    assert names_in_file(tmp_path / "w.pth").names == ["posixpath.join", "posixpath.split"]
    monkeypatch.setattr(pickle_names, "MOST_BYTES", len(first))
    assert names_in_file(tmp_path / "w.pth").names == ["posixpath.join"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_vocabulary_of_60000_words_has_nothing_odd(tmp_path, protocol):
    words = [f"word{number}" for number in range(60_000)]
    (tmp_path / "v.pkl").write_bytes(pickle.dumps([words, ["neg", "pos"]], protocol=protocol))
    assert names_in_file(tmp_path / "v.pkl").odd is None


def test_instructions_without_end_are_told_and_counted_over_all_pickles(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_names, "MOST_INSTRUCTIONS", 1000)
    (tmp_path / "p.pkl").write_bytes(b"\x80\x02cos\nmkdir\n0" + b"N0" * 600 + b"N.")
    told = PickleNames(["os.mkdir"], 2, "it has more than 1,000 instructions, and tensors by name take some thousands")
    assert names_in_file(tmp_path / "p.pkl") == told
    (tmp_path / "p.pkl").write_bytes(b"\x80\x02" + b"N0" * 499 + b".\x80\x02cos\nmkdir\n.")
    assert names_in_file(tmp_path / "p.pkl").odd == told.odd
    (tmp_path / "p.pkl").write_bytes(b"\x80\x02" + b"N0" * 400 + b"N.")
    assert names_in_file(tmp_path / "p.pkl").odd is None


TUPLE_OF_MANY = "a tuple in it holds more than 1,000 values, those of the tuples in it counted"
CALLS_NOTHING = "it calls something that is not a class or function"


@pytest.mark.parametrize(
    ("content", "odd"),
    [
        (b")" + b"\x85" * 2000 + b".", TUPLE_OF_MANY),
        (b")" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(40)) + b".", TUPLE_OF_MANY),
        (b"(" + b"N" * 999 + b"t.", None),
        (b"(" + b"N" * 1000 + b"t.", TUPLE_OF_MANY),
        (b"])R.", CALLS_NOTHING),
        (b"X\x02\x00\x00\x00os)R.", CALLS_NOTHING),
        (b"])\x81.", CALLS_NOTHING),
        (b"ccollections\nOrderedDict\nq\x05)R(h\x05)Rt.", None),
    ],
)
@pytest.mark.parametrize("start", [b"\x80\x02", b""])
def test_what_a_reader_would_hang_or_crash_on_is_told(tmp_path, content, odd, start):
    (tmp_path / "p.pkl").write_bytes(start + content)
    found = names_in_file(tmp_path / "p.pkl")
    assert found.odd == odd
    assert all(name == "collections.OrderedDict" for name in found.names)


def test_a_pickle_with_a_zip_file_behind_it_is_read_as_torch_reads_it(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/data.pkl", pickle.dumps([1]))
    behind = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(pickle.dumps(os.path.join, protocol=2) + behind)
    assert names_in_file(tmp_path / "w.pth").names == ["posixpath.join"]


def zip_of(path, *entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a name that it writes twice
        for name, content in entries:
            archive.writestr(name, content)
    return path


def test_torchs_own_files_are_no_odd_archives(tmp_path):
    for zipped in (True, False):
        torch.save({"a": torch.ones(3)}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        assert odd_archive(tmp_path / "w.pth") is None


def test_an_archive_that_torch_does_not_write_is_told(tmp_path):
    twice = zip_of(tmp_path / "a", ("w/data.pkl", b"1"), ("w/DATA.pkl", b"2"))
    assert odd_archive(twice) == "its entry w?DATA.pkl is there twice in it, and which one is meant is unknown"
    packed = zip_of(tmp_path / "b", ("w/data.pkl", b"1" * 99), compression=zipfile.ZIP_DEFLATED)
    assert odd_archive(packed) == "its entry w?data.pkl is compressed, and torch.save compresses nothing"
    whole = zip_of(tmp_path / "c", ("w/data.pkl", b"1" * 1000)).read_bytes()
    (tmp_path / "c").write_bytes(whole.replace((1000).to_bytes(4, "little"), (9000).to_bytes(4, "little")))
    assert odd_archive(tmp_path / "c") == f"its entries claim 9,000 bytes, and it has {len(whole):,}"
    (tmp_path / "c").write_bytes(whole[:-30])
    words = "it is not a file of tensors by name, or was cut short (File is not a zip file)"
    assert odd_archive(tmp_path / "c") == words
    assert names_in_file(tmp_path / "c") is None


def test_texts_are_fit_to_be_shown():
    assert shown_text("a\x1b[31m \n b" + "c" * 999) == "a?[31m b" + "c" * 152
