"""Reading fastai's pickles: what is read, and what is refused by name."""

import collections
import os
import pickle
import sys
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from tests.support.fastai_files import Attack
from ulmfit_pipe.tools.fastai import safe_pickles
from ulmfit_pipe.tools.fastai.safe_pickles import (
    UnsafePickleError,
    Vocabulary,
    read_vocabulary,
    read_weights,
    write_vocabulary,
    write_weights,
)

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Odd:
    pass


def pickled(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.fixture
def fastcore(monkeypatch):
    """Stand in for fastcore's `L`, which fastai keeps its optimizer's numbers in."""
    module = type(sys)("fastcore.foundation")

    class L:
        def __init__(self, items):
            self.items = items

    L.__module__, L.__qualname__ = "fastcore.foundation", "L"
    module.L = L
    monkeypatch.setitem(sys.modules, "fastcore", type(sys)("fastcore"))
    monkeypatch.setitem(sys.modules, "fastcore.foundation", module)
    return L


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_list_of_tokens_is_read_in_every_protocol(tmp_path, protocol):
    tokens = ["xxunk", "naïve", "日本", "\n", "xxfake", "xxfake"]
    assert read_vocabulary(pickled(tmp_path / "v.pkl", tokens, protocol)) == Vocabulary(tokens)
    pair = pickled(tmp_path / "c.pkl", (tokens, ["neg", "pos"]), protocol)
    assert read_vocabulary(pair) == Vocabulary(tokens, ["neg", "pos"])


def test_a_list_that_python_2_wrote_is_read(tmp_path):
    (tmp_path / "itos.pkl").write_bytes(b"\x80\x02]q\x00(U\x05_unk_q\x01U\x05caf\xc3\xa9q\x02e.")
    assert read_vocabulary(tmp_path / "itos.pkl").tokens == ["_unk_", "café"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_any_class_or_function_in_a_vocabulary_is_refused_by_name_and_never_run(tmp_path, protocol):
    left_behind = tmp_path / "attacked"
    with pytest.raises(UnsafePickleError, match=r"v.pkl is refused: it names \w+\.mkdir, and only lists"):
        read_vocabulary(pickled(tmp_path / "v.pkl", ["the", Attack(left_behind)], protocol))
    assert not left_behind.exists()


def test_the_refusal_names_fastais_own_list_and_says_how_to_save_again(tmp_path, fastcore):
    words = r"names fastcore.foundation.L, and only lists of strings are read; save it again .*list\(learn.dls.vocab\)"
    with pytest.raises(UnsafePickleError, match=words):
        read_vocabulary(pickled(tmp_path / "v.pkl", fastcore(["the"])))
    with pytest.raises(UnsafePickleError, match=r"it names collections.Counter"):
        read_vocabulary(pickled(tmp_path / "v.pkl", collections.Counter("the")))


def test_a_reference_outside_the_file_is_refused(tmp_path):
    (tmp_path / "v.pkl").write_bytes(b"\x80\x02X\x03\x00\x00\x00abcQ.")
    with pytest.raises(
        UnsafePickleError, match="it refers to something outside it .'abc'., .*; save it again as plain"
    ):
        read_vocabulary(tmp_path / "v.pkl")
    (tmp_path / "v.pkl").write_bytes(b"\x80\x02" + lists_in_lists(23) + b"Q.")
    with pytest.raises(UnsafePickleError, match=r"outside it \(list\), and only lists of strings"):
        read_vocabulary(tmp_path / "v.pkl")


@pytest.mark.parametrize(
    "content", [b"", b"hello there", pickle.dumps(["a"] * 99)[:50], b"\x80\x02U\x01\xff.", b"\xff"]
)
def test_what_is_no_pickle_or_cut_short_is_refused(tmp_path, content):
    (tmp_path / "v.pkl").write_bytes(content)
    words = (
        r"v.pkl is refused: it is not a pickled list, or was cut short \(.*[A-Za-z].*\); copy it again .* plain lists"
    )
    with pytest.raises(UnsafePickleError, match=words):
        read_vocabulary(tmp_path / "v.pkl")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (["the", 5], "token 1 is the int 5, not a string; every token must be one: save it again as plain lists"),
        (["the", 10**5000], "token 1 is the int, not a string"),
        (["the", ["a"]], "token 1 is the list, not a string"),
        (["the", "a\ud800"], r"token 1 is the str 'a\\ud800', which holds half of a character; replace it and save"),
        ([["the"], ["\udfff"]], r"label 0 is the str '\\udfff', which holds half of a character"),
        (["the", None], "token 1 is the NoneType None"),
        ([["the"], [0, 1]], "label 0 is the int 0, not a string; every label must be one"),
        ({"the": 0}, "holds a dict, not a list of strings"),
        (["the", {"a": 0}], "holds a dict, not a list of strings; save it again as plain lists"),
        ({}, "holds a dict, not a list of strings; save it again as plain lists"),
        ("the", "holds a str, not a list of strings"),
    ],
)
def test_what_is_no_list_of_strings_is_refused_with_its_place(tmp_path, content, words):
    with pytest.raises(UnsafePickleError, match=words):
        read_vocabulary(pickled(tmp_path / "v.pkl", content))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            ["the", "a", "the"],
            "token 'the' is there twice, at 0 and 2; give the vocabulary that the model was saved with",
        ),
        ([["the"], ["pos", "pos"]], "label 'pos' is there twice, at 0 and 1; .* or rename one of the two"),
        (["e" * 10**6] * 2, "token 'e{60}' is there twice, at 0 and 1; "),
        ([], "v.pkl holds no token; give the vocabulary that the model was saved with"),
    ],
)
def test_a_token_twice_or_none_is_refused(tmp_path, content, words):
    with pytest.raises(ValueError, match=words):
        read_vocabulary(pickled(tmp_path / "v.pkl", content))


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_read_with_and_without_an_optimizer_beside_them(tmp_path, zipped, fastcore):
    weights = {"0.encoder.weight": torch.arange(6.0).view(2, 3), "1.decoder.bias": torch.ones(2)}
    hypers = fastcore([{"lr": np.float64(1e-3), "wd": 0.1}])
    for content in (
        weights,
        {"model": weights, "opt": {"state": [{"do_wd": True, "grad_avg": torch.ones(2)}], "hypers": hypers}},
        {"model": weights},
        {"model": weights, "opt": {"state": [], "hypers": hypers}, "epoch": 3, "best": (0.5, 2)},
    ):
        torch.save(content, tmp_path / "w.pth", pickle_protocol=2, _use_new_zipfile_serialization=zipped)
        read = read_weights(tmp_path / "w.pth")
        assert read.keys() == weights.keys()
        assert all(torch.equal(read[name], weights[name]) for name in weights)


