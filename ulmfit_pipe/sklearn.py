"""The method as an estimator of scikit-learn: texts and labels in, labels and probabilities out.

`UlmfitClassifier` goes wherever an estimator goes: `cross_val_score`, `GridSearchCV`, `Pipeline`,
`CalibratedClassifierCV`. It is silent, its temporary folders are removed with it, and a pickle of it holds the files of
the saved classifier (safetensors and JSON), no module.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted

from ulmfit_pipe.console import print_line
from ulmfit_pipe.data.labels import clean_label
from ulmfit_pipe.data.tables.memory_tables import listed, open_memory_columns, open_memory_table
from ulmfit_pipe.data.tables.row_sources import RowSource
from ulmfit_pipe.data.text.pretrained_tokenizers import encode_documents
from ulmfit_pipe.settings.choices import DEFAULT_MODEL
from ulmfit_pipe.settings.text_runs import PipelineSettings
from ulmfit_pipe.stages.context import context_of
from ulmfit_pipe.stages.python_input import check_folder, check_names, check_tables, check_texts, recorded_tables
from ulmfit_pipe.storage.temporary_files import folder_of_owner, remove
from ulmfit_pipe.text.pipeline import run_pipeline
from ulmfit_pipe.text.predict.predictor import Predictor

TEXT = "text"  # name of the column of texts; labels of several are named by their number
LARGEST_SEED = 2**31 - 1  # of those that a generator gives
GROUPS = ("classifier", "language_model", "settings")
AS_THEY_ARE = "preset fine_tune_language_model validation_fraction max_seconds trust_remote_code".split()
NOT_SETTINGS = {  # of `PipelineSettings`: how they are given
    **{
        name: f"UlmfitClassifier({name}=...)"
        for name in ("model", "classifier", "language_model", "output_dir", *AS_THEY_ARE)
    },
    "seed": "UlmfitClassifier(random_state=...)",
    "progress": "UlmfitClassifier(verbose=1)",
    **dict.fromkeys(("train_file", "text_column", "label_column", "multi_label", "label_separator"), "fit(X, y)"),
    **dict.fromkeys(  # they would leave classes or rows out that X and y have
        ("min_rows_per_class", "max_rows", "label_names", "label_threshold", "empty_text"),
        "fit(X, y) with the rows and the classes that count",
    ),
    **dict.fromkeys(("test_file", "folds", "fold", "seeds"), "cross_val_score(estimator, X, y)"),
    "validation_file": "UlmfitClassifier(validation_fraction=...)",
    "unlabelled_file": "fit(X, y, unlabelled=texts)",
}


class UlmfitClassifier(ClassifierMixin, BaseEstimator):
    """A text classifier that fine-tunes a pretrained language model or encoder, as an estimator of scikit-learn.

    Args:
        model: A built-in name, a folder or a hub id of a pretrained model; None trains an AWD-LSTM from scratch.
        preset: Recipe.
        classifier: Settings of the classifier stage (`ClassifierSettings`) as a dict, such as ``{"lr": 1e-3}``; in a
            search ``classifier__lr`` is one of them.
        language_model: Settings of the language-model stage (`LanguageModelSettings`) as a dict; the same holds.
        fine_tune_language_model: Fine-tune the language model first; None does so where it pays.
        validation_fraction: Part of the rows that chooses the best epoch; None holds out a tenth of 500 rows or more.
        max_seconds: Time limit of one fit.
        random_state: Seed, or a generator that gives one; None is seed 0, so that equal fits give equal results.
        output_dir: Folder for what the run writes, for one fit; None takes a temporary one, as cross-validation needs.
        trust_remote_code: Run Python code that comes with the model; off, such a model is refused.
        settings: Any other fields of `PipelineSettings`, as a dict.
        verbose: 1 prints what a run prints; 0 nothing.

    Attributes:
        classes_: The classes; for several labels per text the numbers of the columns.
        folder_: The classifier's folder, which `TextPipeline.load` takes.
        metrics_: What the run reports, scores on its validation part among it.
    """

    def __init__(
        self,
        model: Any = DEFAULT_MODEL,
        *,
        preset: str = "auto",
        classifier: Any = None,
        language_model: Any = None,
        fine_tune_language_model: bool | None = None,
        validation_fraction: float | None = None,
        max_seconds: float | None = None,
        random_state: Any = None,
        output_dir: Any = None,
        trust_remote_code: bool = False,
        settings: Mapping[str, Any] | None = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.preset = preset
        self.classifier = classifier
        self.language_model = language_model
        self.fine_tune_language_model = fine_tune_language_model
        self.validation_fraction = validation_fraction
        self.max_seconds = max_seconds
        self.random_state = random_state
        self.output_dir = output_dir
        self.trust_remote_code = trust_remote_code
        self.settings = settings
        self.verbose = verbose

    def set_params(self, **params: Any) -> "UlmfitClassifier":
        """Set parameters; ``classifier__lr`` sets one setting of the group ``classifier``, for a search."""
        own = {}
        for name, value in params.items():
            group, _, field = name.partition("__")
            if not field or group not in GROUPS:
                own[name] = value
                continue
            given = own.get(group, getattr(self, group))
            is_class = dataclasses.is_dataclass(given) and not isinstance(given, type)
            own[group] = dataclasses.replace(given, **{field: value}) if is_class else {**(given or {}), field: value}
        return super().set_params(**own)

    def fit(self, X: Any, y: Any, *, unlabelled: Any = None) -> "UlmfitClassifier":
        """Train a classifier.

        Args:
            X: Texts: a list, Series or array, or a table of one column.
            y: A class per text, or for several labels per text a matrix of 0 and 1, (texts, labels).
            unlabelled: Further texts for the language model. Those that also are in the validation part are left out;
                what cross-validation holds out is not known here, so leave it out yourself.

        Returns:
            The estimator.

        Raises:
            TypeError: X has something that is not a text.
            ValueError: X or y cannot be used, or a setting.
        """
        texts = _texts(X)
        if y is None:
            raise ValueError("UlmfitClassifier requires y to be passed, but the target y is None")
        check_consistent_length(texts, y)
        classes, names, columns = _label_columns(y)
        rows = open_memory_columns({TEXT: texts, **columns}, "X and y", kind="X and y")
        tables: dict[str, list[str] | RowSource] = {"train_file": rows}
        if unlabelled is not None:
            further = check_tables(unlabelled, "unlabelled", text_columns=[TEXT], label_columns=())
            tables["unlabelled_file"] = further
        temporary = folder_of_owner(self) if self.output_dir is None else None
        folder = check_folder(self.output_dir, "output_dir") if temporary is None else temporary[0]
        try:
            given = self._run_settings(folder, tables, list(columns))
            context = context_of(given, say=print_line if self.verbose else _quiet)
            self.metrics_ = run_pipeline(given, context=context, in_memory=tables, report=temporary is None)
            predictor = Predictor.load(self.metrics_["classifier"], trust_remote_code=self.trust_remote_code)
        except BaseException:
            if temporary is not None:
                temporary[1]()
            raise
        self._keep(predictor, Path(self.metrics_["classifier"]), temporary)
        self.classes_, self._names = classes, names
        if getattr(X, "ndim", 1) == 2:
            self.n_features_in_ = 1
        return self

    def _run_settings(
        self, folder: str, tables: Mapping[str, list[str] | RowSource], labels: list[str]
    ) -> PipelineSettings:
        further = dict(self.settings or {})
        check_names(further, PipelineSettings, elsewhere=NOT_SETTINGS, meant=lambda _name: None)
        stages = {"classifier": self.classifier, "language_model": self.language_model}
        given: dict[str, Any] = {
            "output_dir": folder,
            "model": None if self.model is None else check_folder(self.model, "UlmfitClassifier"),
            "seed": _seed(self.random_state),
            "text_column": [TEXT],
            "label_column": labels,
            "progress": None if self.verbose else False,
            "baseline": "none",
            **{name: getattr(self, name) for name in AS_THEY_ARE},
            **{name: stage for name, stage in stages.items() if stage is not None},
            **({"checkpoint_seconds": None} if self.output_dir is None else {}),
            **recorded_tables(tables),
            **further,
        }
        return PipelineSettings(**given)

    def _keep(self, predictor: Predictor, folder: Path, temporary: Any) -> None:
        """Keep a trained classifier, and of a temporary folder nothing else; what an earlier fit left goes."""
        before = getattr(self, "_temporary", None)
        self._predictor, self.folder_, self._temporary = predictor, str(folder), temporary
        if temporary is not None:
            for each in folder.parent.iterdir():
                if each != folder:
                    remove(each)
        if before is not None:
            before[1]()

    def predict(self, X: Any) -> np.ndarray:
        """Return the class of each text; for several labels per text a matrix of 0 and 1, (texts, labels)."""
        probabilities = self.predict_proba(X)
        predictor = self._loaded()
        if not predictor.multi_label:
            return self.classes_[probabilities.argmax(axis=1)]
        thresholds = np.array(predictor.thresholds)[self._order(predictor)]
        return (probabilities >= thresholds).astype(int)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities, float64 (texts, classes) in the order of ``classes_``."""
        check_is_fitted(self)
        predictor, texts = self._loaded(), _texts(X)
        found = predictor.probabilities(encode_documents(predictor.tokenizer, texts))
        return found[:, self._order(predictor)]

    def _loaded(self) -> Predictor:
        if getattr(self, "_predictor", None) is None:  # it came out of a pickle
            self._predictor = Predictor.load(self.folder_, trust_remote_code=self.trust_remote_code)
        return self._predictor

    def _order(self, predictor: Predictor) -> list[int]:
        return [predictor.label_names.index(name) for name in self._names]

    def __sklearn_is_fitted__(self) -> bool:
        """Whether `fit` has trained a classifier."""
        return hasattr(self, "classes_")

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn asks of an estimator: it takes texts, and several labels per text."""
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array = tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.classifier_tags.multi_label = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return the parameters and, where it is fitted, the bytes of the classifier's files.

        Raises:
            FileNotFoundError: The folder is gone.
        """
        state = {name: value for name, value in vars(self).items() if name not in ("_predictor", "_temporary")}
        if "folder_" in state:
            folder = Path(state.pop("folder_"))
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            if not files:
                raise FileNotFoundError(f"the classifier's folder {folder} is gone, so it cannot be pickled; fit again")
            state["_files"] = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the parameters, and write the classifier's files into a temporary folder of its own."""
        files = state.get("_files")
        super().__setstate__({name: value for name, value in state.items() if name != "_files"})
        if files is None:
            return
        self._temporary = folder_of_owner(self)
        folder = Path(self._temporary[0]) / "classifier"
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        self.folder_ = str(folder)


