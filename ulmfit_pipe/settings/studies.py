"""Settings of the experiments about the method."""

from dataclasses import dataclass, field
from typing import Any, Literal

from ulmfit_pipe.settings.checks import check_above_zero, check_choices, check_whole, with_home_paths
from ulmfit_pipe.settings.choices import ALL_ROWS, Precision, PresetName
from ulmfit_pipe.settings.images import ImageHeadSettings, SmallResNetSettings
from ulmfit_pipe.settings.tables import TableOptions
from ulmfit_pipe.settings.text import ClassifierSettings, LanguageModelSettings

TITLES = {
    "scratch": "from scratch",
    "pretrained": "pretrained",
    "ulmfit": "ULMFiT",
    "backward": "ULMFiT backward",
    "ensemble": "ULMFiT both ways",
    "tfidf": "TF-IDF + logistic regression",
}


@dataclass(frozen=True, kw_only=True)
class StudySettings(TableOptions):
    """What every experiment has.

    Attributes:
        label_column: Column of labels.
        preset: Recipe; auto is fastai for an AWD-LSTM and transformer for any other model.
        mixed_precision: no, bf16, fp16 (GPU only), or fp8 (GPUs from Ada on).
        progress: Show progress bars; null decides by the terminal.
        title: Name of the data; null takes the output folder's name.
    """

    label_column: str = "label"
    preset: PresetName = "auto"
    mixed_precision: Precision = "no"
    progress: bool | None = None
    title: str | None = None


@dataclass(frozen=True)
@with_home_paths
class LowShotSettings(StudySettings):
    """Settings of a grid of methods, label counts and seeds.

    Attributes:
        train_file: Labelled table or tables.
        test_file: Labelled table to test on; no model reads a text of it.
        output_dir: Folder for cells, language models and results; several processes may work in it.
        unlabelled_file: Further texts for the language model.
        model: Pretrained language model, a folder or name.
        model_backward: Its backward counterpart, for backward and ensemble.
        sizes: Labelled rows of the subsets; 0 is all rows.
        seeds: Seeds of each size (0, 1, ...): one number per size, or one for all.
        methods: What to run of scratch, pretrained, ulmfit, backward, ensemble, tfidf.
        test_rows: Size of the stratified test sample, the same for every cell; null tests on all rows.
        development_rows: Labelled rows set aside to choose the learning rate of scratch by; in no subset.
        language_model_text: What the language model is fine-tuned on: unlabelled_file, the texts of train_file, both.
        unlabelled_rows: Rows of unlabelled_file to take; null takes all.
        final_epochs: Epochs of the classifier's last phase, one number per size; null takes classifier.final_epochs.
        scratch_epochs: Epochs of scratch, one number per size; null gives it those of all the method's phases.
        scratch_factors: Times the rate of scratch, the rates to choose from; a single one chooses nothing.
        stage: Everything; the language models only; or only the results of the cells there are.
        score: Test rows; or development rows, to choose settings by (then all is in OUTPUT_DIR/development).
        keep_models: Keep the classifiers of the cells in OUTPUT_DIR/models.
        title: Name of the data in the picture; null takes the output folder's name.
        figure: Where to draw the picture; null draws OUTPUT_DIR/curve.png.
        combine: Draw these results.json side by side into figure, and do nothing else.
        language_model: Settings of the language-model stage.
        classifier: Settings of the classifier, for pretrained, ulmfit and backward.
        scratch: Settings of the network from scratch; a null rate, batch size or length takes the classifier's.
    """

    train_file: list[str] = field(default_factory=list)
    test_file: str | None = None
    output_dir: str = "runs/low_shot"
    unlabelled_file: list[str] | None = None
    model: str = "awd-lstm-en"
    model_backward: str | None = None
    sizes: list[int] = field(default_factory=lambda: [100, 500, 2000])
    seeds: list[int] = field(default_factory=lambda: [3])
    methods: list[str] = field(default_factory=lambda: ["scratch", "pretrained", "ulmfit", "tfidf"])
    test_rows: int | None = 2000
    development_rows: int = 500
    language_model_text: Literal["both", "unlabelled", "training"] = "both"
    unlabelled_rows: int | None = None
    final_epochs: list[int] | None = None
    scratch_epochs: list[int] | None = None
    scratch_factors: list[float] = field(default_factory=lambda: [0.25, 0.5, 1.0])
    stage: Literal["all", "language_model", "results"] = "all"
    score: Literal["test", "development"] = "test"
    keep_models: bool = False
    figure: str | None = None
    combine: list[str] | None = None
    language_model: LanguageModelSettings = field(default_factory=LanguageModelSettings)
    classifier: ClassifierSettings = field(default_factory=lambda: ClassifierSettings(plan="gradual"))
    scratch: ClassifierSettings = field(default_factory=lambda: ClassifierSettings(plan="full", lr_decay=1.0))

    def __post_init__(self) -> None:
        """Refuse what contradicts itself before anything is read."""
        check_choices(self)
        check_whole(self, {"test_rows": 1, "development_rows": 0, "unlabelled_rows": 1})
        unknown = [method for method in self.methods if method not in TITLES]
        if unknown or not self.methods:
            raise ValueError(f"methods must be some of {', '.join(TITLES)}, got {', '.join(unknown) or 'none'}")
        for name in ("seeds", "final_epochs", "scratch_epochs"):
            values = getattr(self, name)
            allowed = (1, len(self.sizes)) if name == "seeds" else (len(self.sizes),)
            if values is not None and (len(values) not in allowed or min(values) < 1):
                raise ValueError(f"{name} needs one number of 1 or more for each of sizes {self.sizes}, got {values}")
        if len(set(self.sizes)) < max(len(self.sizes), 1) or min(self.sizes) < ALL_ROWS:
            raise ValueError(f"sizes must be different numbers of rows, {ALL_ROWS} for all, got {self.sizes}")
        if not self.scratch_factors or min(self.scratch_factors) <= 0:
            raise ValueError(
                f"scratch_factors must be numbers above 0, 1 for the rate itself, got {self.scratch_factors}; 0.5 1 2 "
                "are half, once and twice the rate"
            )
        if {"backward", "ensemble"} & set(self.methods) and self.model_backward is None:
            raise ValueError(
                "backward and ensemble need a backward language model: give --model_backward, such as "
                "awd-lstm-en-backward, or leave them out of methods"
            )


