"""A model that fastai saved becomes a folder of ours: weights by name, vocabulary, tokenizer, configuration.

Two files come in: the weights (`.pth`, of a language model, an encoder or a classifier, of fastai 2, 1 or 0.7) and the
vocabulary (`.pkl`). Both are pickles; they are read by a reader that runs nothing (``tools/fastai/safe_pickles.py``).

A classifier's folder holds a second one, `language_model`: its encoder with a tied decoder, which is what a
language-model stage resumes from.

Our tokenizers have the nine special tokens at ids 0-8. A vocabulary with another order is put into this one, each row
of the weights moving with its token; a special token that it lacks gets the mean row, as any new token does.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ulmfit_pipe.console import print_line
from ulmfit_pipe.data.text.text_rules import BOS, EOS, FLD, PAD, REP, SPECIAL_TOKENS, UNK, UP, WREP
from ulmfit_pipe.data.text.tokenization import build_word_tokenizer, vocab_hash
from ulmfit_pipe.data.text.ulmfit_tokenizer import UlmfitTokenizer
from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM, AwdLstmForSequenceClassification
from ulmfit_pipe.models.awd_lstm.vocab_transfer import FASTAI_FILLER, remap_embeddings
from ulmfit_pipe.settings.model_files import ImportFastaiSettings
from ulmfit_pipe.stages.artifacts import ArtifactError, digest_of_file, refuse_foreign_folder, register, save_stage
from ulmfit_pipe.tools.fastai.pickle_names import shown_text
from ulmfit_pipe.tools.fastai.safe_pickles import Vocabulary, read_vocabulary, read_weights
from ulmfit_pipe.tools.fastai.weights import fastai_head_sizes, fastai_sizes, from_fastai_state_dict

STAGE = "import_fastai"
ENCODER_FOLDER = "language_model"  # in a classifier's folder
OLD_NAMES = {  # special tokens of fastai 0.7 and of the salesforce scripts that mean the same as ours
    "_unk_": UNK,
    "<unk>": UNK,
    "_pad_": PAD,
    "<pad>": PAD,
    "xbos": BOS,
    "_bos_": BOS,
    "_eos_": EOS,
    "<eos>": EOS,
    "xfld": FLD,
    "tk_rep": REP,
    "tk_wrep": WREP,
    "t_up": UP,
}
SUBWORD_MARK = "▁"  # starts a word's first piece in a SentencePiece vocabulary
MOST_MARKED = 0.05  # share of tokens with that mark from which a vocabulary is one of subwords


@dataclass(frozen=True)
class ImportSummary:
    """What an import made.

    Attributes:
        kind: language model, encoder or classifier: what the file held.
        output_dir: The folder.
        language_model: The folder that a language-model stage resumes from; of a classifier one inside the folder.
        sizes: Sizes of the model, by their names in the configuration.
        labels: A classifier's labels, else empty.
        notes: What was decided on the way, a sentence each.
    """

    kind: Literal["language model", "encoder", "classifier"]
    output_dir: Path
    language_model: Path
    sizes: dict[str, int]
    labels: list[str]
    notes: list[str]


def import_fastai(settings: ImportFastaiSettings, *, say: Callable[[str], None] = print_line) -> ImportSummary:
    """Read a fastai model's two files and write a folder that every stage accepts; of a classifier two of them.

    Args:
        settings: The files and the folder.
        say: Receives log lines on each decision that was taken.

    Returns:
        What was made.

    Raises:
        UnsafePickleError: A file names something that is neither a tensor nor a list of strings.
        ArtifactError: The two files do not belong together, the labels are missing, or the vocabulary is of subwords.
        ValueError: The weights have another layout.
    """
    refuse_foreign_folder(Path(settings.output_dir), STAGE)
    weights_file, vocab_file = _existing(settings.weights), _existing(settings.vocab)
    theirs = read_weights(weights_file)
    vocabulary = read_vocabulary(vocab_file)
    sizes, head = fastai_sizes(theirs), fastai_head_sizes(theirs)
    _check_vocabulary(vocabulary.tokens, sizes["vocab_size"], settings)
    weights = {name: _float32(tensor) for name, tensor in from_fastai_state_dict(theirs).items()}
    kind, notes = _complete(weights)
    labels = _label_names(head["num_labels"], vocabulary, settings) if head else []
    if vocabulary.labels and not head:
        notes.append("the labels in the vocabulary file are left out: the weights hold no classifier")
    tokens, more = _in_our_order(weights, vocabulary.tokens)
    tokenizer = build_word_tokenizer(_with_fillers_numbered(tokens))
    body = {**sizes, "vocab_size": len(tokens)}
    sizes = {**body, **{k: v for k, v in head.items() if k != "num_labels"}}
    models = {".": _model(weights, sizes, tokenizer, labels, settings)}
    notes += more
    if head:
        models[ENCODER_FOLDER] = _model(_as_language_model(weights), body, tokenizer, [], settings)
        notes.append(
            f"the classifier's encoder is in {ENCODER_FOLDER}/ too, as a language model to resume from: its decoder "
            "shares the embedding's weight and its bias starts at 0, as the file has no decoder"
        )

    def write(folder: Path) -> None:
        for name, model in models.items():
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)

    record: dict[str, Any] = {
        "kind": kind,
        "sizes": sizes,
        "labels": labels,
        "notes": notes,
        "made_from": {file.name: digest_of_file(file) for file in (weights_file, vocab_file)},
    }
    save_stage(settings.output_dir, stage=STAGE, record=record, write=write)
    for note in notes:
        say(note)
    output = Path(settings.output_dir)
    return ImportSummary(kind, output, output / ENCODER_FOLDER if head else output, sizes, labels, notes)


def _existing(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise ArtifactError(f"there is no file {name!r}; give a .pth file as weights and a .pkl file as vocab")
    return path


def _float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _check_vocabulary(tokens: Sequence[str], rows: int, settings: ImportFastaiSettings) -> None:
    if len(tokens) != rows:
        raise ArtifactError(
            f"{settings.vocab} has {len(tokens)} tokens, but the embedding in {settings.weights} has {rows} rows; "
            "give the vocabulary that this model was saved with"
        )
    marked = sum(token.startswith(SUBWORD_MARK) for token in tokens)
    if marked > MOST_MARKED * len(tokens):
        raise ArtifactError(
            f"{settings.vocab} is a vocabulary of subwords ({marked} of {len(tokens)} tokens start with "
            f"{SUBWORD_MARK!r}); how text is split into them is in a SentencePiece model that these files do not "
            "hold. Word models can be imported"
        )


def _complete(weights: dict[str, Tensor]) -> tuple[Literal["language model", "encoder", "classifier"], list[str]]:
    """Give a language model the decoder parts that its file lacks; return what the file is and what was added."""
    if any(name.startswith("classifier.") for name in weights):
        return "classifier", []
    embedding = weights["model.embeddings.weight"]
    notes = []
    is_encoder = not any(name.startswith("lm_head.") for name in weights)
    if is_encoder:
        notes.append("the file holds an encoder and no decoder: the decoder shares the embedding's weight")
    elif "lm_head.weight" not in weights:
        notes.append("there is no decoder weight in the file: the decoder shares the embedding's")
    if "lm_head.bias" not in weights:
        notes.append("there is no decoder bias in the file: it starts at 0")
    weights.setdefault("lm_head.weight", embedding)
    weights.setdefault("lm_head.bias", torch.zeros(len(embedding)))
    return ("encoder" if is_encoder else "language model"), notes


def _as_language_model(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take a classifier's encoder and give it a decoder: the embedding's weight, and a bias of 0."""
    encoder = {name: tensor for name, tensor in weights.items() if name.startswith("model.")}
    embedding = encoder["model.embeddings.weight"]
    return {**encoder, "lm_head.weight": embedding, "lm_head.bias": torch.zeros(len(embedding))}


