"""Training vocabularies, naming them, and tokenizing tables."""

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys

import datasets
import pyarrow as pa
import pytest

from ulmfit_pipe.data.run_files import run_files
from ulmfit_pipe.data.text import token_cache, tokenization
from ulmfit_pipe.data.text.text_rules import SPECIAL_TOKENS
from ulmfit_pipe.data.text.tokenization import (
    build_word_tokenizer,
    hash_tokens,
    tokenize_dataset,
    tokens_in_order,
    train_tokenizer,
    vocab_hash,
)
from ulmfit_pipe.data.text.ulmfit_tokenizer import prepare_text

TEXTS = [
    "The quick brown fox didn't jump over the lazy dog; it's fine.",
    "A Quick test of U.S.A. numbers 1,000.50 and well-known words!!!",
    "Another text\n\nwith (some) lines, and xxup the rest xxupdate.",
] * 7

KINDS = ("unigram", "bpe", "word")


def test_the_same_texts_give_the_same_vocabulary_in_every_process():
    texts = [f"sample number {n % 7} of {n} texts, it's Fine" for n in range(300)]
    here = [vocab_hash(train_tokenizer(texts, kind=kind, vocab_size=400)) for kind in KINDS]
    code = (
        "from ulmfit_pipe.data.text.tokenization import train_tokenizer, vocab_hash\n"
        f"for kind in {KINDS}: print(vocab_hash(train_tokenizer({texts!r}, kind=kind, vocab_size=400)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == here


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_come_first_whatever_the_texts_hold(kind):
    texts = ["xxup xxmaj xxbos word xxrep xxupdate xxup,xxmaj 1.5xxup"] * 20
    tokenizer = train_tokenizer(texts, kind=kind, vocab_size=300)
    assert tuple(tokens_in_order(tokenizer)[:9]) == SPECIAL_TOKENS
    assert len(tokens_in_order(tokenizer)) == len(set(tokens_in_order(tokenizer)))


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_is_not_larger_than_asked_for(kind):
    assert len(train_tokenizer(TEXTS, kind=kind, vocab_size=270, min_count=1)) <= 270


def test_texts_are_read_as_a_stream():
    assert len(train_tokenizer((text for text in TEXTS), kind="word", vocab_size=50)) > 20


def test_rare_words_get_no_entry():
    tokenizer = train_tokenizer(["often often seldom"] * 2, kind="word", min_count=3)
    assert tokens_in_order(tokenizer)[9:] == ["often"]
    assert tokenizer("seldom often")["input_ids"] == [2, 0, 9]


def test_words_are_ordered_by_frequency_then_alphabet():
    tokenizer = train_tokenizer(["b a c b a c c"], kind="word", min_count=1)
    assert tokens_in_order(tokenizer)[9:] == ["c", "a", "b"]


def test_words_are_cut_in_the_manner_of_spacy():
    tokenizer = train_tokenizer(TEXTS, kind="word", min_count=1)
    text = "it's a well-known U.S.A. (didn't)\n\n1,234.50 cannot o'clock wait--what..."
    cut = "xxbos it 's a well - known xxup u.s.a . ( did n't ) \n\n 1,234.50 can not o'clock wait -- what …"
    assert tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])[:8] == cut.split(" ")[:8]
    words = build_word_tokenizer([*SPECIAL_TOKENS, *(word for word in cut.split(" ") if word not in SPECIAL_TOKENS)])
    assert words.tokenize(text) == cut.split(" ")


def test_the_cut_of_words_does_not_touch_subwords():
    text = "It can't, cannot... U.S.A. o'clock, wait--what?! :) 10am 5km\n\nwell-known e.g. that's 1,234.50"
    unigram = train_tokenizer(TEXTS, kind="unigram", vocab_size=200)
    prepared = prepare_text(text)
    assert unigram.prepared(text) == prepared
    pieces = [piece for piece, _ in unigram.backend_tokenizer.pre_tokenizer.pre_tokenize_str(prepared)]
    assert pieces == (
        "▁xxbos ▁xxmaj ▁it ▁can 't , ▁cannot ▁… ▁xxup ▁u . s . a . ▁o ' clock , ▁wait -- what ?! ▁:) ▁10am ▁5km "
        "▁well - known ▁e . g . ▁that 's ▁1 , 234 . 50"
    ).split(" ")


