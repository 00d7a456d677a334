"""This package beside fastai 2.8: the same work on the same tokens, one thread a side, the sides in turn.

    python recipes/benchmark_fastai.py --train_file imdb/train.csv --peers_python env_fastai/bin/python
    python recipes/benchmark_fastai.py --train_file imdb/train.csv --peers_python env_fastai/bin/python \
        --size built-in --works [recipe] --rows 1000 --test_rows 1000

fastai has an environment of its own:

    python -m venv env_fastai && echo torch==2.13.0 > torch.txt
    env_fastai/bin/pip install -c torch.txt fastai==2.8.12

Works (each timed in a process of its own, `repeats` times a side; figures are medians of CPU seconds):

lm        steps of a language model on random tokens
head      an epoch of the classifier's head alone, on real texts
all       an epoch of all layers
recipe    the forum's recipe: head 1 epoch, freeze_to(-2) 1, freeze_to(-3) 1, all 2; with test accuracy
predict   scores of the test texts

Sides: ours, ours with frozen layers run once a text and without dropout (`cached`, recipe only), both with bf16 where
`--bf16 true`, and fastai. The size `paper` (400/1152/3, 60,000 words) has random weights; `built-in` starts both sides
from awd-lstm-en, so that accuracies mean something. Texts become ids once, by ours, for all sides.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

Record = dict[str, Any]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SIZES = {"paper": (60_000, 400, 1152), "built-in": (12_000, 256, 512)}  # vocabulary, embedding, hidden
LM_SHAPE = {"paper": (32, 72), "built-in": (16, 64)}  # batch, bptt
LM_STEPS = 6  # the first is not counted
BATCH, BPTT = 32, 72  # of the classifier
DROP_MULT = 0.5
PAD = 1  # the id of padding on both sides
# freeze_to(n), epochs, peak rates from the first group that trains to the last
RECIPE = [(-1, 1, 2e-2), (-2, 1, (1e-2 / 2.6**4, 1e-2)), (-3, 1, (5e-3 / 2.6**4, 5e-3)), (0, 2, (1e-3 / 2.6**4, 1e-3))]
WORKS = ("lm", "head", "all", "recipe", "predict")


@dataclass(frozen=True)
class Settings:
    """What to time.

    Attributes:
        train_file: Labelled table whose texts are read.
        peers_python: The Python of an environment with fastai.
        size: ``paper`` or ``built-in``.
        works: Some of lm, head, all, recipe, predict.
        rows: Texts to train on, drawn at random.
        test_rows: Further texts, to predict.
        repeats: Runs of every side.
        gradient_window: Tokens at a text's end that ours keeps gradients of, up to a window more; fastai's 1,440.
        bf16: Time ours with bf16 too (on processors that have it).
        results_file: JSON of every run.
        text_column: Column of the texts.
        label_column: Column of the labels.
    """

    train_file: str
    peers_python: str
    size: str = "paper"
    works: list[str] = field(default_factory=lambda: list(WORKS))
    rows: int = 256
    test_rows: int = 64
    repeats: int = 3
    gradient_window: int = 1368
    bf16: bool = False
    results_file: str = "benchmark_fastai.json"
    text_column: str = "text"
    label_column: str = "label"


# ---- ours


def our_classifier(job: Record) -> Any:
    """Return a Learner of our classifier on the job's tokens."""
    from accelerate import Accelerator
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification

    import ulmfit_pipe as up
    from ulmfit_pipe.stages.pretrained_files import load_pretrained

    sizes = {"embedding_size": job["embedding"], "hidden_size": job["hidden"], "num_hidden_layers": 3}
    windows = {
        "bptt": BPTT,
        "gradient_window": job["gradient_window"],
        "num_labels": job["labels"],
        "pad_token_id": PAD,
    }
    drops = {"output_dropout": 0.4, "hidden_dropout": 0.3, "input_dropout": 0.4, "embedding_dropout": 0.05}
    drops = {name: value * DROP_MULT for name, value in (drops | {"weight_dropout": 0.5}).items()}
    if job["pretrained"]:
        kind = AutoModelForSequenceClassification
        model = load_pretrained(kind, job["pretrained"], use_safetensors=True, **windows, **drops)
    else:
        config = up.AwdLstmConfig(vocab_size=job["vocab"], **sizes, **windows, **drops)
        model = up.AwdLstmForSequenceClassification(config)

    def batches(part: str, **options: Any) -> Any:
        table = Dataset.from_dict({"input_ids": job[part], "label": job[f"{part}_labels"]})
        return up.ClassifierBatches(
            table, batch_size=BATCH, pad_token_id=PAD, seed=0, num_labels=job["labels"], **options
        )

    cached = job["side"] == "ours, cached"
    options = up.TrainingOptions(cache_frozen=cached, frozen_dropout="off" if cached else "on", progress=False)
    task = up.Task(
        batches("train", shuffle=True),
        up.ClassificationObjective(alpha=2.0, beta=1.0),
        valid_batches=batches("test", shuffle=False),
        new_metric=partial(up.ClassificationMetric, job["labels"]),
    )
    groups = up.split_layer_groups(model, [spec.prefixes for spec in up.layer_group_specs(model)])
    accelerator = Accelerator(mixed_precision="bf16" if job["bf16"] else "no")
    return up.Learner(model, groups, task, options=options, accelerator=accelerator, say=lambda line: None)


