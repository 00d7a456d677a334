"""The tokenizer class: rules in every way in, special tokens, saving and loading."""

import copy
import json
import os
import pickle
import subprocess
import sys
import unicodedata

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from ulmfit_pipe.data.text import ulmfit_tokenizer
from ulmfit_pipe.data.text.text_rules import SPECIAL_TOKENS
from ulmfit_pipe.data.text.tokenization import build_word_tokenizer, register_tokenizer, train_tokenizer, vocab_hash
from ulmfit_pipe.data.text.ulmfit_tokenizer import UlmfitTokenizer, _compose, prepare_text

TEXTS = [
    "The quick brown fox didn't jump over the lazy dog; it's fine.",
    "A Quick test of U.S.A. numbers 1,000.50 and well-known words!!!",
    "Another text\n\nwith (some) lines, and the the the rest.",
] * 9
TRICKY = [
    "",
    " ",
    "I LOVE this sooooo much!!! xxupdate xxup ok axxup",
    "NUL \x00 emoji 😀 lone \ud800 composed é decomposed e\u0301",
    "\n\nlines \r\n and\ttabs\x1cand\xa0others\u3000",
    "日本語 текст",
    "xxmaj. (xxup) XXMAJ xxbos xxeos",
    "ab" * 3000,
]


@pytest.fixture(scope="module", params=["unigram", "bpe", "word"])
def tokenizer(request):
    return train_tokenizer(TEXTS, kind=request.param, vocab_size=300, min_count=1)


@pytest.fixture(scope="module")
def words():
    return build_word_tokenizer([*SPECIAL_TOKENS, "hello", "world", "!", "3", "."])


