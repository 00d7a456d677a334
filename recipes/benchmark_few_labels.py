"""Few labels: this package beside what people would pick instead, on the same rows, one thread, CPU seconds counted.

    python recipes/benchmark_few_labels.py --encoder sentence-transformers/all-MiniLM-L6-v2 \
        --train_file ag=ag/train.csv --test_file ag=ag/test.csv --peers_python env_peers/bin/python

ours       TextPipeline(ENCODER).fit(FILE) with no further setting
probe      the same with the plan probe: the frozen encoder and logistic regression
tfidf      TF-IDF and logistic regression, the package's own baseline
setfit     SetFit on that encoder: num_iterations 20, batch 16, one epoch, rate 2e-5, its logistic regression
model2vec  a static model distilled from that encoder, and logistic regression with C by cross-validation
ulmfit     TextPipeline("awd-lstm-en").fit(FILE): the method of the paper

SetFit and Model2Vec have an environment of their own (Model2Vec's distillation wants transformers below 5.4):

    python -m venv env_peers && echo torch==2.13.0 > torch.txt
    env_peers/bin/pip install -c torch.txt "setfit==1.2.*" "model2vec[distill]" transformers==5.3.0

Each data set, size, method and split is a cell and one line of results.jsonl; those of one method, size and data set
are trained one after the other in a process of their own. Run the same command again after a stop and only what is
missing is done; --again METHOD trains that method's cells anew. CPU seconds are the process's own: training is all from
the encoder's folder and the rows to a trained classifier (ours: also saved), prediction is that of the test rows;
imports are in neither, nor is distilling the static model, which is done once. At the end, with --splits 0 at once, the
table of all cells there are is printed and written to results.md, their picture to results.png.
"""

import csv
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Predict = Callable[[list[str]], Sequence[Any]]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
PACKAGES = ("ulmfit_pipe", "setfit", "model2vec", "sentence-transformers", "transformers", "torch", "scikit-learn")
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)  # C of logistic regression on static features


@dataclass(frozen=True)
class Settings:
    """What to compare: data sets, numbers of labels, random draws of rows (splits), methods.

    Attributes:
        train_file: NAME=TABLE, labelled rows to draw from; repeat it for each data set.
        test_file: NAME=TABLE, rows to test on, for the same names.
        encoder: Sentence encoder of ours, probe, setfit and model2vec, a folder or a name from the hub.
        language_model: What ulmfit starts from.
        results_file: One line a finished cell; the table and the picture are written beside it.
        methods: Some of ours, probe, tfidf, setfit, model2vec, ulmfit.
        per_class: Sizes: numbers of rows of each class.
        in_all: Sizes: numbers of rows, the classes as frequent as they are in the table.
        splits: Draws of each size; 0 trains nothing.
        test_rows: Stratified sample of each test table, the same for all; fewer where there are fewer.
        setfit_iterations: Pairs of each kind that SetFit draws for a row; 1,000 rows and 20 take it hours.
        peers_python: The Python of an environment with SetFit and Model2Vec.
        again: Methods whose finished cells, as far as they are asked for, are trained once more.
        text_column: Column of text.
        label_column: Column of labels.
    """

    train_file: list[str] = field(default_factory=list)
    test_file: list[str] = field(default_factory=list)
    encoder: str = "sentence-transformers/all-MiniLM-L6-v2"
    language_model: str = "awd-lstm-en"
    results_file: str = "runs/few_labels/results.jsonl"
    methods: list[str] = field(default_factory=lambda: ["ours", "probe", "tfidf", "setfit", "model2vec", "ulmfit"])
    per_class: list[int] = field(default_factory=lambda: [8, 16, 64])
    in_all: list[int] = field(default_factory=lambda: [1000])
    splits: int = 5
    test_rows: int = 500
    setfit_iterations: int = 20
    peers_python: str | None = None
    again: list[str] = field(default_factory=list)
    text_column: str = "text"
    label_column: str = "label"

    def __post_init__(self) -> None:
        """Refuse what contradicts itself before anything is read."""
        unknown = [name for name in [*self.methods, *self.again] if name not in METHODS]
        if unknown or not self.methods:
            raise ValueError(f"methods must be some of {', '.join(METHODS)}, got {', '.join(unknown) or 'none'}")
        if self.splits and not self.peers_python and any(METHODS[name].peer for name in self.methods):
            raise ValueError(
                "setfit and model2vec need --peers_python, the Python of an environment that has them; or leave them "
                'out: --methods "[ours, probe, tfidf, ulmfit]"'
            )
        if min([1, *self.per_class, *self.in_all, self.test_rows, self.setfit_iterations]) < 1 or self.splits < 0:
            raise ValueError("per_class, in_all, test_rows and setfit_iterations must be 1 or more, splits 0 or more")
        names = [", ".join(sorted(named(files))) for files in (self.train_file, self.test_file)]
        if names[0] != names[1]:
            raise ValueError(
                f"train_file and test_file must name the same data sets, got {names[0] or 'none'} and "
                f"{names[1] or 'none'}; write --train_file NAME=TABLE --test_file NAME=TABLE"
            )


