"""Prediction: texts in, labels and scores out, in the order given, for texts of any length.

Any text classifier can predict: an AWD-LSTM, a transformer that was trained here (long texts are read as they were in
training), or one of another program (long texts are truncated at its last position).
A folder may hold a forward and, below ``backward/``, a backward classifier; their probabilities are averaged.
Files are read and written in chunks, so that their size does not matter.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from ulmfit_pipe.console import reported
from ulmfit_pipe.data.labels import can_be, clean_label, list_apart, typed_label
from ulmfit_pipe.data.streams.backbone_batches import BackboneBatches
from ulmfit_pipe.data.streams.classifier_batches import ClassifierBatches
from ulmfit_pipe.data.tables.column_names import shown_names
from ulmfit_pipe.data.tables.tables import check_table
from ulmfit_pipe.data.text.pretrained_tokenizers import encode_documents
from ulmfit_pipe.data.text.tokenization import tokenize_dataset
from ulmfit_pipe.settings.checks import home_path
from ulmfit_pipe.stages.artifacts import ArtifactError, ResolvedModel, find_model, load_model, load_text_tokenizer
from ulmfit_pipe.stages.classifier_labels import check_thresholds, is_text_classifier, labels_of
from ulmfit_pipe.stages.config_notes import label_type_in, notes_of, raw_thresholds, thresholds_of
from ulmfit_pipe.stages.model_folder import remote_code
from ulmfit_pipe.stages.python_input import check_texts
from ulmfit_pipe.text.families.family import family_of
from ulmfit_pipe.text.truncation import count_cut, describe_cut
from ulmfit_pipe.training.distributed.launch import new_accelerator
from ulmfit_pipe.training.distributed.processes import reduce_sum, to_device
from ulmfit_pipe.training.metrics import ClassificationMetric, MultiLabelMetric, gather_rows

BATCH_TOKENS = 16_384  # tokens of a batch, padding included: memory, not result
BATCH_ROWS = 256  # of short texts, more gain nothing
BACKWARD = "backward"  # folder of the second model of an ensemble
DEFAULT_THRESHOLD = 0.5
MOST_SCORED = 20  # labels whose scores are all kept when a table is scored; of more the answer's alone
LANGUAGE_MODELS = ("CausalLM", "MaskedLM", "LMHead")  # parts of the names that their classes have
SMALLEST = torch.finfo(torch.float64).tiny  # keeps the logarithm of a probability finite


@dataclass(frozen=True)
class ScoredRows:
    """What a classifier answers to the rows of a table, in the table's order.

    Attributes:
        answers: Class of each row, int64 (rows,), or for multi-label the labels given, bool (rows, num_labels).
        scores: Probability of the answer, float64 (rows,); for multi-label as in `Predictor.predict`.
        probabilities: Of every label, float64 (rows, num_labels); None of more than 20 labels.
    """

    answers: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray | None


class Predictor:
    """One classifier, or several that are averaged.

    Args:
        models: Classifiers with the same labels and vocabulary.
        tokenizer: Their tokenizer.
        accelerator: The device, and this process's share when a table is scored.

    Attributes:
        reading: How long documents are read.
        readers: The models as they take batches: a model, or what averages its windows.
        label_names: The labels as text, in the order of their scores.
        labels: The labels in the type that training had them in: integers, bools or text.
        label_type: "int", "bool", or None for text.
    """

    def __init__(
        self, models: Sequence[Any], tokenizer: PreTrainedTokenizerBase, *, accelerator: Accelerator | None = None
    ) -> None:
        self.models = list(models)
        self.tokenizer = tokenizer
        self.reading = family_of(self.models[0].config.model_type).saved_reading(self.models[0], tokenizer)
        self.readers = [self.reading.wrap(model) for model in self.models]
        self._cut = (0, 0)  # texts that were truncated, and texts that were read
        self._accelerator = accelerator
        self.label_names, self.multi_label = labels_of("the model", self.models[0].config)
        self.label_type = label_type_in(self.models[0].config)
        if not can_be(self.label_names, self.label_type):
            self.label_type = None  # somebody renamed the labels of the folder
        self.labels = [typed_label(name, self.label_type) for name in self.label_names]

    @classmethod
    def load(
        cls, folder: Path | str, *, accelerator: Accelerator | None = None, trust_remote_code: bool = False
    ) -> "Predictor":
        """Load a classifier folder, and the backward one inside it if there is one.

        Args:
            folder: A classifier's folder, a built-in name or a hub id.
            accelerator: Device and processes.
            trust_remote_code: Run Python code that comes with the model; off, such a model is refused.

        Raises:
            ArtifactError: The folder is not a classifier, was cut short, or holds another model's tokenizer.
        """
        folders = [_classifier_folder(folder)]
        if (Path(folders[0]) / BACKWARD).is_dir():
            folders.append(Path(folders[0]) / BACKWARD)
        with remote_code(trust_remote_code):
            found = [find_model(path) for path in folders]
            for model in found:
                _check_config(model.name, model.loaded, first=found[0].loaded)
            config = found[0].config  # gets the tokenizer's padding id
            tokenizer = load_text_tokenizer(found[0], config)
            configs = [config, *(model.config for model in found[1:])]
            models = [_load_whole_classifier(model, config) for model, config in zip(found, configs, strict=True)]
        return cls(models, tokenizer, accelerator=accelerator)

    @property
    def accelerator(self) -> Accelerator:
        """Device and processes."""
        if self._accelerator is None:
            self._accelerator = new_accelerator()
        return self._accelerator

    @property
    def thresholds(self) -> list[float]:
        """Probability from which a label counts as given, for multi-label; the first model's."""
        return thresholds_of(self.models[0].config) or [DEFAULT_THRESHOLD] * len(self.label_names)

    def named_thresholds(self) -> dict[str, dict[str, float]]:
        """Return what ``metrics.json`` holds of `thresholds`: nothing where a text has one label."""
        return {"thresholds": dict(zip(self.label_names, self.thresholds, strict=True))} if self.multi_label else {}

    def tokenize(self, table: Dataset) -> Dataset:
        """Return a table with ``input_ids`` in place of ``text``.

        Raises:
            TypeError: It is not a table of `load_table`.
        """
        check_table(table, what="the table of Predictor.tokenize")
        columns = [name for name in ("text", "label") if name in table.column_names]
        return tokenize_dataset(table.select_columns(columns), self.tokenizer)

    def predict(self, texts: Sequence[str], *, abstain_below: float | None = None) -> list[dict[str, Any]]:
        """Return label, score and all scores of each text, in order.

        Args:
            texts: Texts of any length; none may be empty. A column of a table is allowed, a table is not.
            abstain_below: With one label a text: ``label`` is None where ``score`` is lower; the scores are kept.

        Returns:
            ``{"label", "score", "scores"}`` per text; for multi-label ``label`` is a list of labels and ``score`` the
            lowest probability among them (or the highest of all where no label is given). Labels, also as keys of
            ``scores``, have the type that training had: 1 for the integer 1, True for true.

        Raises:
            TypeError: A table, a mapping, a bare string, or something in the list that is not a string.
            ValueError: A text is empty, the model's output for it is NaN, or `abstain_below` has no meaning here.
        """
        self.check_abstention(abstain_below)
        checked = check_texts(texts)
        if not checked:
            return []
        ids = encode_documents(self.tokenizer, checked)
        return without_unsure([self._row(row) for row in self.probabilities(ids)], abstain_below)

    def check_abstention(self, abstain_below: float | None) -> None:
        """Raise unless this is None, or a score that the label of a text can be asked to have.

        Raises:
            ValueError: It is not in 0..1, or a text may have several labels.
        """
        if abstain_below is None:
            return
        if isinstance(abstain_below, bool) or not 0 <= abstain_below <= 1:
            raise ValueError(f"abstain_below must lie in 0..1, got {abstain_below!r}; 0.8 leaves out labels below .8")
        if self.multi_label:
            raise ValueError(
                f"abstain_below {abstain_below} is for one label a text, and this classifier gives several: a label "
                "below its threshold is left out already, see thresholds in metrics.json; leave abstain_below out"
            )

    def _row(self, probabilities: np.ndarray) -> dict[str, Any]:
        scores = {label: float(value) for label, value in zip(self.labels, probabilities, strict=True)}
        if not self.multi_label:
            best = int(probabilities.argmax())
            return {"label": self.labels[best], "score": float(probabilities[best]), "scores": scores}
        given = [
            label
            for label, value, threshold in zip(self.labels, probabilities, self.thresholds, strict=True)
            if value >= threshold
        ]
        score = min((scores[label] for label in given), default=float(probabilities.max()))
        return {"label": given, "score": score, "scores": scores}

    def probabilities(self, encoded: Dataset | Sequence[Sequence[int]]) -> np.ndarray:
        """Return the averaged probabilities, float64 (rows, num_labels), in the rows' order.

        Raises:
            ValueError: There are no rows, a row has no tokens, or the model gives no number for one.
        """
        if isinstance(encoded, Dataset):
            encoded = encoded.select_columns(["input_ids"])
        found = np.zeros((len(encoded), len(self.label_names)))
        for batch in self.batches(encoded):
            found[batch["row"].numpy()] = self._batch_probabilities(batch).numpy()
        return found

    def batches(
        self, encoded: Dataset | Sequence[Sequence[int]], *, rank: int = 0, world_size: int = 1
    ) -> ClassifierBatches | BackboneBatches:
        """Return this process's batches of documents of ids, as `readers` take them; those are put on the device."""
        for reader in self.readers:
            reader.to(self.accelerator.device).eval()
        batches = self.reading.batches(
            encoded,
            tokenizer=self.tokenizer,
            config=self.models[0].config,
            batch_size=max(BATCH_ROWS, world_size),
            max_tokens=BATCH_TOKENS,
            shuffle=False,
            num_labels=len(self.label_names),
            rank=rank,
            world_size=world_size,
        )
        self._cut = (self._cut[0] + count_cut(batches, self.reading), self._cut[1] + len(encoded))
        return batches

    @property
    def cut_texts(self) -> tuple[int, int]:
        """Return how many of the texts so far were truncated, and how many there were."""
        return self._cut

    def describe_cut(self) -> str:
        """Return a line on how many of the texts so far were truncated, or an empty one."""
        return describe_cut(*self._cut, self.reading, what="texts to predict")

    @torch.no_grad()
    def _batch_probabilities(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the models' mean probabilities of a batch, float64 (batch, num_labels), on the CPU."""
        on_device = to_device(batch, self.accelerator)
        inputs = {name: value for name, value in on_device.items() if name not in ("labels", "row")}
        total = torch.zeros(len(batch["row"]), len(self.label_names), dtype=torch.float64)
        for reader in self.readers:
            with self.accelerator.autocast():
                logits = reader(**inputs).logits
            scores = logits.float().cpu().double()  # (batch, num_labels); not every device has float64
            total += scores.sigmoid() if self.multi_label else scores.softmax(dim=-1)
        broken = (~total.isfinite()).any(dim=1)
        if broken.any():
            raise ValueError(
                f"the model gives no number for row {int(batch['row'][broken].min())} (counted from 0): its weights "
                "hold NaN or infinity, or mixed_precision is too coarse for it; predict with mixed_precision 'no', "
                "or take another save"
            )
        return total / len(self.models)

    def score(self, table: Dataset) -> dict[str, float]:
        """Return accuracy, macro F1, loss and n (or the multi-label metrics) on a labelled table.

        Every process scores its share; the sums are added. The loss is that of the averaged probabilities.

        Raises:
            TypeError: It is not a table of `load_table`.
            ValueError: The table's label names are not the classifier's, in its order.
        """
        return self.score_rows(table)[0]

    def score_rows(self, table: Dataset) -> tuple[dict[str, float], ScoredRows]:
        """Return what `score` returns, and the answer to each row, in the table's order, on every process.

        Raises:
            TypeError: It is not a table of `load_table`.
            ValueError: The table's label names are not the classifier's, in its order.
        """
        check_table(table, what="the table to score")
        _check_label_names(table, self.label_names)
        accelerator = self.accelerator
        num_labels = len(self.label_names)
        metric = (
            MultiLabelMetric(num_labels, thresholds=self.thresholds)
            if self.multi_label
            else ClassificationMetric(num_labels)
        )
        batches = self.batches(
            self.tokenize(table), rank=accelerator.process_index, world_size=accelerator.num_processes
        )
        thresholds = torch.tensor(self.thresholds, dtype=torch.float64)
        found: list[torch.Tensor] = []
        for batch in reported(batches, "scoring", total=len(batches), unit="batches"):
            probabilities, labels = self._batch_probabilities(batch), batch["labels"]
            if self.multi_label:
                given = (probabilities >= thresholds).long()  # (batch, num_labels)
                lowest = probabilities.where(given > 0, torch.inf).amin(dim=1)
                score = lowest.where(given.any(dim=1), probabilities.amax(dim=1))
                logits = probabilities.logit(eps=torch.finfo(torch.float64).eps)
                loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.double(), reduction="none")
                loss_sum = loss.mean(dim=1).sum()
            else:
                given = probabilities.argmax(dim=1, keepdim=True)  # (batch, 1)
                score = probabilities.amax(dim=1)
                logits = probabilities.clamp(min=SMALLEST).log()
                loss_sum = torch.nn.functional.nll_loss(logits, labels, reduction="sum")
            metric.update(logits, labels, loss_sum, float(len(labels)))
            kept = probabilities[:, : num_labels if num_labels <= MOST_SCORED else 0]
            found.append(torch.cat([batch["row"][:, None], score[:, None], kept, given], dim=1))
        rows = gather_rows(torch.cat(found)).cpu().numpy()  # float64 holds row numbers and classes exactly
        ordered = rows[rows[:, 0].argsort()]
        width = kept.shape[1]
        answers = ordered[:, 2 + width :].astype(np.int64)
        scored = ScoredRows(
            answers=answers > 0 if self.multi_label else answers[:, 0],
            scores=ordered[:, 1],
            probabilities=ordered[:, 2 : 2 + width] if width else None,
        )
        return metric.compute(reduce_sum(accelerator)), scored


