"""Train a unigram subword vocabulary with sentencepiece: the same one on every run with one version of it.

The trainer of the ``tokenizers`` library visits its words in an order that changes from process to process, and ends
in another vocabulary each time. sentencepiece does not, given sorted words and one thread. It is given the substrings
to start from as well: where words come with counts, its own start counts each word twice, whatever its count, and ends
with 11% more tokens per text (IMDb, 12,000 pieces).

Source: Kudo 2018, "Subword Regularization", section 3.2; Kudo & Richardson 2018 (SentencePiece).
"""

import io
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import sentencepiece

MAX_PIECE_LENGTH = 16  # characters, SentencePiece's default
MAX_WORD_LENGTH = 32  # characters; a longer word is left out, which bounds its substrings
MAX_WORDS = 300_000  # the most frequent ones; bounds memory at about 1 GB
SEED_FACTOR = 10  # substrings to start from, per piece wanted
RESERVED = {"\0", "▅"}  # sentencepiece leaves out what holds these


def train_unigram(
    word_counts: Mapping[str, int], *, num_pieces: int, alphabet: Collection[str]
) -> list[tuple[str, float]]:
    """Choose pieces and their log probabilities.

    Args:
        word_counts: How often each word occurs; pieces never cross a word's edge.
        num_pieces: Pieces wanted. A small text may hold fewer.
        alphabet: Single characters that must be pieces. Words with another character are left out.

    Returns:
        (piece, natural log probability), most probable first.

    Raises:
        ValueError: ``num_pieces`` has no room for the alphabet, or no word is left.
    """
    if num_pieces < len(alphabet):
        raise ValueError(f"num_pieces={num_pieces} has no room for the {len(alphabet)} single characters")
    known = set(alphabet) - RESERVED
    usable = [word for word in word_counts if len(word) <= MAX_WORD_LENGTH and known.issuperset(word)]
    words = sorted(usable, key=lambda word: (-word_counts[word], word))[:MAX_WORDS]
    if not words:
        raise ValueError("there is no word to train a vocabulary on: the texts are empty")
    unseen = sorted(set(alphabet).difference(*words))
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        seeds = Path(folder) / "seeds.tsv"
        seeds.write_text(_seed_pieces(words, word_counts, size=SEED_FACTOR * num_pieces), "utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(f"{word}\t{word_counts[word]}" for word in words),
            input_format="tsv",
            seed_sentencepieces_file=str(seeds),
            model_writer=model,
            model_type="unigram",
            vocab_size=num_pieces - len(unseen) + 1,  # its unknown token is one of them
            hard_vocab_limit=False,
            character_coverage=1.0,  # every character of the words is a piece
            max_sentencepiece_length=MAX_PIECE_LENGTH,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_unicode_script=False,
            split_by_number=False,
            unk_id=0,
            unk_piece="▅",  # no word is that
            bos_id=-1,
            eos_id=-1,
            num_threads=1,  # sums are taken thread by thread, and would differ in their last bits
            minloglevel=2,  # errors only
        )
    trained = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = [(trained.id_to_piece(number), trained.get_score(number)) for number in range(1, len(trained))]
    return [*pieces, *((character, pieces[-1][1]) for character in unseen)]


def _seed_pieces(words: list[str], word_counts: Mapping[str, int], *, size: int) -> str:
    """The characters and the substrings that cover most text, a line each, with how often they occur."""
    frequencies: dict[str, int] = {}
    for word in words:
        count = word_counts[word]
        for start in range(len(word)):
            for end in range(start + 1, min(len(word), start + MAX_PIECE_LENGTH) + 1):
                piece = word[start:end]
                frequencies[piece] = frequencies.get(piece, 0) + count
    characters = sorted(piece for piece in frequencies if len(piece) == 1)
    longer = [piece for piece, frequency in frequencies.items() if len(piece) > 1 and frequency > 1]
    longer.sort(key=lambda piece: (-frequencies[piece] * len(piece), piece))
    return "".join(f"{piece}\t{frequencies[piece]}\n" for piece in [*characters, *longer[:size]])
