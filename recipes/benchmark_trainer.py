"""This package with nothing set, beside the transformers Trainer and TF-IDF: the same rows, encoder and thread.

    python recipes/benchmark_trainer.py --encoder sentence-transformers/all-MiniLM-L6-v2 \
        --train_file trec/train.csv --test_file trec/test.csv --rows 300 --splits 3

ours       `ulmfit run --model ENCODER`, no further setting
trainer    the encoder's own sequence classification head, 5 epochs at 1e-4, batches of 16 texts of like length, fused
           AdamW, at most 256 tokens of a text
tfidf      the baseline of our run

Each side is a process of its own, from start to scores of the test rows: wall and CPU seconds hold all of it.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ulmfit_pipe as up


@dataclass(frozen=True)
class Settings:
    """What to compare.

    Attributes:
        encoder: A folder or a name from the hub.
        train_file: Labelled table, from which rows are drawn.
        test_file: Labelled table to test on.
        rows: Rows to train on, drawn anew for each split.
        test_rows: Rows to test on.
        splits: Draws of rows.
        epochs: Epochs of the Trainer.
        lr: Its learning rate.
        mixed_precision: ``no`` or ``bf16``, of both sides.
        text_column: Column of the texts.
        label_column: Column of the labels.
        results_file: One JSON line a split.
    """

    encoder: str
    train_file: str
    test_file: str
    rows: int = 300
    test_rows: int = 500
    splits: int = 3
    epochs: int = 5
    lr: float = 1e-4
    mixed_precision: str = "no"
    text_column: str = "text"
    label_column: str = "label"
    results_file: str = "benchmark_trainer.jsonl"


def train_with_trainer(job: dict[str, Any]) -> float:
    """Train by the Trainer and return the accuracy on the test rows."""
    import datasets
    import transformers

    from ulmfit_pipe.stages.pretrained_files import load_pretrained

    tables = {part: datasets.load_from_disk(job[part]) for part in ("train", "test")}
    tokenizer = load_pretrained(transformers.AutoTokenizer, job["encoder"])
    for part, table in tables.items():
        tables[part] = table.map(lambda rows: tokenizer(rows["text"], truncation=True, max_length=256), batched=True)
    model = load_pretrained(
        transformers.AutoModelForSequenceClassification,
        job["encoder"],
        use_safetensors=True,
        num_labels=len(tables["train"].features["label"].names),
        dtype="float32",
    )
    arguments = transformers.TrainingArguments(
        output_dir=job["place"],
        num_train_epochs=job["epochs"],
        learning_rate=job["lr"],
        per_device_train_batch_size=16,
        per_device_eval_batch_size=32,
        train_sampling_strategy="group_by_length",
        optim="adamw_torch_fused",
        bf16=job["mixed_precision"] == "bf16",
        seed=job["split"],
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    collator = transformers.DataCollatorWithPadding(tokenizer)
    trainer = transformers.Trainer(model, arguments, train_dataset=tables["train"], data_collator=collator)
    trainer.train()
    scored = trainer.predict(tables["test"])  # in an order of its own, labels with it
    return float((scored.predictions.argmax(-1) == scored.label_ids).mean())


def seconds_of(command: list[str]) -> tuple[str, float, float]:
    """Run a command on one thread and return its output, CPU seconds and wall seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    done = subprocess.run(command, env=one_thread, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout, cpu, time.perf_counter() - started


def compare(settings: Settings, split: int, place: Path) -> dict[str, Any]:
    """Train both sides on one draw of rows."""
    columns = {"text_columns": (settings.text_column,), "label_column": settings.label_column}
    train = up.load_table(settings.train_file, **columns).shuffle(seed=split).select(range(settings.rows))
    names = train.features["label"].names
    test = up.load_table(settings.test_file, label_names=names, **columns).shuffle(seed=split)
    files = {"train": train, "test": test.select(range(min(settings.test_rows, len(test))))}
    for part, table in files.items():
        table.save_to_disk(str(place / part))
    words = ["run", "--model", settings.encoder, "--output_dir", str(place / "run"), "--progress", "false", "--quiet"]
    words += ["--train_file", str(place / "train"), "--test_file", str(place / "test"), "--seed", str(split)]
    words += ["--mixed_precision", settings.mixed_precision]
    _, cpu, wall = seconds_of([sys.executable, "-m", "ulmfit_pipe", *words])
    scores = json.loads((place / "run/metrics.json").read_text(encoding="utf-8"))["test"]
    job = {**vars(settings), "split": split, "train": str(place / "train"), "test": str(place / "test")}
    (place / "job.json").write_text(json.dumps(job | {"place": str(place / "trainer")}), encoding="utf-8")
    out, their_cpu, their_wall = seconds_of([sys.executable, __file__, "--worker", str(place / "job.json")])
    return {
        "split": split,
        "ours": {"accuracy": scores["accuracy"], "cpu": cpu, "wall": wall},
        "trainer": {"accuracy": float(out.split()[-1]), "cpu": their_cpu, "wall": their_wall},
        "tfidf": {"accuracy": scores["baseline"]["accuracy"]},
    }


def main() -> None:
    """Compare on every split and print means."""
    settings = up.parse_settings(Settings, description="This package with nothing set, beside the Trainer and TF-IDF.")
    found = []
    for split in range(settings.splits):
        with tempfile.TemporaryDirectory() as place:
            found.append(compare(settings, split, Path(place)))
        with open(settings.results_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(found[-1] | {"rows": settings.rows, "train_file": settings.train_file}) + "\n")
    for side in ("ours", "trainer", "tfidf"):
        runs = [run[side] for run in found]
        values = ", ".join(f"{100 * run['accuracy']:.1f}" for run in runs)
        mean = f"{side:8} {100 * statistics.mean(run['accuracy'] for run in runs):5.1f} % ({values})"
        cpu = f"  {statistics.median(run['cpu'] for run in runs):7.1f} CPU s" if "cpu" in runs[0] else ""
        print(mean + cpu)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(train_with_trainer(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))))
    else:
        up.run_recipe(main)