def our_language_model(job: Record) -> Any:
    """Return a function that trains one step of our language model."""
    import torch
    from accelerate import Accelerator

    import ulmfit_pipe as up

    sizes = {"embedding_size": job["embedding"], "hidden_size": job["hidden"], "num_hidden_layers": 3}
    model = up.AwdLstmForCausalLM(up.AwdLstmConfig(vocab_size=job["vocab"], **sizes))
    tokens = torch.randint(2, job["vocab"], (job["batch"], job["bptt"] + 1))
    window = {"input_ids": tokens[:, :-1], "targets": tokens[:, 1:]}

    class Window(list[Any]):
        def set_epoch(self, epoch: int) -> None:
            """Change nothing."""

    groups = up.split_layer_groups(model, [spec.prefixes for spec in up.layer_group_specs(model)])
    task = up.Task(Window([window] * (LM_STEPS - 1)), up.SequenceObjective(decodes=True))
    accelerator = Accelerator(mixed_precision="bf16" if job["bf16"] else "no")
    options = up.TrainingOptions(progress=False)
    return up.Learner(
        model, groups, task, options=options, accelerator=accelerator, pretrained=False, say=lambda line: None
    )


def run_ours(job: Record) -> Record:
    """Do the job's work with this package."""
    work = job["work"]
    if work == "lm":
        learner = our_language_model(job)
        learner.fit(1, 1e-3)
        return timed(lambda: learner.fit(1, 1e-3))
    learner = our_classifier(job)
    if work == "predict":
        return timed(lambda: learner.validate(), accuracy=True)
    learner.task = replace(learner.task, valid_batches=None)
    if work != "recipe":
        learner.freeze_to(-1 if work == "head" else 0)
        return timed(lambda: learner.fit(1, 1e-3))
    found = timed(lambda: [our_phase(learner, *phase) for phase in RECIPE])
    return found | {"accuracy": learner.validate(our_classifier(job).task.valid_batches)["accuracy"]}


def our_phase(learner: Any, n: int, epochs: int, lr: Any) -> None:
    """Train one phase of the recipe."""
    learner.freeze_to(n)
    learner.fit_one_cycle(epochs, slice(*lr) if isinstance(lr, tuple) else lr)


# ---- fastai