def without_unsure(rows: list[dict[str, Any]], abstain_below: float | None) -> list[dict[str, Any]]:
    """Return rows of `Predictor.predict` with the label None where the score is lower than this, if it is not None."""
    if abstain_below is None:
        return rows
    return [row if row["score"] >= abstain_below else {**row, "label": None} for row in rows]


def _classifier_folder(folder: Path | str) -> Path | str:
    """Return the folder, or raise with the classifier that is below it if it is a whole run's."""
    folder = home_path(folder)
    below = Path(folder) / "classifier"
    if (below / "config.json").is_file() and not (Path(folder) / "config.json").is_file():
        raise ArtifactError(f"{folder} is the folder of a whole run; did you mean its classifier, {below}?")
    return folder


def _check_config(path: Path | str, config: Any, *, first: Any) -> None:
    """Refuse what is not a classifier, or does not agree with the first model of an ensemble."""
    if not is_text_classifier(config):
        if any(kind in name for name in config.architectures or [] for kind in LANGUAGE_MODELS):
            raise ArtifactError(
                f"{path} is a language model, which knows no labels: train a classifier from it, for example with "
                f"ulmfit run --model {shlex.quote(str(path))}, and give the folder of its classifier stage"
            )
        raise ArtifactError(
            f"{path} is not a classifier but {config.architectures}; give the folder of a classifier stage"
        )
    (names, multi_label), others = labels_of(path, config), labels_of(path, first)
    check_thresholds(path, raw_thresholds(config), labels=len(names))
    if (names, multi_label) != others:
        own, other = list_apart(names, others[0])
        raise ArtifactError(
            f"{path} has the labels {own}, the classifier it is averaged with has {other}: both must be trained "
            f"on the same table; remove {path} or train it again"
        )
    if _vocabulary_of(config) != _vocabulary_of(first):
        raise ArtifactError(
            f"{path} was trained with another vocabulary than the classifier it is averaged with: both need the same "
            f"tokenizer; remove {path} or train it again"
        )