def test_special_tokens_are_ids_0_to_8(tokenizer):
    assert tokenizer.convert_ids_to_tokens(list(range(9))) == list(SPECIAL_TOKENS)
    assert (tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (
        0,
        1,
        2,
        3,
    )
    assert sorted(tokenizer.all_special_ids) == list(range(9))


def test_rules_apply_in_every_way_in(words):
    expected = [2, 8, 9, 7, 10, 5, 12, 11]  # xxbos xxmaj hello xxup world xxrep 3 !
    text = "Hello WORLD!!!"
    assert words(text)["input_ids"] == expected
    assert words([text])["input_ids"] == [expected]
    assert words.encode(text) == expected
    assert words.encode_documents([text]) == [expected]
    assert words.tokenize(text) == ["xxbos", "xxmaj", "hello", "xxup", "world", "xxrep", "3", "!"]
    assert words(text, return_tensors="pt")["input_ids"].tolist() == [expected]


@pytest.mark.parametrize("text", TRICKY)
def test_the_fast_way_in_gives_the_ids_of_the_slow_one(tokenizer, text):
    assert tokenizer.encode_documents([text]) == [tokenizer(text)["input_ids"]]


def test_every_document_starts_with_one_xxbos_and_gets_nothing_else(tokenizer):
    assert tokenizer("")["input_ids"] == [2]
    assert tokenizer("the rest")["input_ids"].count(2) == 1
    assert tokenizer("the rest")["input_ids"][0] == 2
    assert 3 not in tokenizer("the rest")["input_ids"]


def test_a_word_that_only_starts_like_a_special_token_is_none(tokenizer):
    assert tokenizer("xxupdate axxup")["input_ids"].count(7) == 0


def test_a_special_token_written_by_the_user_is_the_token(tokenizer):
    assert tokenizer("quick xxup the")["input_ids"].count(7) == 1


def test_written_padding_is_read_as_unknown(tokenizer):
    ids = tokenizer("the xxpad rest")["input_ids"]
    assert 1 not in ids
    assert 0 in ids


def test_padding_is_on_the_right_with_id_1(words):
    batch = words(["hello", "hello world ."], padding=True)
    assert batch["input_ids"] == [[2, 9, 1, 1], [2, 9, 10, 13]]
    assert batch["attention_mask"] == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_truncation_keeps_the_start_and_does_not_stick(words):
    assert words("hello world hello", truncation=True, max_length=2)["input_ids"] == [2, 9]
    assert words.encode_documents(["hello world . !"]) == [[2, 9, 10, 13, 11]]


def test_an_empty_batch_gives_an_empty_batch(words):
    assert dict(words([])) == {"input_ids": [], "attention_mask": []}


def test_decoding_shows_marks_or_undoes_them(words):
    ids = words("Hello WORLD!!!")["input_ids"]
    assert words.decode(ids) == "xxbos xxmaj hello xxup world xxrep 3 !"
    assert words.decode(ids, skip_special_tokens=True) == "Hello WORLD !!!"
    assert words.decode(9) == "hello"
    assert words.batch_decode([[2, 9], [2, 10]], skip_special_tokens=True) == ["hello", "world"]


def test_subwords_are_put_together_again():
    for kind in ("unigram", "bpe"):
        tokenizer = train_tokenizer(TEXTS, kind=kind, vocab_size=300)
        ids = tokenizer("The quick lazy fox")["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == "The quick lazy fox"


@pytest.mark.parametrize("skip_special_tokens", [False, True])
def test_a_text_decoded_in_two_pieces_is_the_text_wherever_it_is_cut(tokenizer, skip_special_tokens):
    ids = tokenizer("The quick brown fox jumped over the lazy dog; it's fine, well-known.")["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    whole = tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
    cuts = [cut for cut in range(2, len(ids)) if tokens[cut - 1] not in (*SPECIAL_TOKENS, "▁", "Ġ")]
    for cut in cuts:
        pieces = [tokenizer.decode(part, skip_special_tokens=skip_special_tokens) for part in (ids[:cut], ids[cut:])]
        assert "".join(pieces) == whole
    assert len(cuts) > 8


def test_a_text_that_begins_with_its_start_or_is_one_token_has_no_space_before_it(words):
    assert words.decode([2, 9, 10], skip_special_tokens=True) == "hello world"
    assert words.decode([9, 10]) == " hello world"
    assert (words.decode(9), words.decode([]), words.decode([8], skip_special_tokens=True)) == ("hello", "", "")
    subwords = train_tokenizer(TEXTS, kind="unigram", vocab_size=300)
    inside = next(
        number for number, token in enumerate(subwords.convert_ids_to_tokens(range(9, 300)), 9) if token == "t"
    )
    assert subwords.decode([inside]) == "t"


def test_a_long_document_has_the_ids_of_its_parts(tokenizer):
    part = tokenizer("the quick brown fox.")["input_ids"][1:]
    ids = tokenizer.encode_documents([" ".join(["the quick brown fox."] * 20_000)])[0]
    assert ids == [2] + part * 20_000


def test_remembered_words_are_bounded_by_their_bytes_and_forgotten_when_tokens_are_added(words, monkeypatch):
    monkeypatch.setattr(ulmfit_tokenizer, "REMEMBERED_BYTES", 1500)
    own = copy.deepcopy(words)
    numbers = []
    for text in ("hello world", "! 3 .", "hello new", "hello new"):
        assert own.encode_documents([text, text]) == [words(text)["input_ids"]] * 2
        numbers.append(len(own._remembered.known))
    assert numbers == [3, 6, 0, 3]  # seven words of some 250 bytes are too much
    assert own.encode_documents(["new"]) == [[2, 0]]
    own.add_tokens(["new"])
    assert own.encode_documents(["new"]) == [[2, 14]]


def test_words_of_more_than_1000_characters_are_cut():
    assert prepare_text("ab" * 700) == "xxbos " + "ab" * 500 + " " + "ab" * 200


def test_text_is_composed_and_fit_for_utf8():
    assert prepare_text("e\u0301 \ud800 \ud83d\ude00") == "xxbos é \ufffd 😀"


@pytest.mark.parametrize(
    "text",
    [
        *TRICKY,
        "Tiếng Việt có dấu, cả khi tách ra: Tie\u0302\u0301ng Vie\u0323\u0302t",
        "e" + "\u0301\u0323\u0300" * 10 + " o",
        "\u0301" + "ab\u0323" * 50,
        "שָׁלוֹם हिन्दी 한국어 \u1112\u1161\u11ab \u0f71\u0f72\u0f73 👩\u200d👧",
    ],
)
def test_texts_of_any_language_are_composed_as_unicode_says(text):
    whole = unicodedata.normalize("NFC", text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    assert _compose(text.replace("\ud800", "\ufffd")) == whole


def test_marks_are_composed_thirty_at_a_time(monkeypatch):
    longest = {}
    real = unicodedata.normalize
    marks = "\u0301\u0323\u0300\u0f73"
    for length in (500_000, 1_000_000):
        parts = []
        monkeypatch.setattr(
            unicodedata, "normalize", lambda form, part, seen=parts: seen.append(part) or real(form, part)
        )
        composed = prepare_text("a" + marks * (length // 4))
        longest[length] = (max(map(len, parts)), len(parts))
        monkeypatch.undo()
        assert composed.startswith("xxbos ạ\u0f71\u0f71") and composed.replace(" ", "").count("\u0f72") == length // 4
    assert longest[1_000_000][0] == longest[500_000][0] == len("xxbos a") + 30
    assert longest[1_000_000][1] == pytest.approx(2 * longest[500_000][1], rel=0.01)


def test_copies_and_pickles_give_the_same_ids(tokenizer):
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.encode_documents(TRICKY) == tokenizer.encode_documents(TRICKY)


def test_loading_what_was_saved_gives_the_same_ids(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    data = {path.name for path in tmp_path.iterdir() if path.suffix != ".py"}
    assert data == {"tokenizer_config.json", "ulmfit_tokenizer.json"}
    register_tokenizer()
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), UlmfitTokenizer.from_pretrained(tmp_path)):
        assert type(loaded) is UlmfitTokenizer
        assert loaded.kind == tokenizer.kind
        assert vocab_hash(loaded) == vocab_hash(tokenizer)
        assert loaded.encode_documents(TRICKY) == tokenizer.encode_documents(TRICKY)
        assert loaded(TRICKY)["input_ids"] == tokenizer(TRICKY)["input_ids"]
        assert loaded("xxupdate")["input_ids"] == tokenizer("xxupdate")["input_ids"]


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def test_loading_in_a_fresh_process_gives_the_same_ids(words, tmp_path):
    words.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))  # whatever model stands beside it
    code = (
        "from ulmfit_pipe.data.text.tokenization import register_tokenizer; register_tokenizer()\n"
        "from transformers import AutoTokenizer\n"
        f"print(AutoTokenizer.from_pretrained({str(tmp_path)!r})('Hello WORLD!!!')['input_ids'])"
    )
    assert run_python(code).stdout.strip() == "[2, 8, 9, 7, 10, 5, 12, 11]"


def test_a_fork_after_use_prints_no_warning_and_works(tmp_path):
    code = (
        "import multiprocessing, os\n"
        "os.environ.pop('TOKENIZERS_PARALLELISM', None)\n"
        "from ulmfit_pipe.data.text.tokenization import train_tokenizer\n"
        "t = train_tokenizer(['one two three four'] * 9, kind='bpe', vocab_size=300)\n"
        "t.encode_documents(['one two', 'three'])\n"
        "with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "    print(pool.map(t.encode_documents, [['one five'], ['two six']]) ==\n"
        "          [t.encode_documents(['one five']), t.encode_documents(['two six'])])\n"
        "print(os.environ.get('TOKENIZERS_PARALLELISM'))\n"
    )
    done = run_python(code)
    assert done.stdout.split() == ["True", "None"]
    assert "fork" not in done.stderr


def test_a_folder_without_its_vocabulary_is_refused(words, tmp_path):
    words.save_pretrained(tmp_path)
    (tmp_path / "ulmfit_tokenizer.json").unlink()
    with pytest.raises(ValueError, match=f"there is no ulmfit_tokenizer.json in {tmp_path}"):
        UlmfitTokenizer.from_pretrained(tmp_path)


def test_a_vocabulary_cut_short_is_refused(words, tmp_path):
    words.save_pretrained(tmp_path)
    file = tmp_path / "ulmfit_tokenizer.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(ValueError, match="ulmfit_tokenizer.json is cut short or is not a tokenizer"):
        UlmfitTokenizer.from_pretrained(tmp_path)


def test_another_order_of_special_tokens_is_refused():
    backend = Tokenizer(models.WordLevel({"xxpad": 0, "xxunk": 1}, unk_token="xxunk"))
    with pytest.raises(ValueError, match="ids 0-8 must be xxunk xxpad xxbos .* this vocabulary has"):
        UlmfitTokenizer(tokenizer_object=backend)


def test_an_unknown_kind_is_refused(words):
    with pytest.raises(ValueError, match="kind must be one of unigram, bpe, word, got 'char'"):
        UlmfitTokenizer(tokenizer_object=words.backend_tokenizer, kind="char")


def test_pairs_of_texts_are_refused(words):
    with pytest.raises(ValueError, match="pairs of texts are not supported; join them first"):
        words("hello", "world")
    with pytest.raises(ValueError, match="number 0 of the batch is"):
        words([("hello", "world")])


def test_texts_already_cut_into_words_are_refused(words):
    with pytest.raises(ValueError, match="is_split_into_words is not supported"):
        words(["hello", "world"], is_split_into_words=True)


def test_a_text_that_is_no_string_is_refused(words):
    with pytest.raises(ValueError, match="number 1 of the batch is None"):
        words(["hello", None])
    with pytest.raises(ValueError, match="must be a string or a list of strings, got 3"):
        words(3)