def _quiet(_line: str) -> None:
    """Print nothing."""


def _seed(random_state: Any) -> int:
    if random_state is None:
        return 0
    if isinstance(random_state, int | np.integer):
        return int(random_state)
    return int(check_random_state(random_state).randint(LARGEST_SEED))


def _texts(X: Any) -> list[str]:
    """Return the texts of X.

    Raises:
        TypeError: Something in it is not a text.
        ValueError: It is empty, has several columns, or a text is empty.
    """
    rows = open_memory_table(X, "X")
    if rows is not None:
        _refuse_several_columns(len(rows.columns))
        values = [text for (text,) in rows.read(rows.columns)]
    elif getattr(X, "ndim", 1) == 2:
        _refuse_several_columns(X.shape[1])
        values = list(np.asarray(X)[:, 0])
    elif isinstance(X, str | bytes | Mapping) or getattr(X, "ndim", 1) != 1 or not hasattr(X, "__iter__"):
        raise ValueError(f"X must be a list, Series or array of texts, got {type(X).__name__}")
    else:
        values = [row[0] if isinstance(row, list | tuple) and len(row) == 1 else row for row in listed(X)]
    if not values:
        raise ValueError("X has 0 sample(s) while a minimum of 1 is required: give texts")
    return check_texts(values)