def test_python_and_the_backend_cut_subwords_alike():
    tokenizer = train_tokenizer(TEXTS, kind="unigram", vocab_size=200)
    text = "it's don't, 'tis (well-known) naïve “quoted” 日本語、です 1,000.50 a_b हिन्दी ... dogs' we'll wall'll."
    cut = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    counted = tokenization._count_subwords([text])
    assert sorted(counted.elements()) == sorted(cut)
    assert "'s" in cut
    assert "हिन्दी" in [piece.lstrip("▁") for piece in cut]


def test_unigram_knows_all_latin_letters_and_digits():
    tokenizer = train_tokenizer(["aaa bbb"] * 9, kind="unigram", vocab_size=200)
    assert 0 not in tokenizer("completely unseen words 0123456789")["input_ids"]
    assert 0 in tokenizer("日本")["input_ids"]


def test_bpe_has_no_unknown_characters():
    tokenizer = train_tokenizer(["aaa bbb"] * 9, kind="bpe", vocab_size=300)
    assert 0 not in tokenizer("\x00 日本 😀 \ud800 é")["input_ids"]


def test_counting_words_forgets_rare_ones_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(tokenization, "MAX_COUNTED_WORDS", 4)
    counts = tokenization._count_subwords(["a a", "b c", "d e", "f a"])
    assert counts["▁a"] == 3
    assert "▁b" not in counts


def test_fastai_vocabulary_with_fillers_keeps_its_ids():
    tokenizer = build_word_tokenizer([*SPECIAL_TOKENS, "the", "\n", "xxfake", "xxfake"])
    assert len(tokenizer) == 13
    assert tokenizer("the\nxxfake")["input_ids"] == [2, 9, 10, 0]


def test_a_token_that_stands_twice_is_refused():
    with pytest.raises(ValueError, match="token 'the' is there twice in the vocabulary, at 9 and 11"):
        build_word_tokenizer([*SPECIAL_TOKENS, "the", "a", "the"])


def test_the_hash_tells_two_orders_of_one_vocabulary_apart():
    one = build_word_tokenizer([*SPECIAL_TOKENS, "a", "b"])
    other = build_word_tokenizer([*SPECIAL_TOKENS, "b", "a"])
    assert vocab_hash(one) != vocab_hash(other)
    assert vocab_hash(one) == hash_tokens([*SPECIAL_TOKENS, "a", "b"])


def test_a_gap_in_the_ids_is_refused():
    class Gap:
        def get_vocab(self):
            return {"a": 0, "b": 2}

    with pytest.raises(ValueError, match="no token with id 1, the next one has 2"):
        tokens_in_order(Gap())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "char"}, "kind must be one of unigram, bpe, word, got 'char'"),
        ({"kind": "bpe", "vocab_size": 200}, "vocab_size must be at least 265 for kind 'bpe', got 200"),
        ({"kind": "unigram", "vocab_size": 50}, "vocab_size must be at least 100 for kind 'unigram', got 50"),
        ({"kind": "word", "min_count": 0}, "min_count must be at least 1, got 0"),
        ({"kind": "word", "min_count": 99}, "no word occurs min_count=99 times"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        train_tokenizer(TEXTS, **settings)


def test_nothing_to_train_on_is_refused():
    with pytest.raises(ValueError, match="the texts are empty"):
        train_tokenizer(["", " \n"])
    with pytest.raises(ValueError, match="got one string; put it in a list"):
        train_tokenizer("one text")
    with pytest.raises(ValueError, match="every text must be a string, number 2 is None"):
        train_tokenizer(["a", None], kind="word")


@pytest.fixture
def words():
    return build_word_tokenizer([*SPECIAL_TOKENS, "a", "b", "c"])


def labelled(texts, labels):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["n", "y"])})
    return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)


def test_a_table_becomes_ids_and_keeps_its_labels(words, tmp_path):
    table = tokenize_dataset(labelled(["a b", "c", "B"], [1, 0, 1]), words, cache_dir=tmp_path)
    assert table["input_ids"][:] == [[2, 9, 10], [2, 11], [2, 10]]
    assert table["label"][:] == [1, 0, 1]
    assert table.features["label"].names == ["n", "y"]
    assert table.features["input_ids"].feature.dtype == "int32"


def test_other_columns_are_dropped_and_labels_are_not_needed(words, tmp_path):
    table = datasets.Dataset.from_dict({"text": ["a"], "more": [1]})
    assert tokenize_dataset(table, words, cache_dir=tmp_path).column_names == ["input_ids"]


def test_two_processes_give_the_same_ids_as_one(words, tmp_path):
    table = labelled(["a b", "c", "B", "a a a", ""], [1, 0, 1, 0, 1])
    one = tokenize_dataset(table, words, cache_dir=tmp_path / "one")
    two = tokenize_dataset(table, words, cache_dir=tmp_path / "two", num_proc=2)
    assert one["input_ids"][:] == two["input_ids"][:]


