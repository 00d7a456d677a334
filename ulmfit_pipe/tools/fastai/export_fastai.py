"""A model of ours becomes files that fastai 2.8 loads: weights and encoder (`.pth`), vocabulary (`.pkl`).

Nothing but numbers and strings is in them. For a model of subwords the tokenizer stays behind: fastai gets the rows
and their tokens, and text has to be tokenized by our tokenizer.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from ulmfit_pipe.data.text.tokenization import tokens_in_order
from ulmfit_pipe.models.awd_lstm.vocab_transfer import FASTAI_FILLER
from ulmfit_pipe.settings.model_files import ExportFastaiSettings
from ulmfit_pipe.stages.artifacts import (
    ArtifactError,
    load_config,
    load_model,
    load_tokenizer,
    refuse_foreign_folder,
    save_stage,
)
from ulmfit_pipe.stages.classifier_labels import labels_of
from ulmfit_pipe.tools.fastai.safe_pickles import Vocabulary, write_vocabulary, write_weights
from ulmfit_pipe.tools.fastai.weights import to_fastai_state_dict

STAGE = "export_fastai"
WEIGHTS, ENCODER, VOCABULARY = "model.pth", "encoder.pth", "vocab.pkl"
FASTAI_HEAD = 50  # width of the inner layer of fastai's head unless lin_ftrs is given


@dataclass(frozen=True)
class ExportSummary:
    """What an export wrote.

    Attributes:
        kind: What model.pth is.
        output_dir: The folder.
        loading: Python lines that load it in fastai, where `dls` are the user's DataLoaders with this vocabulary.
        notes: What to know of it, a sentence each.
    """

    kind: Literal["language model", "classifier"]
    output_dir: Path
    loading: list[str]
    notes: list[str]


def export_fastai(settings: ExportFastaiSettings) -> ExportSummary:
    """Write a model's weights and vocabulary as fastai 2.8 saves them.

    Args:
        settings: The model and the folder.

    Returns:
        What was written and how fastai loads it.

    Raises:
        ArtifactError: The model is not an AWD-LSTM, or its tokenizer is another's.
    """
    refuse_foreign_folder(Path(settings.output_dir), STAGE)
    config = load_config(settings.model)
    if getattr(config, "model_type", None) != "awd_lstm":
        raise ArtifactError(
            f"{settings.model} is a {getattr(config, 'model_type', 'model of unknown type')!r} model; fastai's layout "
            "is one of 'awd_lstm' models"
        )
    is_classifier = "AwdLstmForSequenceClassification" in (config.architectures or [])
    tokenizer = load_tokenizer(settings.model, config=config)
    model = load_model(settings.model, AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM)
    ours: dict[str, Tensor] = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    encoder = {name: tensor for name, tensor in ours.items() if name.startswith("model.")}
    labels = labels_of(settings.model, config)[0] if is_classifier else None
    tokens = [re.sub(rf"{FASTAI_FILLER} \d+", FASTAI_FILLER, token) for token in tokens_in_order(tokenizer)]
    linear_index = (1, 2) if settings.drop_mult_zero else (2, 2)

    def write(folder: Path) -> None:
        write_weights(folder / WEIGHTS, to_fastai_state_dict(ours, linear_index=linear_index))
        write_weights(folder / ENCODER, to_fastai_state_dict(encoder))
        write_vocabulary(folder / VOCABULARY, Vocabulary(tokens, labels))

    kind: Literal["language model", "classifier"] = "classifier" if is_classifier else "language model"
    notes = _notes(config, tokenizer.kind, is_classifier)
    save_stage(settings.output_dir, stage=STAGE, record={"kind": kind, "notes": notes}, write=write)
    return ExportSummary(kind, Path(settings.output_dir), _loading(config, settings, is_classifier), notes)


def _notes(config: Any, kind: str, is_classifier: bool) -> list[str]:
    notes = []
    if kind != "word":
        notes.append("the vocabulary is of subwords, whose tokenizer is not in fastai's files: tokenize text with ours")
    if config.direction == "backward":
        notes.append("the model reads text backward: give fastai's loaders backwards=True")
    if not is_classifier and not config.tie_word_embeddings:
        notes.append(
            "the decoder has weights of its own: load it with learn.load, for pretrained_fnames would put the "
            "embedding's in their place"
        )
    return notes


def _loading(config: Any, settings: ExportFastaiSettings, is_classifier: bool) -> list[str]:
    sizes = f"emb_sz={config.embedding_size}, n_hid={config.hidden_size}, n_layers={config.num_hidden_layers}"
    kind, builder = ("clas", "text_classifier") if is_classifier else ("lm", "language_model")
    given = ["pretrained=False"]
    if not is_classifier and not config.tie_word_embeddings:
        sizes += ", tie_weights=False"
    if settings.drop_mult_zero:
        given.append("drop_mult=0.")
    if is_classifier and config.head_hidden_size != FASTAI_HEAD:
        given.append(f"lin_ftrs=[{config.head_hidden_size}]")
    return [
        f"config = {{**awd_lstm_{kind}_config, **dict({sizes})}}",
        f"learn = {builder}_learner(dls, AWD_LSTM, config=config, {', '.join(given)}, "
        f'path=".", model_dir={json.dumps(settings.output_dir, ensure_ascii=False)})',
        f'learn.load("{Path(WEIGHTS).stem}")',
    ]