def _refuse_several_columns(count: int) -> None:
    if count != 1:
        raise ValueError(f"X has {count} columns; give the one column of texts, such as X['text']")


def _label_columns(y: Any) -> tuple[np.ndarray, list[str], dict[str, Any]]:
    """Return the classes, their names in the saved classifier, and the columns of labels by name.

    Raises:
        ValueError: y has missing values, no classes, or classes that nobody can tell apart.
    """
    _refuse_missing(y)
    if type_of_target(y, input_name="y") == "multilabel-indicator":
        matrix = np.asarray(y.toarray() if hasattr(y, "toarray") else y).astype(int)
        names = [str(number) for number in range(matrix.shape[1])]
        return np.arange(matrix.shape[1]), names, {name: matrix[:, at] for at, name in enumerate(names)}
    column = column_or_1d(y, warn=True)
    check_classification_targets(column)
    classes, numbers = np.unique(column, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"y holds one class, {classes[0]!r}; a classifier needs at least two classes")
    plain = classes.tolist() if classes.dtype.kind in "biu" else [str(each) for each in classes]
    names = [clean_label(str(each)) for each in plain]
    for name in names:
        if names.count(name) > 1:
            alike = [each for each in plain if clean_label(str(each)) == name]
            raise ValueError(f"the classes {alike} of y differ in invisible characters alone; write them alike")
    return classes, names, {"label": [plain[number] for number in numbers]}


def _refuse_missing(y: Any) -> None:
    """Raise where a class is None, NaN or pandas' NA, which scikit-learn calls an unknown type of label."""
    if hasattr(y, "toarray"):
        return
    for position, value in enumerate(np.asarray(y, dtype=object).ravel()):
        is_nan = isinstance(value, float) and value != value
        if value is None or is_nan or type(value).__name__ in ("NAType", "NaTType"):
            raise ValueError(f"Input y contains NaN: there is no class at position {position}; leave such rows out")