def _in_our_order(weights: dict[str, Tensor], tokens: list[str]) -> tuple[list[str], list[str]]:
    """Put the special tokens at ids 0-8, in place; return the tokens in their new order and what was done."""
    notes = []
    renamed: dict[str, str] = {}
    for token in tokens:
        name = OLD_NAMES.get(token)
        if name is not None and name not in tokens and name not in renamed.values():
            renamed[token] = name
    named = [renamed.get(token, token) for token in tokens]
    if renamed:
        notes.append(f"read as ours: {', '.join(f'{old} as {new}' for old, new in renamed.items())}")
    if tuple(named[: len(SPECIAL_TOKENS)]) == SPECIAL_TOKENS:
        return named, notes
    ordered = [*SPECIAL_TOKENS, *(token for token in named if token not in SPECIAL_TOKENS)]
    missing = [token for token in SPECIAL_TOKENS if token not in named]
    notes.append("the special tokens are at other ids in the file: every row was moved with its token")
    if missing:
        notes.append(
            f"not in the vocabulary, so they start at the mean row: {', '.join(missing)}; our text rules write such "
            "marks, so fine-tune the model on text before you rely on it"
        )
    moved: dict[str, Tensor] = {}
    for name in ("model.embeddings.weight", "lm_head.weight"):
        if name in weights:
            moved[name], bias, _ = remap_embeddings(weights[name], weights.get("lm_head.bias"), named, ordered)
            if bias is not None:
                moved["lm_head.bias"] = bias
    weights.update(moved)
    return ordered, notes