ONE_RATE = {"lr_decay": 1.0}
SLANTED, ONE_CYCLE, CONSTANT = ({"schedule": name} for name in ("slanted-triangular", "one-cycle", "constant"))
# Variant -> what it changes of the settings `classifier`; epochs are set by `variant_settings`.
VARIANTS: dict[str, dict[str, Any]] = {
    "head": {"plan": "head", **SLANTED},
    "full": {"plan": "full", **ONE_RATE, **CONSTANT},
    "full-slanted": {"plan": "full", **ONE_RATE, **SLANTED},
    "full-one-cycle": {"plan": "full", **ONE_RATE, **ONE_CYCLE},
    "full-discriminative": {"plan": "full", **CONSTANT},
    "full-discriminative-slanted": {"plan": "full", **SLANTED},
    "full-discriminative-one-cycle": {"plan": "full", **ONE_CYCLE},
    "gradual": {"plan": "gradual", **ONE_RATE, **CONSTANT},
    "gradual-slanted": {"plan": "gradual", **ONE_RATE, **SLANTED},
    "gradual-one-cycle": {"plan": "gradual", **ONE_RATE, **ONE_CYCLE},
    "gradual-discriminative": {"plan": "gradual", **CONSTANT},
    "gradual-discriminative-slanted": {"plan": "gradual", **SLANTED},
    "gradual-discriminative-one-cycle": {"plan": "gradual", **ONE_CYCLE},
    "chain-thaw": {"plan": "chain-thaw", **SLANTED},
    "lp-ft": {"plan": "lp-ft", **SLANTED},
}


@dataclass(frozen=True)
@with_home_paths
class AblationSettings(StudySettings):
    """Settings of a comparison of ways to unfreeze.

    Attributes:
        train_file: Labelled table or tables.
        test_file: Labelled table to test on.
        model: Folder of the fine-tuned language model that every variant starts from.
        output_dir: Folder for cells and results; several processes may work in it.
        size: Labelled rows to train on; 0 is all rows.
        seeds: Number of seeds (0, 1, ...), each with its own rows.
        variants: What to compare; null compares all.
        rates: Learning rates to choose from, for each variant the best on development rows with seed 0; null takes
            classifier.lr for every variant.
        test_rows: Size of the stratified test sample; null tests on all rows.
        development_rows: Labelled rows set aside to choose rates by; in no subset.
        stage: Everything; only show the variants' phases; or only write the results of the cells there are.
        classifier: Settings that all variants share: rate, decay, batch size, and the epochs of gradual unfreezing.
    """

    train_file: list[str]
    test_file: str
    model: str
    output_dir: str = "runs/ablation"
    size: int = ALL_ROWS
    seeds: int = 3
    variants: list[str] | None = None
    rates: list[float] | None = None
    test_rows: int | None = 2000
    development_rows: int = 500
    stage: Literal["all", "plans", "results"] = "all"
    classifier: ClassifierSettings = field(
        default_factory=lambda: ClassifierSettings(plan="gradual", lr=1e-2, epochs_per_phase=1, final_epochs=8)
    )

    def __post_init__(self) -> None:
        """Refuse what contradicts itself before anything is read."""
        check_choices(self)
        check_whole(self, {"size": ALL_ROWS, "seeds": 1, "test_rows": 1, "development_rows": 0})
        unknown = [name for name in self.variants or VARIANTS if name not in VARIANTS]
        if unknown or self.variants == []:
            raise ValueError(f"variants must be some of {', '.join(VARIANTS)}, got {', '.join(unknown) or 'none'}")
        if self.rates is not None and (not self.rates or min(self.rates) <= 0):
            raise ValueError(f"rates must be numbers above 0, got {self.rates}; leave it out for classifier.lr")
        given = {name: getattr(self.classifier, name) for name in ("lr", "epochs_per_phase", "final_epochs")}
        missing = [f"classifier.{name}" for name, value in given.items() if value is None]
        if missing:
            raise ValueError(f"all variants share one budget and one rate: set {', '.join(missing)}")