def named(values: Sequence[str]) -> dict[str, str]:
    """Return name -> table of settings written NAME=TABLE."""
    for value in values:
        if not all(value.partition("=")[::2]):
            raise ValueError(f"a table is given as NAME=TABLE, for example ag=ag/train.csv; got {value!r}")
    return {name: table for name, _, table in (value.partition("=") for value in values)}


# The methods: each trains on a job's file and returns what gives the labels of texts; `work` runs them


def train_ours(job: Record, model: str = "encoder", **settings: Any) -> Predict:
    """Train with this package's defaults; it tests nothing itself, and no baseline runs along."""
    from ulmfit_pipe import TextPipeline

    pipeline = TextPipeline(job[model])
    pipeline.fit(job["train_file"], output_dir=job["folder"], baseline="none", **settings)
    return lambda texts: [found["label"] for found in pipeline.predict(texts)]


def train_tfidf(job: Record) -> Predict:
    """Train the package's own baseline."""
    from datasets import Dataset

    from ulmfit_pipe import load_table
    from ulmfit_pipe.text.scores.tfidf import fit_tfidf

    table = load_table(job["train_file"], say=lambda line: None)
    names, fitted = table.features["label"].names, fit_tfidf(table, seed=0)
    return lambda texts: [names[answer] for answer in fitted.answers(Dataset.from_dict({"text": texts}))]


def train_setfit(job: Record) -> Predict:
    """Train SetFit: contrastive fine-tuning on pairs of rows, then logistic regression."""
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    texts, labels = rows_of(job["train_file"])
    names = sorted(set(labels))
    numbered = {"text": texts, "label": [names.index(label) for label in labels]}
    model = SetFitModel.from_pretrained(job["encoder"])
    arguments = TrainingArguments(
        output_dir=job["folder"],
        batch_size=16,
        num_epochs=1,
        num_iterations=job["cell"]["setfit_iterations"],
        body_learning_rate=2e-5,
        save_strategy="no",
        report_to="none",
        show_progress_bar=False,
    )
    Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict(numbered)).train()
    return lambda texts: [names[int(answer)] for answer in model.predict(texts)]


def train_model2vec(job: Record) -> Predict:
    """Train a logistic regression on the static model."""
    import numpy as np
    from model2vec import StaticModel
    from sklearn.linear_model import LogisticRegressionCV

    texts, labels = rows_of(job["train_file"])
    static, fewest = StaticModel.from_pretrained(job["static_model"]), min(map(labels.count, labels))
    fitted = LogisticRegressionCV(Cs=STRENGTHS, cv=max(2, min(5, fewest)), max_iter=1000, scoring="accuracy")
    fitted.fit(np.asarray(static.encode(texts)), labels)
    return lambda texts: fitted.predict(np.asarray(static.encode(texts)))