def save(content, path, *, kind, protocol):
    """Write as torch does now (zip), as it did before 1.6 (old), or with pickle alone (bare)."""
    if kind == "bare":
        pickled(path, content, protocol)
    else:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize("kind", ["zip", "old", "bare"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_class_or_function_in_a_weights_file_is_refused_by_name_and_never_run(tmp_path, protocol, kind):
    left_behind = str(tmp_path / "attacked")
    weights = {"a": torch.ones(1)}
    for content, name in (
        ({"a": Attack(left_behind)}, r"\w+\.mkdir"),
        ({"model": weights, "opt": Attack(left_behind)}, r"[\w., ]*\w+\.mkdir"),
        ({"model": weights, "opt": Odd()}, r"[\w., ]*test_safe_pickles.Odd[\w., ]*"),
    ):
        save(content, tmp_path / "w.pth", kind=kind, protocol=protocol)
        words = rf"w.pth is refused: it names {name}, and only tensors by name are read; save the weights alone"
        with pytest.raises(UnsafePickleError, match=words):
            read_weights(tmp_path / "w.pth")
    assert not os.path.exists(left_behind)


def test_no_more_than_three_names_are_told(tmp_path):
    torch.save({"a": [collections.deque, collections.Counter, os.path.join, os.path.split, Odd]}, tmp_path / "w.pth")
    words = r"it names collections.deque, collections.Counter, posixpath.join and 2 more, and only tensors"
    with pytest.raises(UnsafePickleError, match=words):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["zip", "old", "bare"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_weights_are_read_or_it_is_said_how_to_save_them(tmp_path, protocol, kind, recwarn):
    weights = {"a": torch.ones(2, 3), "b": torch.nn.Parameter(torch.arange(3.0))}
    file = save(collections.OrderedDict(weights), tmp_path / "w.pth", kind=kind, protocol=protocol)
    if kind == "bare":
        with pytest.raises(UnsafePickleError, match=r"names torch.storage._load_from_bytes, .* not .* `pickle.dump`"):
            read_weights(file)
    elif protocol in (2, 3):
        read = read_weights(file)
        assert all(torch.equal(read[name], value) for name, value in weights.items())
        assert {type(value) for value in read.values()} == {torch.Tensor}
        assert not any(value.requires_grad for value in read.values())
    else:
        words = rf"it was written with pickle protocol {protocol}, .* torch.save's default pickle_protocol=2"
        with pytest.raises(UnsafePickleError, match=words):
            read_weights(file)
    assert not [each for each in recwarn if "pickle protocol" in str(each.message)]


def test_a_name_that_is_torchs_own_but_not_allowed_is_told_too(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"\x80\x02ctorch._utils\n_rebuild_nothing\n.")
    with pytest.raises(UnsafePickleError, match="it names torch._utils._rebuild_nothing, and only tensors"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.ones(1)], "holds a list, not a dict of tensors by name"),
        ({"a": 3}, "under 'a' is the int 3, not a tensor"),
        ({"a": {"b": 3}}, "under 'a' is the dict, not a tensor"),
        ({0: torch.ones(1)}, "the int 0 is in place of a tensor's name, a string of at most 200 letters"),
        (
            {"e" * 201: torch.ones(1)},
            "the str 'e{60}' is in place of a tensor's name, a string of at most 200 letters",
        ),
        ({}, "w.pth holds no weights"),
        ({"model": {}, "epoch": 3}, "w.pth holds no weights"),
    ],
)
def test_what_is_no_dict_of_tensors_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UnsafePickleError, match=f"{words}; save the weights alone where it was made"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            torch.Tensor.to_sparse,
            r"a sparse \(torch.sparse_coo\) tensor; save a dense one, such as `tensor.to_dense\(\)`",
        ),
        (torch.Tensor.to_sparse_csr, r"a sparse \(torch.sparse_csr\) tensor; save a dense one"),
        (lambda rows: torch.nested.nested_tensor([rows, rows[:1]]), "a nested tensor; save a dense one"),
        (lambda rows: rows.to("meta"), "a tensor of the device meta, which has a shape and no numbers"),
        (
            lambda rows: torch.quantize_per_tensor(rows, 0.1, 0, torch.qint8),
            r"a quantized tensor \(torch.qint8\); save `tensor.dequantize\(\)`",
        ),
        (lambda rows: rows.to(torch.complex64), "a tensor of torch.complex64; weights are float16, bfloat16"),
        (lambda rows: rows.to(torch.float8_e4m3fn), "a tensor of torch.float8_e4m3fn; weights are float16"),
        (lambda rows: rows.to(torch.int8), "a tensor of torch.int8; weights are float16"),
        (lambda rows: rows.bool(), "a tensor of torch.bool; weights are float16"),
        (
            lambda rows: torch.ones(1, 1).expand(10**9, 400),
            r"a tensor of shape \(1000000000, 400\) that has fewer .* than that; save `tensor.contiguous\(\)`",
        ),
    ],
)
def test_a_tensor_of_an_unusual_form_is_refused_by_its_key(tmp_path, change, words):
    torch.save({"fine": torch.ones(2), "0.encoder.weight": change(torch.eye(3))}, tmp_path / "w.pth")
    with pytest.raises(UnsafePickleError, match=f"under '0.encoder.weight' is {words}"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numbers_that_are_none_are_refused_by_their_key(tmp_path, dtype):
    wrong = torch.ones(3, 5, dtype=dtype)
    wrong[1, 2], wrong[2, 0] = float("nan"), float("-inf")
    torch.save({"fine": torch.ones(2, dtype=dtype), "1.decoder.bias": wrong}, tmp_path / "w.pth")
    words = "2 of the 15 numbers under '1.decoder.bias' are NaN, infinite or past float32; .* take an earlier save"
    with pytest.raises(UnsafePickleError, match=words):
        read_weights(tmp_path / "w.pth")
    torch.save({"fine": torch.ones(2, dtype=dtype), "0.num_batches_tracked": torch.tensor(3)}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth")["fine"].dtype == dtype


@pytest.mark.parametrize("value", [True, 1j])
def test_a_count_is_a_whole_number(tmp_path, value):
    torch.save({"1.layers.0.0.num_batches_tracked": torch.tensor(value)}, tmp_path / "w.pth")
    with pytest.raises(UnsafePickleError, match=r"under '1.layers.0.0.num_batches_tracked' is a tensor of torch\."):
        read_weights(tmp_path / "w.pth")


def test_a_double_that_float32_cannot_hold_is_refused(tmp_path):
    torch.save({"w": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "w.pth")
    with pytest.raises(UnsafePickleError, match="1 of the 1 numbers under 'w' are NaN, infinite or past float32"):
        read_weights(tmp_path / "w.pth")


def test_a_weights_file_cut_short_is_refused_with_the_readers_own_first_sentence(tmp_path):
    torch.save({"a": torch.ones(999)}, tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:2000])
    words = (
        r"it is not a file of tensors by name, or was cut short \(File is not a zip file\); copy it again .* or save"
    )
    with pytest.raises(UnsafePickleError, match=words):
        read_weights(tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes(b"text,label\nhello,1\n")
    words = r"it is not a file of tensors by name, or was cut short \([\w ]+\); copy it again .* or save the weights"
    with pytest.raises(UnsafePickleError, match=words):
        read_weights(tmp_path / "w.pth")


def test_what_is_written_is_read_again_and_holds_plain_lists(tmp_path):
    vocabulary = Vocabulary(["xxunk", "\n", "▁the"], ["neg", "pos"])
    write_vocabulary(tmp_path / "v.pkl", vocabulary)
    assert read_vocabulary(tmp_path / "v.pkl") == vocabulary
    assert pickle.loads((tmp_path / "v.pkl").read_bytes()) == [vocabulary.tokens, vocabulary.labels]
    shared = torch.ones(1000)
    write_weights(tmp_path / "w.pth", {"a": shared, "b": shared})
    assert read_weights(tmp_path / "w.pth").keys() == {"a", "b"}
    assert (tmp_path / "w.pth").stat().st_size < 6000


def lists_in_lists(depth):
    """A list that holds the list below it twice, so many times: few bytes, and 2 ** depth values when written out."""
    return b"]" + b"".join(b"q%c](h%ch%ce" % (level, level, level) for level in range(depth)) + b"q%c" % depth


def weights_of_pickle(path, content):
    """A file as torch writes it, with another pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", content)
        archive.writestr("w/version", b"3\n")
    return path


def test_what_other_libraries_allow_torchs_reader_is_not_allowed_here(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_pickles, "names_in_file", lambda path: None)  # the names are no protection of their own
    torch.save({"model": {"a": torch.ones(1)}, "opt": Odd()}, tmp_path / "w.pth")
    before = torch.serialization.get_safe_globals()
    try:
        torch.serialization.add_safe_globals([Odd])
        with pytest.raises(UnsafePickleError, match="it names [a-z_.]*test_safe_pickles.Odd, and only tensors by name"):
            read_weights(tmp_path / "w.pth")
        torch.save({"a": torch.ones(1)}, tmp_path / "w.pth")
        assert read_weights(tmp_path / "w.pth").keys() == {"a"}
        assert {*torch.serialization.get_safe_globals()} == {*before, Odd}
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_names_that_files_of_fastai_do_not_hold_are_refused_before_torch_reads_them(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *given, **named: {"a": torch.ones(1)})
    content = b"\x80\x02ctorch.distributed.device_mesh\nDeviceMesh\nX\x03\x00\x00\x00cpu]K\x00a\x86R."
    words = "w.pth is refused: it names torch.distributed.device_mesh.DeviceMesh, and only tensors by name"
    with pytest.raises(UnsafePickleError, match=words):
        read_weights(weights_of_pickle(tmp_path / "w.pth", content))


def test_names_are_cut_and_made_fit_for_a_terminal(tmp_path):
    (tmp_path / "v.pkl").write_bytes(b"\x80\x02cmod\x1b[31m\n" + b"n" * 100_000 + b"\n.")
    with pytest.raises(UnsafePickleError, match=r"it names mod\?\?31m\.n{71}, and only lists"):
        read_vocabulary(tmp_path / "v.pkl")


def test_lists_in_lists_are_not_written_out(tmp_path):
    lists = b"\x80\x02" + lists_in_lists(23)
    (tmp_path / "v.pkl").write_bytes(lists + b"]h\x17a.")
    with pytest.raises(UnsafePickleError, match="token 0 is the list, not a string"):
        read_vocabulary(tmp_path / "v.pkl")
    for content, words in (
        (lists + b".", "holds a list, not a dict of tensors"),
        (lists + b"}U\x01ah\x17s.", "under 'a' is the list, not a tensor"),
        (lists + b")R.", "it calls something that is not a class or function; save the weights alone"),
    ):
        with pytest.raises(UnsafePickleError, match=words):
            read_weights(weights_of_pickle(tmp_path / "w.pth", content))


def test_a_list_a_hundred_thousand_deep_is_refused(tmp_path):
    deep = b"]" * 100_000 + b"a" * 99_999
    (tmp_path / "v.pkl").write_bytes(b"\x80\x02" + deep + b".")
    with pytest.raises(UnsafePickleError, match="token 0 is the list, not a string"):
        read_vocabulary(tmp_path / "v.pkl")
    with pytest.raises(UnsafePickleError, match="under 'a' is the list, not a tensor"):
        read_weights(weights_of_pickle(tmp_path / "w.pth", b"\x80\x02}U\x01a" + deep + b"s."))


def test_tuples_that_take_long_to_hash_or_end_the_process_are_refused(tmp_path):
    for tuples in (b"\x85" * 100_000, b"".join(b"q%ch%c\x86" % (n, n) for n in range(40))):
        content = b"\x80\x02})" + tuples + b"K\x01s."
        (tmp_path / "v.pkl").write_bytes(content)
        with pytest.raises(UnsafePickleError, match="it holds a dict, not a list of strings"):
            read_vocabulary(tmp_path / "v.pkl")
        with pytest.raises(
            UnsafePickleError, match="a tuple in it holds more than 1,000 values.*; save the weights al"
        ):
            read_weights(weights_of_pickle(tmp_path / "w.pth", content))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x80\x05\x96" + (10**13).to_bytes(8, "little") + b".", "bytearray"),
        (b"\x80\x04\x8f(K\x01\x90.", "set"),
        (b"\x80\x04(K\x01\x91.", "set"),
        (b"(I1\nI2\nd.", "dict"),
        (b"}I1\nI2\ns.", "dict"),
    ],
)
def test_what_no_list_of_strings_needs_is_not_built(tmp_path, content, kind):
    (tmp_path / "v.pkl").write_bytes(content)
    with pytest.raises(UnsafePickleError, match=f"v.pkl is refused: it holds a {kind}, not a list of strings; save it"):
        read_vocabulary(tmp_path / "v.pkl")


def test_a_position_far_out_takes_no_memory(tmp_path):
    (tmp_path / "v.pkl").write_bytes(b"]r\x00\xe1\xf5\x05U\x01aa.")  # position 100,000,000
    tracemalloc.start()
    assert read_vocabulary(tmp_path / "v.pkl").tokens == ["a"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000


def test_a_file_too_large_for_a_vocabulary_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(safe_pickles, "MOST_VOCABULARY_BYTES", 99)
    words = "it has more than 99 bytes, too many for a list of words; give the vocabulary's .pkl file, not the weights"
    with pytest.raises(UnsafePickleError, match=words):
        read_vocabulary(pickled(tmp_path / "v.pkl", ["a" * 99]))


def test_a_zip_file_that_torch_did_not_write_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    with zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"0" * 1000)
    words = (
        "w.pth is refused: its entry w.data.pkl is compressed, .*; copy it again from where it was made, or save the"
    )
    with pytest.raises(UnsafePickleError, match=words):
        read_weights(tmp_path / "w.pth")


def test_a_tensor_of_more_numbers_than_the_file_has_is_refused(tmp_path):
    content = b"\x80\x02}U\x01actorch\nTensor\nJ\x00\x00\x10\x00\x85Rs."  # 4 MiB of whatever lies in memory
    with pytest.raises(UnsafePickleError, match=r"under 'a' is a tensor of shape \(1048576,\) that has fewer numbers"):
        read_weights(weights_of_pickle(tmp_path / "w.pth", content))


def test_torchs_oldest_format_is_refused_with_what_to_do(tmp_path):
    with tarfile.open(tmp_path / "w.pth", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    with pytest.raises(
        UnsafePickleError, match="it has torch's oldest format, a .tar archive, which .*; save the weight"
    ):
        read_weights(tmp_path / "w.pth")
