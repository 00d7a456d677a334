"""Batches as a transformer takes them, against what its tokenizer does by itself."""

import copy

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ulmfit_pipe.data.streams.backbone_batches import BackboneBatches, Windows, document_windows, token_types
from ulmfit_pipe.data.streams.classifier_batches import ClassifierBatches
from ulmfit_pipe.data.text.pretrained_tokenizers import SpecialTokens, encode_documents, special_tokens_of

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{number}" for number in range(40)), "a", "b"]
BERT, XLNET, BARE = "[CLS] $A [SEP]", "$A:0 [SEP]:0 [CLS]:2", None


def make_tokenizer(template, **settings):
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if template:
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, **names, **settings)


def texts_of(*lengths):
    return [
        " ".join(f"w{number % 40}" for number in range(start, start + length)) for start, length in enumerate(lengths)
    ]


def batches_of(tokenizer, texts, **settings):
    documents = ClassifierBatches(
        encode_documents(tokenizer, texts), batch_size=16, pad_token_id=0, shuffle=settings.pop("shuffle", False)
    )
    return BackboneBatches(documents, special_tokens_of(tokenizer), **settings)


@pytest.mark.parametrize("template", [BERT, XLNET, BARE])
@pytest.mark.parametrize(("length", "overlap"), [(9, 0), (9, 3), (12, 5), (7, 4)])
def test_windows_are_those_of_the_tokenizer_itself(template, length, overlap):
    tokenizer = make_tokenizer(template)
    special = special_tokens_of(tokenizer)
    for text in texts_of(*range(1, 34)):
        expected = tokenizer(text, truncation=True, max_length=length, stride=overlap, return_overflowing_tokens=True)[
            "input_ids"
        ]
        whole = torch.tensor(encode_documents(tokenizer, [text])[0])
        found = document_windows(whole, special, Windows(length, overlap))
        assert [window.tolist() for window in found] == expected


def test_a_batch_of_windows_says_which_document_each_is_of():
    tokenizer = make_tokenizer(BERT)
    (batch,) = batches_of(tokenizer, texts_of(3, 20, 7), windows=Windows(9, 2))
    assert batch["row"].tolist() == [1, 2, 0]  # longest first
    assert batch["document"].tolist() == [0, 0, 0, 0, 1, 2]
    assert batch["input_ids"].shape == (6, 9)
    assert batch["attention_mask"].sum(1).tolist() == [9, 9, 9, 7, 9, 5]
    assert bool((batch["input_ids"][batch["attention_mask"] == 0] == 0).all())
    assert batch["input_ids"][:, 0].tolist() == [2] * 6
    content = [row[1:][(row[1:] > 3)].tolist() for row in batch["input_ids"][:4]]
    joined = content[0] + [token for window in content[1:] for token in window[2:]]
    assert joined == encode_documents(tokenizer, texts_of(3, 20, 7))[1][1:-1]


def test_without_windows_a_batch_is_that_of_the_documents():
    tokenizer = make_tokenizer(BERT)
    (batch,) = batches_of(tokenizer, texts_of(3, 5))
    expected = tokenizer(texts_of(3, 5)[::-1], padding=True, return_tensors="pt")
    assert sorted(batch) == ["attention_mask", "input_ids", "row"]
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])


def test_token_types_and_left_padding_are_those_of_the_tokenizer_itself():
    tokenizer = make_tokenizer(XLNET, padding_side="left")
    (batch,) = batches_of(tokenizer, texts_of(9, 2, 5), pad_left=True)
    order = batch["row"].tolist()
    expected = tokenizer([texts_of(9, 2, 5)[row] for row in order], padding=True, return_tensors="pt")
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch[name], expected[name]), name


def test_types_of_prefix_text_and_suffix_stand_where_they_are():
    special = SpecialTokens((5,), (6, 7), (2,), 1, (3, 4))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert token_types(mask, special).tolist() == [[2, 1, 1, 3, 4], [2, 1, 3, 4, 0]]


def test_a_shallow_copy_keeps_its_own_epoch():
    batches = batches_of(make_tokenizer(BERT), texts_of(*range(3, 40)), shuffle=True)
    first = [batch["row"].tolist() for batch in batches]
    other = copy.copy(batches)
    other.set_epoch(3)
    assert [batch["row"].tolist() for batch in batches] == first
    assert [batch["row"].tolist() for batch in other] != first
    assert (len(batches), batches.batches_in_epoch(1), batches.batch_size) == (len(first), len(first), 16)


@pytest.mark.parametrize(("length", "overlap"), [(9, 7), (9, -1), (2, 0)])
def test_windows_without_a_step_forward_are_refused(length, overlap):
    words = (
        rf"windows of {length} tokens hold {max(length - 2, 0)} of the text beside 2 special tokens; .* got {overlap}"
    )
    with pytest.raises(ValueError, match=words):
        batches_of(make_tokenizer(BERT), texts_of(3), windows=Windows(length, overlap))


# A document that is cut keeps its closing special tokens (ClassifierBatches)


def rows_of(batches):
    return {
        int(row): ids[: int(mask.sum())].tolist()
        for batch in batches
        for row, ids, mask in zip(batch["row"], batch["input_ids"], batch["attention_mask"], strict=True)
    }


@pytest.mark.parametrize("keep_end", [0, 1, 4])
def test_a_cut_document_keeps_its_beginning_and_so_many_last_tokens(keep_end):
    documents = [list(range(10, 10 + length)) for length in (4, 6, 7, 30)]
    rows = rows_of(ClassifierBatches(documents, batch_size=3, max_length=6, keep_end=keep_end, shuffle=False))
    for row, document in enumerate(documents):
        cut = document[: 6 - keep_end] + document[len(document) - keep_end :]
        assert rows[row] == (document if len(document) <= 6 else cut)


def test_cutting_is_what_the_tokenizer_does_by_itself():
    tokenizer, texts = make_tokenizer(BERT), texts_of(2, 6, 7, 25)
    rows = rows_of(
        ClassifierBatches(encode_documents(tokenizer, texts), batch_size=4, max_length=8, keep_end=1, shuffle=False)
    )
    expected = tokenizer(texts, truncation=True, max_length=8)["input_ids"]
    assert [rows[row] for row in range(4)] == expected


def test_the_longer_documents_are_counted_as_they_were_before_the_cut():
    batches = ClassifierBatches([[1] * length for length in (4, 6, 7, 30)], batch_size=3, max_length=6, shuffle=False)
    assert (batches.documents, batches.longer_than(6), batches.longer_than(3)) == (4, 2, 4)


@pytest.mark.parametrize("keep_end", [-1, 6])
def test_more_last_tokens_than_are_kept_are_refused(keep_end):
    with pytest.raises(ValueError, match=f"keep_end must be 0 or more and below max_length 6, got {keep_end}"):
        ClassifierBatches([[1] * 9] * 2, batch_size=2, max_length=6, keep_end=keep_end)


def test_a_backward_reader_sees_the_same_tokens_turned_around():
    document = np.arange(10, 40).tolist()
    forward, backward = (
        rows_of(ClassifierBatches([document] * 2, batch_size=2, max_length=6, keep_end=2, backward=turned))
        for turned in (False, True)
    )
    assert backward[0] == forward[0][::-1]