def test_the_same_texts_are_found_in_the_cache(words, tmp_path, monkeypatch):
    tokenize_dataset(labelled(["a b", "c"], [1, 0]), words, cache_dir=tmp_path)
    monkeypatch.setattr(tokenization, "_encode_rows", None)  # would fail if it were called
    again = tokenize_dataset(labelled(["a b", "c"], [1, 0]), words, cache_dir=tmp_path)
    assert again["input_ids"][:] == [[2, 9, 10], [2, 11]]
    assert len(list(tmp_path.iterdir())) == 1


def damage_half(path, other):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_bit(path, other):
    content = bytearray(path.read_bytes())
    content[content.index((9).to_bytes(4, "little") + (10).to_bytes(4, "little"))] = 11
    path.write_bytes(content)


def damage_exchange(path, other):
    there = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(there)


def damage_folder(path, other):
    path.unlink()
    path.mkdir()
    (path / "mine").write_text("the user's")


def damage_link(path, other):
    path.unlink()
    path.symlink_to(other)


def damage_ids(path, other):
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, features.arrow_schema) as writer:
        writer.write_table(pa.table({"input_ids": [[2, 9, 99], [2, 11]]}, schema=features.arrow_schema))


def sealed(path, change):
    """Change the Arrow stream of a cache file, and seal it as if it were whole."""
    stream, _, line = path.read_bytes().rstrip(b"\n").rpartition(b"\n")
    stream = change(bytearray(stream))
    seal = json.loads(line) | {"sha256": hashlib.sha256(stream).hexdigest()}
    path.write_bytes(bytes(stream) + b"\n" + json.dumps(seal).encode() + b"\n")


def damage_body(path, other):
    sealed(path, lambda stream: stream[: len(stream) // 2])


def damage_offsets(path, other):
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 3, 5))
    sealed(path, lambda stream: stream.replace(offsets, (0).to_bytes(4, "little") + b"\xff\xff\xff\x7f" * 2))


def damage_rows(path, other):
    damage_ids(path, other)
    stream = path.read_bytes()
    table = pa.ipc.open_stream(stream).read_all().slice(1)
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)
    key = path.stem.removeprefix("tokens-")
    content = buffer.getvalue().to_pybytes()
    seal = {"key": key, "rows": 2, "sha256": hashlib.sha256(content).hexdigest()}
    path.write_bytes(content + b"\n" + json.dumps(seal).encode() + b"\n")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_half, "was cut short or altered"),
        (damage_body, "cannot be read: "),
        (damage_offsets, "cannot be read: "),
        (damage_rows, "holds 1 rows of input_ids, 2 of input_ids are asked for"),
        (lambda path, other: path.write_bytes(b""), "was cut short or altered"),
        (lambda path, other: path.write_bytes(bytes(200)), "was cut short or altered"),
        (lambda path, other: path.write_text("[" * 2000), "was cut short or altered"),
        (damage_bit, "was altered: its SHA-256 differs"),
        (damage_ids, "has no SHA-256"),
        (damage_exchange, "holds another table"),
        (damage_folder, "is not a file"),
        (damage_link, "is a link"),
    ],
)
def test_a_damaged_cache_is_told_and_made_again(tmp_path, caplog, damage, words):
    tokenizer = build_word_tokenizer([*SPECIAL_TOKENS, "a", "b", "c"])
    tables = [datasets.Dataset.from_dict({"text": texts}) for texts in (["a b", "c"], ["b a", "c"])]
    tokenize_dataset(tables[0], tokenizer, cache_dir=tmp_path)
    (path,) = tmp_path.iterdir()
    tokenize_dataset(tables[1], tokenizer, cache_dir=tmp_path)
    (other,) = set(tmp_path.iterdir()) - {path}
    whole = path.read_bytes()
    damage(path, other)
    for _ in range(2):
        assert tokenize_dataset(tables[0], tokenizer, cache_dir=tmp_path)["input_ids"][:] == [[2, 9, 10], [2, 11]]
    kind = "of an older version" if damage is damage_ids else "damaged"
    assert [f"token cache {kind}, made again: {path} {words}" in line for line in caplog.messages] == [True]
    assert path.read_bytes() == whole and not path.is_symlink()
    assert tokenize_dataset(tables[1], tokenizer, cache_dir=tmp_path)["input_ids"][:] == [[2, 10, 9], [2, 11]]
    assert [file.read_text() for file in tmp_path.glob("*.not-ours-*/mine")] == ["the user's"] * (
        words == "is not a file"
    )


