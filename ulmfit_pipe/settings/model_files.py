"""Settings of the tools around a model: import and export, packaging, filters, configuration files."""

from dataclasses import dataclass, field
from typing import Literal

from ulmfit_pipe.settings.checks import check_seed, check_whole, with_home_paths
from ulmfit_pipe.settings.choices import DEFAULT_MODEL, Precision
from ulmfit_pipe.settings.tables import TableOptions


@dataclass(frozen=True)
@with_home_paths
class ImportFastaiSettings:
    """Settings of an import.

    Attributes:
        weights: The .pth file (.h5 in fastai 0.7) of learn.save or save_encoder; fastai 2, 1, 0.7 or salesforce.
        vocab: The .pkl file of its vocabulary: a plain list of tokens, or [tokens, labels] of a classifier.
        output_dir: Folder to write: a model for every stage; of a classifier, whose encoder is also written as a
            language model into language_model below it, for the stages that use it.
        labels: Names of a classifier's labels in the order of its outputs, where the vocabulary file has none.
        multi_label: The classifier gives a text any number of labels.
        direction: Whether the model reads text forward or backward; its files do not record it.
    """

    weights: str
    vocab: str
    output_dir: str
    labels: list[str] | None = None
    multi_label: bool = False
    direction: Literal["forward", "backward"] = "forward"


@dataclass(frozen=True)
@with_home_paths
class ExportFastaiSettings:
    """Settings of an export.

    Attributes:
        model: Folder or name of a language model or classifier.
        output_dir: Folder to write: model.pth, encoder.pth, vocab.pkl.
        drop_mult_zero: The fastai classifier is built with drop_mult=0; fastai then has other key names in its head.
    """

    model: str
    output_dir: str
    drop_mult_zero: bool = False


@dataclass(frozen=True)
@with_home_paths
class ConfigsSettings:
    """Settings of writing accelerate's configuration files.

    Attributes:
        output_dir: Folder to write into; a file of another content that is there is not replaced.
    """

    output_dir: str


WIKIPEDIA = "English Wikipedia: the plain text of its articles, one article a row."
WIKIPEDIA_LICENCE = (
    "Wikipedia's text was written by its many authors and is licensed under CC BY-SA 4.0 (3.0 before June 2023). "
    "These weights are derived from that text and are given under CC BY-SA 4.0. The code of ulmfit_pipe is Apache-2.0."
)


@dataclass(frozen=True)
@with_home_paths
class PackageSettings(TableOptions):
    """Settings of packaging; the notes are for a model of English Wikipedia, change them for any other.

    Attributes:
        model: Folder of a language model that a stage wrote.
        output_dir: Folder to write; ulmfit_pipe/models/pretrained/NAME makes it a built-in model.
        name: Name on the card; a backward model's ends in -backward.
        validation_file: Text to measure the rounded weights on; without it the card has the training stage's figures.
        mixed_precision: Of measuring: no, bf16 (faster on many processors), or fp16 (GPU only).
        prompt: Start of the sample that the card shows (its end, for a backward model); null takes a neutral one.
        temperature: Of the sample; lower is more careful.
        top_k: The sample is drawn from this many likeliest tokens at each step.
        sample_tokens: New tokens of the sample.
        seed: Seed of the sample.
        hardware: What it was trained on, in words; null takes what the record knows.
        data_note: What the text is, in words.
        license: Licence of the weights, as the hub spells it.
        license_note: Where the licence comes from, in words.
    """

    model: str
    output_dir: str
    name: str = DEFAULT_MODEL
    validation_file: str | None = None
    mixed_precision: Precision = "no"
    prompt: str | None = None
    temperature: float = 0.7
    top_k: int = 40
    sample_tokens: int = 100
    seed: int = 0
    hardware: str | None = None
    data_note: str = WIKIPEDIA
    license: str = "cc-by-sa-4.0"
    license_note: str = WIKIPEDIA_LICENCE

    def __post_init__(self) -> None:
        """Refuse a seed that no generator takes."""
        check_seed(self)


@dataclass(frozen=True)
@with_home_paths
class ShowFiltersSettings:
    """Settings of the pictures of what fine-tuning did.

    Attributes:
        before: Folder, built-in name or hub id of the model before fine-tuning: a classifier, an encoder or a language
            model.
        after: The model after it, of the same architecture.
        output_dir: Folder to write: PNG pictures and weight_changes.json.
        images: Image files, a few; activations are drawn of them. For image models only.
        layers: Layers whose activations are drawn, names as in the model after fine-tuning, such as
            backbone.encoder.stages.0; none takes up to four stages from the first to the last.
        channels: Most channels of a layer to draw, those that changed most.
    """

    before: str
    after: str
    output_dir: str
    images: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    channels: int = 8

    def __post_init__(self) -> None:
        """Refuse values and combinations that draw nothing."""
        check_whole(self, {"channels": 1})
        if self.layers and not self.images:
            raise ValueError(f"activations of {self.layers[0]!r} need images to be activated by; give images too")


@dataclass(frozen=True)
@with_home_paths
class PushSettings:
    """Settings of an upload to a model hub.

    Attributes:
        model: Folder of a classifier that was trained here.
        repo: Name of the repository, NAMESPACE/NAME; made if it is not there.
        private: Make it private; one that is there stays what it is.
    """

    model: str
    repo: str
    private: bool = False

    def __post_init__(self) -> None:
        """Check the name."""
        namespace, _, name = self.repo.partition("/")
        if not namespace or not name or "/" in name:
            raise ValueError(f"repo must be NAMESPACE/NAME, such as my-team/reviews, got {self.repo!r}")