def _vocabulary_of(config: Any) -> tuple[str | None, str | None]:
    """Return the digests of the vocabulary that an AWD-LSTM's and a transformer's configuration hold."""
    return getattr(config, "vocab_hash", None), notes_of(config).get("vocabulary")


def _load_whole_classifier(path: ResolvedModel, config: Any) -> Any:
    """Load a classifier; raise if weights are missing from the file, which transformers would fill with random ones."""
    loaded: Any = load_model(path, AutoModelForSequenceClassification, config=config, output_loading_info=True)
    model, found = loaded
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        raise ArtifactError(
            f"the weights of {path} lack {missing[0]} ({len(missing)} in all), so it is not a trained classifier; "
            "take another save, or remove the folder and run the command that wrote it again"
        )
    _refuse_integer_weights(path, model)
    return model


def _refuse_integer_weights(path: ResolvedModel, model: Any) -> None:
    """Raise if a folder's file holds integers where the model has fractions: rounded weights score every text alike."""
    if getattr(model.config, "quantization_config", None) is not None:
        return
    names = {name for name, _ in model.named_parameters()}
    for file in sorted(Path(path.location).glob("*.safetensors")):
        with safe_open(file, framework="pt") as saved:
            for name in names.intersection(saved.keys()):
                kind = saved.get_slice(name).get_dtype()
                if not kind.startswith(("F", "BF")):
                    raise ArtifactError(f"{file} holds {name} as {kind}, not as floating point; take another save")


def _check_label_names(table: Dataset, known: list[str]) -> None:
    feature = table.features.get("label")
    if feature is None:
        raise ValueError(f"the table has no column 'label' to score against; it has {shown_names(table.column_names)}")
    names = getattr(getattr(feature, "feature", feature), "names", None)
    if names is not None and list(map(clean_label, names)) != list(map(clean_label, known)):
        given, own = list_apart(names, known)
        raise ValueError(
            f"the table's labels are {given}, the classifier's are {own}: their numbers would mean different "
            "labels; load the table with label_names of the classifier"
        )