def fastai_classifier(job: Record) -> Any:
    """Return a fastai Learner of the same classifier on the same tokens."""
    import torch
    from fastai.text import all as ft

    sizes = {"emb_sz": job["embedding"], "n_hid": job["hidden"], "n_layers": 3, "pad_token": PAD}
    config = {**ft.awd_lstm_clas_config, **sizes}
    model = ft.get_text_classifier(
        ft.AWD_LSTM, job["vocab"], job["labels"], seq_len=BPTT, config=config, drop_mult=DROP_MULT, max_len=20 * BPTT
    )

    def loader(part: str, **options: Any) -> Any:
        items = [
            (ft.TensorText(torch.tensor(ids)), ft.TensorCategory(label))
            for ids, label in zip(job[part], job[f"{part}_labels"], strict=True)
        ]
        pad = partial(ft.pad_input_chunk, pad_idx=PAD, pad_first=True, seq_len=BPTT)
        return ft.SortedDL(
            items, sort_func=lambda item: len(item[0]), bs=BATCH, before_batch=pad, num_workers=0, **options
        )

    loaders = ft.DataLoaders(loader("train", shuffle=True), loader("test", shuffle=False))
    learner = ft.Learner(
        loaders,
        model,
        loss_func=ft.CrossEntropyLossFlat(),
        splitter=ft.awd_lstm_clas_split,
        cbs=ft.rnn_cbs(2.0, 1.0),
        metrics=ft.accuracy,
        moms=(0.8, 0.7, 0.8),
    )
    if job["pretrained"]:
        ft.load_model(job["encoder"], model[0].module, opt=None, with_opt=False)
    return learner


def run_fastai(job: Record) -> Record:
    """Do the job's work with fastai."""
    from fastai.text import all as ft

    work = job["work"]
    if work == "lm":
        return fastai_language_model(job)
    learner = fastai_classifier(job)
    with learner.no_bar(), learner.no_logging():
        if work == "predict":
            return timed(lambda: learner.get_preds(dl=learner.dls.valid), accuracy=False)
        test, learner.dls.loaders[1] = learner.dls.valid, None
        learner.dls.loaders[1] = test.new([test.dataset[0]] * 2)  # fit() always validates: on two texts
        if work != "recipe":
            learner.freeze_to(-1 if work == "head" else 0)
            return timed(lambda: learner.fit(1, 1e-3))

        def phase(n: int, epochs: int, lr: Any) -> None:
            learner.freeze_to(n)
            learner.fit_one_cycle(epochs, slice(*lr) if isinstance(lr, tuple) else lr)

        found = timed(lambda: [phase(*settings) for settings in RECIPE])
        scores, labels = learner.get_preds(dl=test)
        return found | {"accuracy": float(ft.accuracy(scores, labels))}


def fastai_language_model(job: Record) -> Record:
    """Time fastai's steps on random tokens."""
    import torch
    from fastai.text import all as ft

    sizes = {"emb_sz": job["embedding"], "n_hid": job["hidden"], "n_layers": 3}
    model = ft.get_language_model(ft.AWD_LSTM, job["vocab"], config={**ft.awd_lstm_lm_config, **sizes})
    tokens = torch.randint(2, job["vocab"], (job["batch"], job["bptt"] + 1))
    batches = [(ft.LMTensorText(tokens[:, :-1]), ft.TensorText(tokens[:, 1:]))] * (LM_STEPS - 1)
    loader = ft.DataLoader(batches, bs=None, num_workers=0)
    learner = ft.Learner(
        ft.DataLoaders(loader, loader), model, loss_func=ft.CrossEntropyLossFlat(), cbs=ft.rnn_cbs(2.0, 1.0)
    )
    with learner.no_bar(), learner.no_logging():
        train = partial(learner.fit, 1, 1e-3, cbs=ft.TrainEvalCallback())
        learner.dls.loaders[1] = ft.DataLoader(batches[:1], bs=None, num_workers=0)
        train()
        return timed(train)


# ---- both