def distil(job: Record) -> None:
    """Write a static model of the encoder, unless there is one."""
    if not Path(job["static_model"]).exists():
        from model2vec.distill import distill

        distill(job["encoder"]).save_pretrained(job["static_model"])


@dataclass(frozen=True)
class Method:
    """One of those compared: its title, what is imported before the clock starts, its training."""

    title: str
    imports: tuple[str, ...]
    train: Callable[[Record], Predict]
    peer: bool = False
    before: Callable[[Record], None] = lambda job: None


OURS = ("torch", "transformers", "sklearn.linear_model", "ulmfit_pipe.text.pipeline")
METHODS = {
    "ours": Method("ours", OURS, train_ours),
    "probe": Method("frozen encoder + LR", OURS, partial(train_ours, classifier={"plan": "probe"})),
    "tfidf": Method("TF-IDF + LR", ("ulmfit_pipe.text.scores.tfidf", "ulmfit_pipe.data.tables.tables"), train_tfidf),
    "setfit": Method("SetFit", ("torch", "transformers", "datasets", "setfit"), train_setfit, peer=True),
    "model2vec": Method("Model2Vec + LR", ("model2vec", "sklearn.linear_model"), train_model2vec, True, distil),
    "ulmfit": Method("AWD-LSTM", OURS, partial(train_ours, model="language_model")),
}


def rows_of(path: str) -> tuple[list[str], list[str]]:
    """Return the texts and labels of a job's file."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def work(path: str) -> None:
    """Train and test jobs of one method, in a process that may know nothing of this package; append each record."""
    jobs = json.loads(Path(path).read_text(encoding="utf-8"))
    method = METHODS[jobs[0]["cell"]["method"]]
    for name in method.imports:
        importlib.import_module(name)
    method.before(jobs[0])
    installed = {package.metadata["Name"]: package.version for package in metadata.distributions()}
    versions = {name: version for name, version in installed.items() if name in PACKAGES}
    for job in jobs:
        texts, labels = rows_of(job["test_file"])
        clock = [time.process_time()]
        predict = method.train(job)
        clock.append(time.process_time())
        answers = [str(answer) for answer in predict(texts)]
        clock.append(time.process_time())
        seconds = {
            "training_seconds": round(clock[1] - clock[0], 2),
            "prediction_seconds": round(clock[2] - clock[1], 2),
        }
        record = {**job["cell"], **scores_of(labels, answers), **seconds, "versions": versions}
        with open(job["results"], "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def scores_of(labels: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Return accuracy, and macro F1 over the classes of the test rows."""
    right = [label for label, answer in zip(labels, answers, strict=True) if label == answer]
    f1 = [2 * right.count(name) / (labels.count(name) + answers.count(name)) for name in set(labels)]
    return {"accuracy": len(right) / len(labels), "macro_f1": statistics.mean(f1)}


# The cells


def cell_of(record: Record) -> tuple[Any, ...]:
    """Return a cell's fingerprint."""
    return tuple(record[name] for name in ("data", "per_class", "in_all", "split", "method"))


def read_results(settings: Settings) -> dict[tuple[Any, ...], Record]:
    """Return the cells there are; of two records of one the later counts."""
    path = Path(settings.results_file)
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {cell_of(record): record for record in map(json.loads, lines)}


def missing_cells(settings: Settings) -> Iterator[list[Record]]:
    """Give the cells that are to be run, those of one size, data set and method together."""
    known = read_results(settings)
    sizes = [(size, None) for size in settings.per_class] + [(None, size) for size in settings.in_all]
    for (per_class, in_all), data, method in product(sizes, named(settings.train_file), settings.methods):
        common = {"data": data, "per_class": per_class, "in_all": in_all, "method": method}
        common |= {"setfit_iterations": settings.setfit_iterations} if method == "setfit" else {}
        block = [common | {"split": split} for split in range(settings.splits)]
        yield [cell for cell in block if method in settings.again or cell_of(cell) not in known]


