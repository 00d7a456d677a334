"""Settings of predicting files, and of scoring a classifier on a labelled one."""

from dataclasses import dataclass
from typing import Literal

from ulmfit_pipe.settings.checks import check_seed, with_home_paths
from ulmfit_pipe.settings.choices import LabelStrategy, Precision
from ulmfit_pipe.settings.tables import LabelledTables, TableOptions


@dataclass(frozen=True)
@with_home_paths
class PredictFileSettings(TableOptions):
    """Settings of a prediction.

    Attributes:
        model: Folder of a classifier; one that holds a backward classifier is averaged with it.
        input_file: A table of any kind that training reads (docs/tables.md). Several of one kind with the same columns
            count as one table, one after the other; a pattern such as 'new/*.csv', in quotes, stands for all that fit,
            in the order of their names. From Python a single name will do.
        output_file: CSV, TSV, JSONL or Parquet, by its suffix; an older one is replaced. It holds all rows
            and columns of the input in their order, then label and score (for multi-label a list and its lowest score;
            in CSV and TSV joined with |). An input column that is itself called label or score is kept as label_given
            or score_given.
        output_dir: Folder of parts, for several processes or files: each part is written whole or not at all, and
            the same command continues where a killed one stopped. With output_file too the parts are joined to it.
        part_format: Kind of the parts; null takes that of output_file, or the input's (CSV for other CSV-like tables
            and Excel, Parquet for other tables with types, else JSONL).
        part_rows: Rows of a part; null takes 1,024, or more where there would be over 1,000 parts.
        all_scores: Add a column score_LABEL for every label.
        abstain_below: Leave the label of a row empty where its score is lower, and keep the score; for one label a
            row.
        precision: Find the lowest score from which this share of labels was right on the classifier's held-out rows,
            report how many rows have it, and abstain below it.
        escape_formulas: In CSV and TSV, write an apostrophe before cells that begin with = + - @, a tab or a carriage
            return, which a spreadsheet would run as a formula (all labels and texts; of other columns all but numbers).
        empty_text: skip leaves the label of a row without text empty, and logs how many there are; error names the
            first one before anything is predicted.
        chunk_rows: Rows held in memory at a time.
        mixed_precision: no, bf16, fp16 (GPU only), or fp8 (GPUs from Ada on).
        progress: Show a progress bar; null decides by the terminal.
        trust_remote_code: Run Python code that comes with a model (auto_map in its config.json); off, such a model is
            refused.
    """

    model: str
    input_file: list[str]
    output_file: str | None = None
    output_dir: str | None = None
    part_format: Literal["csv", "tsv", "jsonl", "parquet"] | None = None
    part_rows: int | None = None
    all_scores: bool = False
    abstain_below: float | None = None
    precision: float | None = None
    escape_formulas: bool = False
    empty_text: Literal["error", "skip"] = "skip"
    chunk_rows: int = 2048
    mixed_precision: Precision = "no"
    progress: bool | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
@with_home_paths
class EvaluateSettings(LabelledTables):
    """Settings of scoring a classifier on a labelled table.

    Attributes:
        model: Folder of a classifier; one that holds a backward classifier is averaged with it.
        test_file: A labelled table of any kind that training reads (docs/tables.md).
        output_file: JSON file for the scores; null only prints them.
        precision: Report also from which score on this share of the labels is right, and how many rows have it.
        seed: Of the resamples that the intervals are taken from.
        mixed_precision: no, bf16, fp16 (GPU only), or fp8 (GPUs from Ada on).
        trust_remote_code: Run Python code that comes with a model (auto_map in its config.json); off, such a model is
            refused.
    """

    model: str
    test_file: str
    output_file: str | None = None
    precision: float | None = None
    seed: int = 0
    mixed_precision: Precision = "no"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Check the seed and what has no meaning here."""
        check_seed(self)
        if self.min_rows_per_class != 1:
            raise ValueError(
                f"min_rows_per_class {self.min_rows_per_class} is for training; leave it out: the classifier knows its "
                "labels"
            )


@dataclass(frozen=True)
@with_home_paths
class ExplainSettings:
    """Settings of an explanation.

    Attributes:
        model: Folder of a classifier.
        text: The text to explain; repeat the option for several.
        label: The label to explain, null for the one with the highest score.
        output_file: Write the explanations as a page too, the words coloured by their share.
        trust_remote_code: Run Python code that comes with a model (auto_map in its config.json); off, such a model is
            refused.
    """

    model: str
    text: list[str]
    label: str | None = None
    output_file: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
@with_home_paths
class ServeSettings:
    """Settings of a classifier over HTTP.

    Attributes:
        model: Folder of a classifier.
        host: Address to listen on; 0.0.0.0 is every one of this machine's, to be put behind something that checks who
            asks.
        port: Port to listen on; 0 takes a free one.
        batch_texts: Texts of concurrent requests that are predicted together.
        most_waiting: Texts that may wait at once; a request that is too much gets the answer 429.
        request_texts: Texts of a request.
        text_characters: Characters of a text.
        stop_seconds: Seconds that requests have to end in when the server is stopped.
        mixed_precision: no, bf16, fp16 (GPU only), or fp8 (GPUs from Ada on).
        trust_remote_code: Run Python code that comes with a model (auto_map in its config.json); off, such a model is
            refused.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    batch_texts: int = 64
    most_waiting: int = 1024
    request_texts: int = 256
    text_characters: int = 100_000
    stop_seconds: int = 30
    mixed_precision: Precision = "no"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Check the limits.

        Raises:
            ValueError: A limit is below 1, or the port is not one.
        """
        for name in ("batch_texts", "most_waiting", "request_texts", "text_characters", "stop_seconds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"port must lie in 0..65535, got {self.port}; 0 takes a free one")
        if self.most_waiting < self.request_texts:
            raise ValueError(
                f"most_waiting {self.most_waiting} is below request_texts {self.request_texts}, so a full request "
                "would never be answered; raise the first or lower the second"
            )


@dataclass(frozen=True)
@with_home_paths
class LabelNextSettings(LabelledTables):
    """Settings of choosing rows to label next.

    Attributes:
        model: Folder of a classifier.
        pool: Table or tables of texts without labels, of any kind that training reads (docs/tables.md).
        n: Rows to choose; -n for short.
        output_file: CSV to write, with an empty column label to fill in; one that is there already is refused; null
            only prints the rows.
        strategy: How rows are chosen. margin-kmeans: the rows between two labels, spread out over what the network
            makes of the texts; margin, entropy, badge, kmeans and random are its baselines (docs/label_next.md).
        train_file: Labelled table or tables that the classifier knows, in place of those of its run; their texts are
            left out.
        curve: Measure what the labels would buy, which reads the training texts once.
        seed: Of everything that is drawn.
        trust_remote_code: Run Python code that comes with a model (auto_map in its config.json); off, such a model is
            refused.
    """

    model: str
    pool: list[str]
    n: int = 50
    output_file: str | None = "label_next.csv"
    strategy: LabelStrategy = "margin-kmeans"
    train_file: list[str] | None = None
    curve: bool = True
    seed: int = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_seed(self)
        if self.n < 1:
            raise ValueError(f"n must be 1 or more rows to label, got {self.n}; 50 is usual")
