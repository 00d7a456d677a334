"""Reading fastai's pickles: what is read, and what is refused by name."""

import collections
import os
import pickle
import sys

import numpy as np
import pytest
import torch

from ulmfit_pipe.models.safe_pickles import (
    UnsafePickleError,
    Vocabulary,
    read_vocabulary,
    read_weights,
    write_vocabulary,
    write_weights,
)

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


class Attack:
    """Leaves a folder behind when it is unpickled in the usual way."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


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
    with pytest.raises(UnsafePickleError, match="it refers to something outside it .'abc'."):
        read_vocabulary(tmp_path / "v.pkl")


@pytest.mark.parametrize("content", [b"", b"hello there", pickle.dumps(["a"] * 99)[:50], b"\x80\x02U\x01\xff."])
def test_what_is_no_pickle_or_cut_short_is_refused(tmp_path, content):
    (tmp_path / "v.pkl").write_bytes(content)
    with pytest.raises(UnsafePickleError, match="v.pkl is refused: it is no pickled list, or was cut short"):
        read_vocabulary(tmp_path / "v.pkl")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (["the", 5], "token 1 is the int 5, not a string; every token must be one"),
        (["the", None], "token 1 is the NoneType None"),
        ([["the"], [0, 1]], "label 0 is the int 0, not a string; every label must be one"),
        ({"the": 0}, "holds a dict, not a list of strings"),
        ("the", "holds a str, not a list of strings"),
    ],
)
def test_what_is_no_list_of_strings_is_refused_with_its_place(tmp_path, content, words):
    with pytest.raises(UnsafePickleError, match=words):
        read_vocabulary(pickled(tmp_path / "v.pkl", content))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (["the", "a", "the"], "token 'the' stands twice, at 0 and 2"),
        ([["the"], ["pos", "pos"]], "label 'pos' stands twice, at 0 and 1"),
        ([], "v.pkl holds no token"),
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
        ({"a": 3}, "under 'a' stands the int 3, not a tensor"),
        ({0: torch.ones(1)}, "the int 0 stands where the name of a tensor should"),
        ({}, "w.pth holds no weights"),
    ],
)
def test_what_is_no_dict_of_tensors_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UnsafePickleError, match=words):
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
    ],
)
def test_a_tensor_of_an_unusual_form_is_refused_by_its_key(tmp_path, change, words):
    torch.save({"fine": torch.ones(2), "0.encoder.weight": change(torch.eye(3))}, tmp_path / "w.pth")
    with pytest.raises(UnsafePickleError, match=f"under '0.encoder.weight' stands {words}"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numbers_that_are_none_are_refused_by_their_key(tmp_path, dtype):
    wrong = torch.ones(3, 5, dtype=dtype)
    wrong[1, 2], wrong[2, 0] = float("nan"), float("-inf")
    torch.save({"fine": torch.ones(2, dtype=dtype), "1.decoder.bias": wrong}, tmp_path / "w.pth")
    words = "2 of the 15 numbers under '1.decoder.bias' are NaN, infinite or past float32; .* take an earlier save"
    with pytest.raises(UnsafePickleError, match=words):
        read_weights(tmp_path / "w.pth")
    torch.save({"fine": torch.ones(2, dtype=dtype), "count": torch.tensor(3)}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth")["fine"].dtype == dtype


def test_a_double_that_float32_cannot_hold_is_refused(tmp_path):
    torch.save({"w": torch.tensor([1e300], dtype=torch.float64)}, tmp_path / "w.pth")
    with pytest.raises(UnsafePickleError, match="1 of the 1 numbers under 'w' are NaN, infinite or past float32"):
        read_weights(tmp_path / "w.pth")


def test_a_weights_file_cut_short_is_refused_with_torchs_own_first_sentence(tmp_path):
    torch.save({"a": torch.ones(999)}, tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes((tmp_path / "w.pth").read_bytes()[:2000])
    words = r"it is no file of tensors by name, or was cut short \(PytorchStreamReader failed [\w :]+\)$"
    with pytest.raises(UnsafePickleError, match=words):
        read_weights(tmp_path / "w.pth")
    (tmp_path / "w.pth").write_bytes(b"text,label\nhello,1\n")
    with pytest.raises(UnsafePickleError, match=r"it is no file of tensors by name, or was cut short \([\w ]+\)$"):
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