def load_tables(settings: Settings, data: str) -> tuple[Any, Any]:
    """Return a data set's labelled rows and its test rows, the same number as in the cells there are."""
    from ulmfit_pipe.studies.grid.tables import load_labelled_tables

    found = load_labelled_tables(
        [named(settings.train_file)[data]],
        named(settings.test_file)[data],
        text_column=(settings.text_column,),
        label_column=settings.label_column,
        test_rows=settings.test_rows,
        say=lambda line: print(f"{data}: {line}"),
    )
    before = {record["test_rows"] for record in read_results(settings).values() if record["data"] == data}
    if before - {len(found.test)}:
        raise ValueError(
            f"{settings.results_file} has cells of {data} with {max(before)} test rows, now there are "
            f"{len(found.test)}; take the same --test_rows, or another --results_file"
        )
    return found.train, found.test


def draw(table: Any, cell: Record) -> Any:
    """Return the training rows of a cell, the same for all methods."""
    import numpy as np

    from ulmfit_pipe.studies.grid.tables import first_rows

    labels, size = np.asarray(table["label"]), cell["per_class"] or cell["in_all"]
    counts = np.bincount(labels)
    if size > (counts.min() if cell["per_class"] else len(labels)):
        kind = "of each class" if cell["per_class"] else "in all"
        raise ValueError(f"{cell['data']} has no {size:,} rows {kind} to draw; take smaller sizes or leave it out")
    if cell["in_all"]:
        return first_rows(table, size, seed=cell["split"])
    random = np.random.default_rng(cell["split"])
    drawn = [random.permutation(np.flatnonzero(labels == number))[:size] for number in range(len(counts))]
    return table.select(random.permutation(np.concatenate(drawn)).tolist())


def write_rows(table: Any, path: str) -> str:
    """Write texts and labels as CSV and return the path."""
    names = table.features["label"].names
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows((row["text"], names[row["label"]]) for row in table)
    return path