def test_a_cache_that_cannot_be_written_is_told_in_one_line_and_done_without(words, tmp_path, caplog):
    (tmp_path / "home").write_text("a file where the folder should be")
    with run_files():
        table = tokenize_dataset(labelled(["a b"], [1]), words, cache_dir=tmp_path / "home" / "cache")
        assert table["input_ids"][:] == [[2, 9, 10]]
    (line,) = caplog.messages
    assert line.startswith(
        f"token ids cannot be kept in {tmp_path}/home/cache (Not a directory); they go to a temporary"
    )


def test_the_cache_is_bounded_and_what_was_used_last_stays(words, tmp_path, monkeypatch):
    tables = [datasets.Dataset.from_dict({"text": ["a b " * count]}) for count in (1000, 2000, 3000)]
    paths = []
    for number, table in enumerate(tables):
        tokenize_dataset(table, words, cache_dir=tmp_path)
        (new,) = set(tmp_path.iterdir()) - set(paths)
        os.utime(new, (number, number))
        paths.append(new)
    (tmp_path / ".tokens-x.arrow.12345678.tmp").mkdir()
    (tmp_path / "mine").write_text("the user's")
    monkeypatch.setattr(token_cache, "_USED", set())
    tokenize_dataset(tables[0], words, cache_dir=tmp_path)
    monkeypatch.setattr(token_cache, "_USED", set())
    limit = paths[0].stat().st_size + paths[2].stat().st_size
    monkeypatch.setenv("ULMFIT_PIPE_TOKEN_CACHE_GIB", str(limit / 2**30))
    tokenize_dataset(tables[2], words, cache_dir=tmp_path)
    assert set(tmp_path.iterdir()) == {paths[0], paths[2], tmp_path / "mine"}


def test_a_cache_of_size_0_keeps_nothing(words, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setenv("ULMFIT_PIPE_TOKEN_CACHE_GIB", "0")
    with run_files():
        assert tokenize_dataset(labelled(["a b"], [1]), words)["input_ids"][:] == [[2, 9, 10]]
    assert list(tmp_path.iterdir()) == []
    for wrong in ("-1", "much", "nan"):
        monkeypatch.setenv("ULMFIT_PIPE_TOKEN_CACHE_GIB", wrong)
        with pytest.raises(ValueError, match=f"ULMFIT_PIPE_TOKEN_CACHE_GIB must be a number of GiB.*got '{wrong}'"):
            tokenize_dataset(labelled(["a b"], [1]), words)


def test_several_processes_can_make_one_cache_at_once(words, tmp_path):
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        tables = pool.starmap(_ids_of, [(words, tmp_path)] * 8)
    assert tables == [[[2, 9, 10], [2, 11]]] * 8
    assert len(list(tmp_path.iterdir())) == 1


def _ids_of(tokenizer, folder):
    return tokenize_dataset(labelled(["a b", "c"], [1, 0]), tokenizer, cache_dir=folder)["input_ids"][:]


def test_other_texts_rows_or_tokenizers_are_not_taken_from_the_cache(words, tmp_path):
    table = labelled(["a b", "c"], [1, 0])
    tokenize_dataset(table, words, cache_dir=tmp_path)
    assert tokenize_dataset(labelled(["a b", "a"], [1, 0]), words, cache_dir=tmp_path)["input_ids"][1] == [2, 9]
    assert tokenize_dataset(table.select([1]), words, cache_dir=tmp_path)["input_ids"][:] == [[2, 11]]
    other = build_word_tokenizer([*SPECIAL_TOKENS, "c", "b", "a"])
    assert tokenize_dataset(table, other, cache_dir=tmp_path)["input_ids"][1] == [2, 9]


@pytest.mark.slow
def test_a_document_of_10_mb_is_tokenized_whole(words, tmp_path):
    table = labelled(["a b " * 2_500_000], [0])
    assert len(tokenize_dataset(table, words, cache_dir=tmp_path)["input_ids"][0]) == 5_000_001


def test_a_table_without_text_is_refused(words):
    with pytest.raises(ValueError, match="needs a column 'text', it has body"):
        tokenize_dataset(datasets.Dataset.from_dict({"body": ["a"]}), words)


def test_no_process_is_refused(words):
    with pytest.raises(ValueError, match="num_proc must be at least 1, got 0"):
        tokenize_dataset(labelled(["a"], [0]), words, num_proc=0)