def _with_fillers_numbered(tokens: Sequence[str]) -> list[str]:
    """Number fastai's repeated padding token xxfake, as our tokenizers do, without making a token that exists."""
    taken = set(tokens)
    numbered = []
    for position, token in enumerate(tokens):
        if token == FASTAI_FILLER:
            names = (f"{FASTAI_FILLER} {number}" for number in itertools.count(position))
            token = next(name for name in names if name not in taken)
            taken.add(token)
        numbered.append(token)
    return numbered


def _label_names(count: int, vocabulary: Vocabulary, settings: ImportFastaiSettings) -> list[str]:
    labels = settings.labels or vocabulary.labels
    if labels is None:
        raise ArtifactError(
            f"{settings.weights} is a classifier of {count} labels and {settings.vocab} names none; give their names "
            "in the order of the outputs, --labels once for each (learn.dls.vocab[1] has them)"
        )
    named = shown_text(", ".join(labels))
    if len(labels) != count:
        raise ArtifactError(
            f"{len(labels)} labels are named ({named}), the classifier in {settings.weights} has {count}; give all in "
            "the order of the outputs, --labels once for each"
        )
    if len(set(labels)) != count:
        raise ArtifactError(f"a label is named twice among {named}; give each output a name of its own")
    return list(labels)


def _model(
    weights: dict[str, Tensor],
    sizes: dict[str, int],
    tokenizer: UlmfitTokenizer,
    labels: list[str],
    settings: ImportFastaiSettings,
) -> AwdLstmForCausalLM | AwdLstmForSequenceClassification:
    register()
    common: dict[str, Any] = {**sizes, "direction": settings.direction, "vocab_hash": vocab_hash(tokenizer)}
    model: AwdLstmForCausalLM | AwdLstmForSequenceClassification
    if labels:
        common["problem_type"] = "multi_label_classification" if settings.multi_label else "single_label_classification"
        common["id2label"] = dict(enumerate(labels))
        common["label2id"] = {name: index for index, name in enumerate(labels)}
        model = AwdLstmForSequenceClassification(AwdLstmConfig(**common))
    else:
        tied = torch.equal(weights["lm_head.weight"], weights["model.embeddings.weight"])
        model = AwdLstmForCausalLM(AwdLstmConfig(**common, tie_word_embeddings=tied))
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise ArtifactError(f"the weights in {settings.weights} do not make a whole AWD-LSTM: {detail}") from error
    return model.eval()