def run_cells(block: Sequence[Record], tables: tuple[Any, Any], settings: Settings) -> str:
    """Train and test cells of one method in a process of their own; return the last line of one that failed."""
    train, test = tables
    results, peer = Path(settings.results_file).absolute(), METHODS[block[0]["method"]].peer
    with tempfile.TemporaryDirectory() as place:
        common = {
            "encoder": settings.encoder,
            "language_model": settings.language_model,
            "test_file": write_rows(test, f"{place}/test.csv"),
            "static_model": str(results.with_name("static_model")),
            "results": str(results),
        }
        jobs = []
        for cell in block:
            folder = f"{place}/{cell['split']}"
            rows = write_rows(draw(train, cell), f"{folder}.csv")
            about = {**cell, "classes": len(test.features["label"].names), "test_rows": len(test)}
            jobs.append({**common, "cell": about, "train_file": rows, "folder": folder})
        Path(place, "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
        command = [settings.peers_python if peer else sys.executable, __file__, "--worker", f"{place}/jobs.json"]
        surroundings = {**os.environ, **ONE_THREAD}
        done = subprocess.run(command, env=surroundings, capture_output=True, encoding="utf-8", check=False)
    return (done.stderr.strip() or "no word").splitlines()[-1] if done.returncode else ""


# The table and the picture


def size_of(record: Record) -> str:
    """Return a data set and a number of labels in words."""
    size = f"{record['per_class']} a class" if record["per_class"] else f"{record['in_all']:,} in all"
    return f"{record['data']}, {size}"


def in_words(records: Sequence[Record], splits: int) -> str:
    """Return mean and spread of the accuracy, and CPU seconds of training and of prediction."""
    accuracies = [100 * record["accuracy"] for record in records]
    spread = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
    fewer = f" ({len(records)})" if len(records) < splits else ""
    seconds = [statistics.mean(record[f"{part}_seconds"] for record in records) for part in ("training", "prediction")]
    return f"{statistics.mean(accuracies):.1f}{spread}{fewer}, {seconds[0]:.0f} + {seconds[1]:.0f} s"


def markdown_table(records: Sequence[Record]) -> str:
    """Return a row for each data set and size, a column for each method, and what must be known of the numbers."""
    methods = [name for name in METHODS if any(record["method"] == name for record in records)]
    found: dict[str, dict[str, list[Record]]] = {}
    for record in sorted(records, key=lambda one: (one["data"], one["in_all"] or 0, one["per_class"] or 0)):
        found.setdefault(size_of(record), {}).setdefault(record["method"], []).append(record)
    lines = [f"| labels | {' | '.join(METHODS[name].title for name in methods)} |", "|---" * (len(methods) + 1) + "|"]
    notes: dict[str, set[str]] = {}
    for size, of_method in found.items():
        splits = max(map(len, of_method.values()))
        each = [in_words(of_method[name], splits) if name in of_method else "" for name in methods]
        lines.append(f"| {size} | {' | '.join(each)} |")
        for record in sum(of_method.values(), []):
            notes.setdefault(f"{record['test_rows']} test rows", set()).add(record["data"])
            if record["method"] == "setfit":
                notes.setdefault(f"SetFit with num_iterations {record['setfit_iterations']}", set()).add(size)
    about = (
        "Accuracy in %, mean ± standard deviation over draws of the training rows (their number in brackets where "
        "another method has more); CPU seconds of one thread, training + prediction of the test rows."
    )
    return "\n".join([*lines, "", about, *(f"{note}: {'; '.join(sorted(where))}." for note, where in notes.items())])


def panels_of(records: Sequence[Record]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Return for each data set and method the test errors over the number of labels, for the picture."""
    errors: dict[tuple[str, str, int], list[float]] = {}
    for record in records:
        labels = record["in_all"] or record["per_class"] * record["classes"]
        errors.setdefault((record["data"], record["method"], labels), []).append(1 - record["accuracy"])
    panels: dict[str, dict[str, list[dict[str, float]]]] = {}
    for data, method in product(sorted({data for data, _, _ in errors}), METHODS):
        found = {labels: each for (*names, labels), each in errors.items() if names == [data, method]}
        points = [
            {"labels": labels, "error": statistics.mean(each), "lowest": min(each), "highest": max(each)}
            for labels, each in found.items()
        ]
        panels.setdefault(data, {}).update({METHODS[method].title: points} if points else {})
    return panels


def main() -> None:
    """Run what is missing, then show and draw all there is."""
    import ulmfit_pipe as up
    from ulmfit_pipe.reports.plots import plot_label_curves

    settings = up.parse_settings(Settings, description="Few labels: this package beside its peers on the same rows.")
    results, failed = Path(settings.results_file), []
    results.parent.mkdir(parents=True, exist_ok=True)
    tables: dict[str, tuple[Any, Any]] = {}
    for block in filter(None, missing_cells(settings)):
        data, name = block[0]["data"], f"{size_of(block[0])}, {block[0]['method']}"
        tables = {data: tables.get(data) or load_tables(settings, data)}
        problem = run_cells(block, tables[data], settings)
        known = read_results(settings)
        print(f"{name}: {problem or in_words([known[cell_of(cell)] for cell in block], len(block))}", flush=True)
        failed += [f"{name}: {problem}"] if problem else []
    if records := list(read_results(settings).values()):
        plot_label_curves(panels_of(records), path=results.with_suffix(".png"))
        results.with_suffix(".md").write_text(markdown_table(records) + "\n", encoding="utf-8")
        print(f"\n{markdown_table(records)}\n\npicture: {results.with_suffix('.png')}")
    if failed:
        raise ValueError(f"{len(failed)} times a method failed; the same command tries it again; {failed[0]}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2])
    else:
        from ulmfit_pipe import run_recipe

        run_recipe(main)
