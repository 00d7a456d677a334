"""What `ulmfit COMMAND --help` shows first: the settings that most people need, an example, and the files it writes.

A setting that is null where the preset decides is shown with the preset's numbers. They are written out here, since the
presets themselves load torch; a test compares the two.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Setting -> what null stands for, by preset; epochs for tables of IMDb's size.
BY_PRESET = {
    "language_model.lr": "fastai 0.02, transformer 5e-05, paper 0.004, scripts-2018 0.004",
    "language_model.epochs": "fastai 10, transformer 3, paper 15, scripts-2018 25",
    "language_model.batch_size": "fastai 64, transformer 32, paper 64, scripts-2018 64",
    "language_model.bptt": "fastai 72, paper 70, scripts-2018 70",
    "classifier.lr": "fastai 0.02, transformer 0.001, paper 0.01, scripts-2018 0.01",
    "classifier.epochs_per_phase": "fastai 1, transformer 1, paper 1, scripts-2018 1",
    "classifier.final_epochs": "fastai 2, transformer 3, paper 50, scripts-2018 50",
    "classifier.batch_size": "fastai 64, transformer 32, paper 64, scripts-2018 64",
    "classifier.lr_decay": "fastai 2.6, transformer 1.11, paper 2.6, scripts-2018 2.6",
}
MORE_EPOCHS = ("language_model.epochs", "classifier.final_epochs")  # raised where there is less data
MODEL_FILES = "weights, configuration and tokenizer, metrics.json, settings.yaml, report.html, log.jsonl"


@dataclass(frozen=True)
class Guide:
    """What most people need to know of a command.

    Attributes:
        first: Names of the settings that are shown first.
        example: A command line.
        writes: The files that it writes.
        nulls: Setting -> what its null stands for.
    """

    first: tuple[str, ...]
    example: str
    writes: str
    nulls: Mapping[str, str] = field(default_factory=lambda: BY_PRESET)


GUIDES = {
    "run": Guide(
        ("train_file", "output_dir", "test_file", "model", "text_column", "label_column")
        + ("classifier.lr", "classifier.final_epochs", "language_model.lr", "language_model.epochs"),
        "ulmfit run --train_file train.csv --test_file test.csv --output_dir runs/mine",
        "OUTPUT_DIR/classifier, OUTPUT_DIR/language_model, metrics.json, settings.yaml, report.html",
    ),
    "predict": Guide(
        ("model", "input_file", "output_file", "output_dir", "text_column", "all_scores", "empty_text", "part_rows")
        + ("escape_formulas", "mixed_precision"),
        "ulmfit predict --model runs/mine/classifier --input_file new.csv --output_file labelled.csv",
        "OUTPUT_FILE: the rows of the input in their order, with label and score; or parts in OUTPUT_DIR",
    ),
    "train-classifier": Guide(
        ("train_file", "output_dir", "model", "test_file", "validation_file", "text_column", "label_column")
        + ("classifier.plan", "classifier.lr", "classifier.final_epochs"),
        "ulmfit train-classifier --model runs/tuned --train_file train.csv --output_dir runs/mine",
        f"OUTPUT_DIR: {MODEL_FILES}",
    ),
    "finetune-lm": Guide(
        ("train_file", "output_dir", "model", "validation_file", "text_column", "max_seconds", "preset")
        + ("language_model.lr", "language_model.epochs", "language_model.batch_size"),
        "ulmfit finetune-lm --model awd-lstm-en --train_file texts.csv --output_dir runs/tuned",
        f"OUTPUT_DIR: {MODEL_FILES}",
    ),
    "pretrain-lm": Guide(
        ("train_file", "output_dir", "validation_file", "text_column", "max_seconds", "language_model.vocab_size")
        + ("language_model.hidden_size", "language_model.lr", "language_model.epochs", "language_model.batch_size"),
        "ulmfit pretrain-lm --train_file texts.txt --output_dir runs/general",
        f"OUTPUT_DIR: {MODEL_FILES}",
    ),
    "lr-find": Guide(
        ("train_file", "output_dir", "model", "stage", "freeze_to", "text_column", "label_column")
        + ("start_lr", "end_lr", "num_steps"),
        "ulmfit lr-find --model runs/tuned --train_file train.csv --stage classifier --output_dir runs/rate",
        "OUTPUT_DIR: learning_rate.png and the curve's numbers",
    ),
    "images": Guide(
        ("train_images", "output_dir", "test_images", "validation_images", "model", "validation_fraction")
        + ("image_column", "label_column", "max_train_images", "seed"),
        "ulmfit images --train_images photos/train --test_images photos/test --output_dir runs/photos",
        "OUTPUT_DIR: the classifier, metrics.json, settings.yaml, report.html",
        {},
    ),
}
