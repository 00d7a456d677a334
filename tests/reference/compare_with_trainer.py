"""Thaw in phases, or train everything at once? One pretrained model, fine-tuned here and by the transformers Trainer.

    python tests/reference/compare_with_trainer.py --model MODEL --train_file imdb/train.parquet \
        --test_file imdb/test.parquet --output_dir runs/compared --rates '[3e-5, 1e-4, 3e-4]' --seeds 3

Both sides get the same rows, batch size, longest text and number of epochs, and choose among the same rates (of all
layers; the head that trains alone here has 20 times as much) by the same held-out rows with the first seed. The last
epoch is tested. Here the head trains alone for an epoch, then the upper half of the layers. --long_documents head-tail
reads beginning and end of a text that is too long, as many tokens of it as the Trainer reads of its beginning.
"""

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

import ulmfit_pipe as up


@dataclass(frozen=True)
class Settings:
    """The tables and the model; how many rows, epochs and seeds; the rates to choose from."""

    model: str
    train_file: str
    test_file: str
    output_dir: str
    rows: int = 2000
    test_rows: int = 2000
    epochs: int = 5
    batch_size: int = 32
    max_length: int = 256
    long_documents: Literal["truncate", "head-tail"] = "truncate"
    rates: list[float] = field(default_factory=lambda: [3e-5, 1e-4, 3e-4])
    seeds: int = 1
    mixed_precision: str = "no"


def write_tables(settings: Settings) -> dict[str, str]:
    """Write the rows that both sides read, a tenth of the training rows held out, and return the files."""
    tables = {}
    for name, source, count in (("train", settings.train_file, settings.rows), ("test", settings.test_file, 0)):
        table = up.load_table(source).shuffle(seed=0)
        tables[name] = table.select(range(min(count or settings.test_rows, len(table))))
    tables |= up.split_train_validation(tables["train"], fraction=0.1, seed=0)
    files = {name: str(Path(settings.output_dir, f"{name}.parquet")) for name in tables}
    for name, table in tables.items():
        table.to_parquet(files[name])
    return files


def here(settings: Settings, files: dict[str, str], scored: str, rate: float, seed: int) -> tuple[float, float]:
    """Return accuracy and seconds of the head alone, the upper half, and everything."""
    epochs = {"epochs_per_phase": 1, "final_epochs": settings.epochs - 2, "keep": "last"}
    sizes = {name: getattr(settings, name) for name in ("batch_size", "max_length", "long_documents")}
    metrics = up.TextPipeline(settings.model).fit(
        files["train"],
        test=files[scored],
        validation_file=files["validation"],
        output_dir=Path(settings.output_dir, f"here_{scored}_{rate:g}_{seed}"),
        fine_tune_language_model=False,
        classifier=up.ClassifierSettings(lr=20 * rate, **epochs, **sizes),
        mixed_precision=settings.mixed_precision,
        seed=seed,
    )
    return metrics["test"]["accuracy"], metrics["seconds"]["classifier"]


def trainer(settings: Settings, files: dict[str, str], scored: str, rate: float, seed: int) -> tuple[float, float]:
    """Return accuracy and seconds of the transformers Trainer: all layers at one rate, warm-up, linear decay."""
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    tables = {name: up.load_table(files[name]) for name in ("train", scored)}
    labels = tables["train"].features["label"].names
    model = AutoModelForSequenceClassification.from_pretrained(settings.model, num_labels=len(labels))
    cut = {"truncation": True, "max_length": settings.max_length}
    data = {
        name: table.map(lambda rows: tokenizer(rows["text"], **cut), batched=True) for name, table in tables.items()
    }
    given = TrainingArguments(
        output_dir=str(Path(settings.output_dir, "trainer")),
        num_train_epochs=settings.epochs,
        learning_rate=rate,
        warmup_steps=0.1,
        weight_decay=0.01,
        per_device_train_batch_size=settings.batch_size,
        train_sampling_strategy="group_by_length",
        bf16=settings.mixed_precision == "bf16",
        use_cpu=not torch.cuda.is_available(),  # without a GPU it refuses bf16 unless told so
        save_strategy="no",
        report_to="none",
        seed=seed,
    )
    run = Trainer(model, given, DataCollatorWithPadding(tokenizer), data["train"], processing_class=tokenizer)
    began = time.perf_counter()
    run.train()
    seconds = time.perf_counter() - began
    predicted = run.predict(data[scored])
    return float(np.mean(np.asarray(predicted.predictions).argmax(-1) == predicted.label_ids)), seconds


def main() -> None:
    """Choose each side's rate on validation rows, then test it with every seed."""
    settings = up.parse_settings(Settings, description="Compare thawing in phases with the transformers Trainer.")
    Path(settings.output_dir).mkdir(parents=True, exist_ok=True)
    files = write_tables(settings)
    lines = []
    for side in (here, trainer):
        tried = {rate: side(settings, files, "validation", rate, 0)[0] for rate in settings.rates}
        best = max(tried, key=tried.__getitem__)
        results = [side(settings, files, "test", best, seed) for seed in range(settings.seeds)]
        errors = [100 * (1 - accuracy) for accuracy, _ in results]
        spread = f"{statistics.mean(errors):6.2f} ({min(errors):.2f}-{max(errors):.2f})"
        chosen = ", ".join(f"{rate:g}: {100 * (1 - accuracy):.1f}" for rate, accuracy in tried.items())
        seconds = statistics.median(seconds for _, seconds in results)
        lines.append(f"{side.__name__:8} {best:7g} {spread:>20} {seconds:8.0f}  ({chosen})")
    print(f"{'side':8} {'rate':>7} {'error, lowest-highest':>20} {'seconds':>7}  (validation error of each rate)")
    print("\n".join(lines))


if __name__ == "__main__":
    up.run_recipe(main)
