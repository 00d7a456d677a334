"""How much of a text a vocabulary loses: unknown tokens, characters without a token, bytes, spelled words."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ulmfit_pipe.data.text.text_coverage import measure_coverage
from ulmfit_pipe.data.text.tokenization import train_tokenizer
from ulmfit_pipe.settings.choices import DEFAULT_MODEL
from ulmfit_pipe.stages.artifacts import load_tokenizer

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "room", "was", "dirty"]


@pytest.fixture(scope="module")
def english():
    """Return the tokenizer of the built-in English model."""
    return load_tokenizer(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def word_pieces():
    """Return a WordPiece tokenizer of a few English words, all letters of English, and two Chinese characters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + list("отельбы")
    tokens = ["[PAD]", "[UNK]", *WORDS, *letters, *(f"##{letter}" for letter in letters), "很", "好", ".", "，"]
    backend = Tokenizer(models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")


def byte_level(texts):
    """Return a byte-level tokenizer, as GPT-2's: no token of it is unknown."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="!")


def lost(tokenizer, *texts):
    return measure_coverage(tokenizer, list(texts)).lost_share


@pytest.mark.parametrize(
    "text",
    [
        "距离川沙公路较近，但是公交指示不对，会非常麻烦。",
        "商务大床房 房间很大 床有2M宽 整体感觉不错",
        "ホテルは素晴らしく、朝食もとても美味しかったです。",
        "호텔이 훌륭했고 아침 식사도 맛있었습니다.",
        "โรงแรมดีมาก บริการยอดเยี่ยม อาหารเช้าอร่อย",
        "Отличный отель, очень понравилось обслуживание.",
        "Το ξενοδοχείο ήταν εξαιρετικό και το πρωινό πλούσιο.",
        "كان الفندق رائعا والخدمة ممتازة والطعام لذيذ جدا.",
        "होटल बहुत अच्छा था और नाश्ता स्वादिष्ट था।",
        "😍😍 🔥 💯",
    ],
)
def test_other_scripts_are_lost_to_the_english_model_also_where_no_token_is_unknown(english, text):
    assert lost(english, text) > 0.7


@pytest.mark.parametrize(
    "text",
    [
        "The room was dirty, and NOBODY cared!!! Café Müller costs €12 a night...",
        "@united my flight is delayed AGAIN, 3 hours and no info #fail https://t.co/aB3dEf",
        "Das Hotel war ausgezeichnet, das Frühstück reichhaltig und das Personal freundlich.",
        "Infelizmente o quarto estava sujo e o barulho da rua não nos deixou dormir.",
    ],
)
def test_latin_letters_are_not_lost_to_the_english_model(english, text):
    assert lost(english, text) < 0.05


def test_unknown_tokens_are_counted_beside_the_characters_that_they_hide(english):
    found = measure_coverage(english, ["the hotel 距离川沙公路较近"])
    assert (found.visible, found.characters) == (16, 18)
    assert found.lost.total() == 8
    assert found.unknown_tokens == 1


def test_marks_of_capitals_are_neither_tokens_nor_characters_of_a_text(english):
    plain, marked = (measure_coverage(english, [text]) for text in ("the hotel", "The HOTEL"))
    assert (plain.tokens, plain.visible) == (marked.tokens, marked.visible) == (2, 8)


def test_a_word_with_one_unknown_character_is_lost_to_word_pieces(word_pieces):
    assert lost(word_pieces, "the quick fox") == 0
    assert lost(word_pieces, "the q☂ick fox") == 5 / 11
    assert lost(word_pieces, "很好，好") == 0  # one token a character is a known one in Chinese
    assert lost(word_pieces, "很差，好") == 1 / 4


def test_a_word_that_is_spelled_is_lost_to_word_pieces_and_a_rare_english_one_is_a_little_of_a_text(word_pieces):
    assert lost(word_pieces, "отель был") == pytest.approx(1)
    assert lost(word_pieces, "the room was dirty over the lazy dog xyz") == 3 / 32


def test_characters_that_vanish_without_an_unknown_token_are_lost():
    vocabulary = {character: number for number, character in enumerate("abcdefghijklmnopqrstuvwxyz ")}
    backend = Tokenizer(models.BPE({**vocabulary, "th": 27, "the": 28, "!": 29}, [("t", "h"), ("th", "e")]))
    silent = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="!")
    assert silent("很好")["input_ids"] == []
    assert lost(silent, "the 很好") == 2 / 5


def test_characters_cut_into_bytes_are_lost():
    tokenizer = byte_level([" ".join(WORDS)] * 4)
    assert lost(tokenizer, "the quick fox") == 0
    assert lost(tokenizer, "很好") == 1
    assert lost(tokenizer, "отель был") == 1


def test_a_vocabulary_of_letters_alone_spells_every_language():
    letters = byte_level(["x"])
    assert lost(letters, "the quick fox") == 0


def test_a_new_vocabulary_of_short_chinese_texts_knows_them():
    """Clauses hold rare characters and no space: each would be left out whole, and the vocabulary be empty."""
    chance = random.Random(0)
    common, rare = [chr(0x4E00 + 3 * number) for number in range(300)], iter(range(0x7000, 0x9000))

    def clause():
        characters = [common[int(300 * chance.random() ** 3)] for _ in range(chance.randint(8, 40))]
        return "".join([*characters, chr(next(rare))])

    texts = [f"{clause()}，{clause()}。" for _ in range(200)]
    tokenizer = train_tokenizer(texts, vocab_size=2000)
    found = measure_coverage(tokenizer, texts)
    assert found.lost_share < 0.06  # the rare characters are 400 of about 10,000
    assert found.tokens < 0.85 * found.characters
    assert len(tokenizer) > 1000