def timed(work: Any, *, accuracy: bool = False) -> Record:
    """Do the work and return its CPU seconds, the peak memory in GB, and the accuracy that it returns."""
    started = time.process_time()
    found = work()
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"seconds": seconds, "peak_gb": peak} | ({"accuracy": found["accuracy"]} if accuracy else {})


def jobs_of(settings: Settings) -> Record:
    """Return what every job of these settings needs: sizes, and the tokens of the texts."""
    import ulmfit_pipe as up
    from ulmfit_pipe.stages.artifacts import load_tokenizer

    table = up.load_table(
        settings.train_file, text_columns=(settings.text_column,), label_column=settings.label_column
    ).shuffle(seed=0)
    table = table.select(range(settings.rows + settings.test_rows))
    builtin = up.builtin_models()["awd-lstm-en"]
    ids = load_tokenizer(str(builtin))(list(table["text"]))["input_ids"]
    vocab, embedding, hidden = SIZES[settings.size]
    batch, bptt = LM_SHAPE[settings.size]
    cut = settings.rows
    return {
        "vocab": vocab,
        "embedding": embedding,
        "hidden": hidden,
        "gradient_window": settings.gradient_window,
        "batch": batch,
        "bptt": bptt,
        "train": ids[:cut],
        "test": ids[cut:],
        "train_labels": table["label"][:cut],
        "test_labels": table["label"][cut:],
        "labels": len(table.features["label"].names),
        "pretrained": str(builtin) if settings.size == "built-in" else None,
    }


def main() -> None:
    """Run every side in turn and print medians and ratios."""
    import ulmfit_pipe as up

    settings = up.parse_settings(Settings, description="Time this package beside fastai on the same work.")
    sides = ["ours", "fastai", "ours, cached", *(["ours, bf16", "ours, cached, bf16"] if settings.bf16 else [])]
    results = []
    with tempfile.TemporaryDirectory() as place:
        job = jobs_of(settings)
        if job["pretrained"]:
            up.export_fastai(up.ExportFastaiSettings(model="awd-lstm-en", output_dir=f"{place}/exported"))
            job["encoder"] = f"{place}/exported/encoder.pth"
        for work in settings.works:
            of_work = [side for side in sides if work == "recipe" or "cached" not in side]
            for _ in range(settings.repeats):
                for side in of_work:
                    found = side_of(job | {"work": work, "side": side}, place, settings.peers_python)
                    results.append({"work": work, "side": side} | found)
            show(work, of_work, results)
            Path(settings.results_file).write_text(json.dumps(results, indent=1), encoding="utf-8")


def side_of(job: Record, place: str, peers_python: str) -> Record:
    """Do one side's work in a process of its own."""
    Path(place, "job.json").write_text(json.dumps(job | {"bf16": job["side"].endswith("bf16")}), encoding="utf-8")
    python = peers_python if job["side"] == "fastai" else sys.executable
    command = [python, __file__, "--worker", f"{place}/job.json"]
    done = subprocess.run(command, env=os.environ | ONE_THREAD, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    found: Record = json.loads(done.stdout.splitlines()[-1])
    return found


def show(work: str, sides: list[str], results: list[Record]) -> None:
    """Print a line a side: median seconds, its share of fastai's, peak memory, accuracy."""

    def median(side: str, name: str) -> float:
        values = [run[name] for run in results if run["work"] == work and run["side"] == side and name in run]
        return statistics.median(values) if values else float("nan")

    fastai = median("fastai", "seconds")
    for side in sides:
        seconds = median(side, "seconds")
        numbers = f"{seconds:9.2f} s {seconds / fastai:6.2f} {median(side, 'peak_gb'):6.2f} GB"
        print(f"{work:8} {side:20} {numbers} accuracy {median(side, 'accuracy'):.3f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        given = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
        print(json.dumps((run_fastai if given["side"] == "fastai" else run_ours)(given)))
    else:
        import ulmfit_pipe

        ulmfit_pipe.run_recipe(main)
