"""What a tokenizer of transformers puts around a text, and documents through it."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ulmfit_pipe.data.text.pretrained_tokenizers import (
    SpecialTokens,
    encode_documents,
    longest_text,
    special_tokens_of,
    tokenizer_key,
    vocabulary_digest,
)
from ulmfit_pipe.data.text.tokenization import tokenize_dataset, train_tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "blue", "green", "a", "b", "1"]


def make_tokenizer(template=None, *, words=WORDS, **settings):
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if template is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(name, words.index(name)) for name in ("[CLS]", "[SEP]")]
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **settings)


def test_berts_special_tokens_stand_before_and_behind():
    special = special_tokens_of(make_tokenizer("[CLS] $A [SEP]"))
    assert special == SpecialTokens((2,), (3,), (0,), 0, (0,))
    assert (special.count, special.typed) == (2, False)


def test_a_tokenizer_that_adds_nothing_has_none():
    special = special_tokens_of(make_tokenizer())
    assert (special.prefix, special.suffix, special.count) == ((), (), 0)


def test_xlnets_come_behind_and_one_has_a_type_of_its_own():
    names = ["input_ids", "token_type_ids", "attention_mask"]
    special = special_tokens_of(make_tokenizer("$A:0 [SEP]:0 [CLS]:2", model_input_names=names))
    assert special == SpecialTokens((), (3, 2), (), 0, (0, 2))
    assert special.typed


def test_types_that_the_model_is_not_meant_to_see_do_not_count():
    names = ["input_ids", "attention_mask"]
    assert not special_tokens_of(make_tokenizer("$A:0 [SEP]:0 [CLS]:2", model_input_names=names)).typed


def test_an_empty_vocabulary_is_refused():
    backend = Tokenizer(models.BPE())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(ValueError, match=r"gives no token for 'a b c 1 2 \.', so its vocabulary is empty"):
        special_tokens_of(tokenizer)


def test_documents_come_out_whole_with_their_special_tokens_however_long(caplog):
    tokenizer = make_tokenizer("[CLS] $A [SEP]", model_max_length=4)
    ids = encode_documents(tokenizer, ["red", "blue green " * 10])
    assert ids == [[2, 4, 3], [2, *[5, 6] * 10, 3]]
    assert encode_documents(tokenizer, []) == []
    assert caplog.text == ""


def test_our_own_tokenizer_goes_its_own_way():
    tokenizer = train_tokenizer(["red blue green"] * 4, kind="word", min_count=1)
    assert encode_documents(tokenizer, ["red blue"]) == tokenizer.encode_documents(["red blue"])


def test_the_key_tells_tokenizers_apart_and_is_the_same_for_a_copy():
    assert tokenizer_key(make_tokenizer()) == tokenizer_key(make_tokenizer())
    assert tokenizer_key(make_tokenizer()) != tokenizer_key(make_tokenizer("[CLS] $A [SEP]"))


def test_the_digest_tells_vocabularies_of_one_size_apart():
    other = [*WORDS[:4], "blue", "red", *WORDS[6:]]
    assert vocabulary_digest(make_tokenizer()) == vocabulary_digest(make_tokenizer("[CLS] $A [SEP]"))
    assert vocabulary_digest(make_tokenizer()) != vocabulary_digest(make_tokenizer(words=other))


def test_the_longest_text_is_what_the_tokenizer_says_if_it_says_anything():
    assert longest_text(make_tokenizer(model_max_length=77)) == 77
    assert longest_text(make_tokenizer()) is None


def test_a_table_is_tokenized_with_any_tokenizer(tmp_path):
    from datasets import Dataset

    table = Dataset.from_dict({"text": ["red", "blue red"], "label": [1, 0]})
    encoded = tokenize_dataset(table, make_tokenizer("[CLS] $A [SEP]"), cache_dir=tmp_path)
    assert encoded["input_ids"][:] == [[2, 4, 3], [2, 5, 4, 3]]
    assert encoded["label"][:] == [1, 0]
    bare = tokenize_dataset(table, make_tokenizer(), cache_dir=tmp_path)
    assert bare["input_ids"][:] == [[4], [5, 4]]