SOURCES = ("dataset", "train_images", "train_file")
IMAGES_ONLY, TEXTS_ONLY = ("image_size", "test_images"), ("max_length", "block_groups", "test_file")


@dataclass(frozen=True)
@with_home_paths
class TransferabilitySettings(StudySettings):
    """Settings of the experiment.

    Attributes:
        dataset: A sample that needs no files: digits (scikit-learn's, 8 x 8 pixels, ten classes), or docstrings
            (paragraphs of five installed libraries, the library is the class).
        train_file: Labelled table or tables of texts, in place of a sample; four classes or more.
        test_file: The same, tested on; without it a part of train_file is held out.
        train_images: Folder that holds a folder of images per class, a table of paths, or a dataset's saved folder.
        test_images: The same, tested on; without it a part of train_images is held out.
        model: Any image or text model of transformers, or of this project; null takes a small ResNet for images and the
            built-in language model for texts.
        output_dir: Folder for cells and results; several processes may work in it.
        image_column: Column of images or paths, in a table or dataset.
        task_a: The classes of task A, the others are task B's; null lets each seed draw a half.
        rows_of_a: Training rows of task A, the same share of each class; null takes all, or a few of a sample's.
        rows_of_b: Training rows of task B.
        test_rows: Most test rows of a task, the same share of each class; null takes 1000, or what suits the sample.
        test_fraction: Part held out where no test table is given.
        seeds: Number of seeds (0, 1, ...), each with its own split and weights.
        layers: Numbers n of layer groups to copy; null takes every n up to all groups but the head.
        frozen_epochs: Epochs in which every curve's copied groups are frozen; 0 unfreezes those of BnB+ and AnB+ from
            the start, as the paper does; null takes 3, or what suits the sample.
        final_epochs: Epochs after that, in which the copied groups of BnB+ and AnB+ are unfrozen; null takes 5, or what
            suits the sample.
        lr: Learning rate of all groups, the same for every network; null takes 0.004 for images, 0.005 for an AWD-LSTM,
            0.0003 for any other text model.
        batch_size: Rows per step; null decides by the number of rows.
        pretrained: The two base networks start from the model's weights; false lets them start at random, as the
            paper does. New layers always start at random.
        image_size: Side of the images in pixels; null takes the model's own, or 32 for the small ResNet.
        max_length: Truncate texts to this many tokens; null reads them whole.
        block_groups: Bundle a text transformer's blocks into this many layer groups; null makes each block one.
        preset: Recipe of the optimizer for texts; auto is fastai for an AWD-LSTM and transformer for any other model.
        title: Name of the data; null takes the sample's or the folder's name.
        figure: The picture's file; null takes transferability.png in the output folder.
        head: Head of an image classifier; by default a single linear layer, so that the last n trains little else.
        backbone: The small ResNet.
    """

    dataset: Literal["digits", "docstrings"] | None = None
    train_file: list[str] | None = None
    test_file: str | None = None
    train_images: str | None = None
    test_images: str | None = None
    model: str | None = None
    output_dir: str = "runs/transferability"
    image_column: str = "image"
    task_a: list[str] | None = None
    rows_of_a: int | None = None
    rows_of_b: int | None = None
    test_rows: int | None = None
    test_fraction: float = 0.25
    seeds: int = 3
    layers: list[int] | None = None
    frozen_epochs: int | None = None
    final_epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    pretrained: bool = True
    image_size: int | None = None
    max_length: int | None = None
    block_groups: int | None = None
    figure: str | None = None
    head: ImageHeadSettings = field(default_factory=lambda: ImageHeadSettings(hidden_sizes=[], dropouts=[0.1]))
    backbone: SmallResNetSettings = field(default_factory=SmallResNetSettings)

    def __post_init__(self) -> None:
        """Refuse what contradicts itself before anything is read."""
        check_choices(self)
        check_whole(self, {"rows_of_a": 2, "rows_of_b": 2, "test_rows": 1, "seeds": 1, "final_epochs": 1})
        check_whole(self, {"frozen_epochs": 0, "batch_size": 2, "image_size": 1, "max_length": 1, "block_groups": 1})
        check_above_zero(self, "lr")
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give one of {', '.join(SOURCES)} to take tasks from, got {' and '.join(given) or 'none'}; "
                "--dataset digits needs no files"
            )
        kind, foreign = ("images", TEXTS_ONLY) if self.on_images else ("texts", IMAGES_ONLY)
        if self.dataset is not None:
            foreign = (*foreign, "test_file", "test_images")
        for name in foreign:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} has no meaning for {given[0]} {getattr(self, given[0])!r}, which "
                    f"are {kind}{'' if self.dataset is None else ' with test rows of their own'}; leave it out"
                )

    @property
    def on_images(self) -> bool:
        """Whether the data are images."""
        return self.train_images is not None or self.dataset == "digits"
