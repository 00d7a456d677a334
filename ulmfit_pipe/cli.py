"""The command `ulmfit`: for each of its commands what it reads, runs and prints.

    ulmfit run --train_file train.csv --test_file test.csv --output_dir runs/reviews
    torchrun --nproc_per_node 2 -m ulmfit_pipe run --train_file train.csv --output_dir runs/reviews

Nothing is imported before it is needed: `ulmfit --help` and `ulmfit run --help` load no torch.
"""

import contextlib
import dataclasses
import io
import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import ulmfit_pipe
from ulmfit_pipe.console import output_to, print_line, send, working
from ulmfit_pipe.program import USER_ERROR, run_recipe
from ulmfit_pipe.settings.guides import GUIDES
from ulmfit_pipe.settings.parsing import nearest_names, parse_settings
from ulmfit_pipe.storage.atomic import write_atomic

TABLES = (
    "train_file",
    "validation_file",
    "test_file",
    "unlabelled_file",
    "input_file",
    "replay_file",
    "pool",
)  # name tables


@dataclass(frozen=True)
class Command:
    """A command of `ulmfit`.

    Attributes:
        settings: Public name of the settings class; its fields are the command's options.
        run: Does the work, prints the result and returns it for `--json` (one of `WITH_MODES`).
        help: One line.
        first: The setting whose name need not be written before its value, or values; or several of one value each.
        short: Words that stand for an option's name.
    """

    settings: str
    run: Callable[[Any], Any]
    help: str
    first: str | None = None
    short: Mapping[str, str] = field(default_factory=dict)


def main() -> None:
    """Run the command that `sys.argv` names; a mistake ends the program with one line and exit code 2."""
    word = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if word in ("--help", "-h"):
        print(_help())
    elif word == "--version":
        print(f"ulmfit_pipe {ulmfit_pipe.__version__}")
    elif word in COMMANDS:
        rest, first = sys.argv[2:], COMMANDS[word].first
        names = first.split() if first else []
        for place, value in enumerate(takewhile(lambda word: not word.startswith("-"), [*rest]) if names else ()):
            rest[2 * place : 2 * place + 1] = [f"--{names[min(place, len(names) - 1)]}", value]
        rest = [COMMANDS[word].short.get(part, part) for part in rest]
        sys.argv[:] = [f"ulmfit {word}", *rest]  # the name in its messages and in --help
        run_recipe(partial(run_command, word))
    else:
        nearest = nearest_names(word, list(COMMANDS))
        advice = f"did you mean {' or '.join(nearest)}? (ulmfit --help lists all)" if nearest else "see ulmfit --help"
        print(f"ulmfit: error: unknown command {ascii(word)}; {advice}", file=sys.stderr)
        raise SystemExit(USER_ERROR)


def run_command(name: str) -> None:
    """Read the settings of a command from `sys.argv`, do its work and print the result.

    Args:
        name: One of `COMMANDS`.
    """
    command = COMMANDS[name]
    mode = _output_mode(name, sys.argv)
    settings = parse_settings(getattr(ulmfit_pipe, command.settings), description=command.help, guide=GUIDES.get(name))
    if os.environ.get("WORLD_SIZE", "1") == "1":
        _refuse_missing_tables(settings)
    with mode(), working(f"ulmfit {name}"):
        result = command.run(settings)
        send("result", result)


def _output_mode(name: str, words: list[str]) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Take `--quiet` and `--json` out of a command's words, and return how its output is printed.

    Raises:
        SystemExit: Both are given, or the command has neither; code 2.
    """
    given = [flag for flag in MODES if flag in words]
    if not given:
        return contextlib.nullcontext
    why = ""
    if name not in WITH_MODES:
        why = f"{given[0]} is for {', '.join(WITH_MODES)}; {name} prints its result as it is: leave it out"
    elif len(given) > 1:
        why = (
            "--quiet and --json are both given; give one: --json has the log and the result as JSON, --quiet the result"
        )
    if why:
        print(f"{Path(words[0]).name}: error: {why}", file=sys.stderr)
        raise SystemExit(USER_ERROR)
    words[:] = [word for word in words if word != given[0]]
    return MODES[given[0]]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Print the result alone: no log, no bars."""
    with _notes_in_the_log(), output_to(lambda _kind, _value: None):
        yield


@contextlib.contextmanager
def _as_json() -> Iterator[None]:
    """Print log, epochs and result as JSON, one object in a line, and nothing else."""
    stream = sys.stdout

    def show(kind: str, value: Any) -> None:
        """Print one object, in one call, since a thread prints too."""
        stream.write(json.dumps({kind: _plain(value)}, allow_nan=False) + "\n")
        stream.flush()

    with _notes_in_the_log(), output_to(show), contextlib.redirect_stdout(io.StringIO()):
        yield


class _Notes(logging.Handler):
    """Prints each note as a line of the log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a note."""
        print_line(record.getMessage())


@contextlib.contextmanager
def _notes_in_the_log() -> Iterator[None]:
    """Print what the package's loggers note as lines of the log, instead of on the other stream."""
    handler, logger = _Notes(logging.WARNING), logging.getLogger("ulmfit_pipe")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _plain(value: Any) -> Any:
    """Return a result as strict JSON has it: NaN and infinity are null; paths and types that JSON lacks are texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


WITH_MODES = (
    *("run", "predict", "demo", "finetune-lm", "train-classifier", "lr-find", "images", "pretrain-lm"),
    *("low-shot", "ablation", "transferability"),
)  # commands that return a result
MODES = {"--quiet": _quiet, "--json": _as_json}


def _refuse_missing_tables(settings: Any) -> None:
    """Raise where a table's file does not exist, before torch is imported, which takes seconds."""
    for name in TABLES:
        given = getattr(settings, name, None)
        for table in [given] if isinstance(given, str) else given or ():
            if not Path(table).exists() and not any(mark in table for mark in ":*?["):
                from ulmfit_pipe.data.tables.readers import KNOWN_SUFFIXES, open_rows

                if Path(table).suffix.lower() in KNOWN_SUFFIXES:
                    open_rows(table)  # its sentence says what is there instead


def _help() -> str:
    longest = max(map(len, COMMANDS))
    lines = [f"  {name:<{longest}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ulmfit COMMAND [--config FILE ...] [--name VALUE ...]",
            "",
            "Text classification by the ULMFiT method, and what belongs to it. Commands:",
            "",
            *lines,
            "",
            "Training commands and predict take --quiet (errors and the result only) or --json (log, epochs and result",
            "as JSON, one object in a line).",
            "",
            "ulmfit COMMAND --help has the settings of one that most people need, ulmfit COMMAND --help all lists all.",
            "Several processes: torchrun --nproc_per_node 2 -m ulmfit_pipe COMMAND ..., or accelerate launch -m",
            "ulmfit_pipe COMMAND ...",
        ]
    )


# The commands


def _run(settings: Any) -> Any:
    metrics = ulmfit_pipe.run_pipeline(settings)
    print(ulmfit_pipe.metrics_table(metrics))
    folder = metrics["classifier"]
    if folder is None:
        print("these are scores of the folds; the same command without --folds trains the classifier to use")
        return metrics
    print(f"the classifier is in {folder}; use it with")
    print(f"  ulmfit predict --model {shlex.quote(folder)} --input_file FILE --output_file OUT.csv")
    print(f'  TextPipeline.load({_quoted(folder)}).predict(["..."])')
    return metrics


def _predict(settings: Any) -> Any:
    summary = ulmfit_pipe.predict_file(settings)
    print(summary)
    return summary


def _check_data(settings: Any) -> None:
    found = ulmfit_pipe.check_data(settings)
    print(ulmfit_pipe.describe_problems(found))
    if settings.output_file is not None:
        print(f"all {len(found):,} rows to look at: {settings.output_file}")


def _explain(settings: Any) -> None:
    explanations = ulmfit_pipe.explain_texts(settings)
    for each in explanations:
        print(each.coloured() if sys.stdout.isatty() else each)
    if settings.output_file is not None:
        page = "<!doctype html><meta charset=utf-8>\n" + "\n".join(each._repr_html_() for each in explanations) + "\n"
        write_atomic(settings.output_file, page.encode())
        print(f"page: {settings.output_file}")


def _evaluate(settings: Any) -> None:
    scores = ulmfit_pipe.evaluate_file(settings)
    wish = scores.pop("at_precision", None)
    print(ulmfit_pipe.metrics_table({"test": scores}))
    if wish is not None:
        print(f"precision   {wish['line']}")
    if settings.output_file is not None:
        print(f"written to {settings.output_file}")


def _serve(settings: Any) -> None:
    ulmfit_pipe.serve(settings)


def _report(settings: Any) -> None:
    print(ulmfit_pipe.make_report(settings))


def _pretrain_language_model(job: Any) -> Any:
    if job.model is not None and job.language_model.plan == "preset":
        job = replace(job, language_model=replace(job.language_model, plan="pretrain"))
    return _show_language_model(job, then="ulmfit run")


def _finetune_language_model(job: Any) -> Any:
    if job.model is None:
        raise ValueError("--model is missing: the folder of a pretrained language model; ulmfit pretrain-lm makes one")
    return _show_language_model(job, then="ulmfit train-classifier")


def _show_language_model(job: Any, *, then: str) -> Any:
    metrics = ulmfit_pipe.run_language_model(job)
    print(ulmfit_pipe.describe_perplexity(metrics["validation"]))
    print(f"the language model is in {job.output_dir}; give it to the next stage:")
    print(f"  {then} --model {shlex.quote(job.output_dir)} --train_file train.csv --output_dir runs/mine")
    return metrics


def _train_classifier(job: Any) -> Any:
    metrics = ulmfit_pipe.run_classifier(job)
    print(ulmfit_pipe.metrics_table(metrics))
    folder = shlex.quote(job.output_dir)
    print(f"the classifier is in {job.output_dir}; use it with")
    print(f"  ulmfit predict --model {folder} --input_file FILE --output_file OUT.csv")
    print("and continue from it when there is more labelled data, new classes too, with")
    print(f"  ulmfit update {folder} --train_file MORE.csv --output_dir NEW_FOLDER")
    return metrics


def _update(settings: Any) -> None:
    metrics = ulmfit_pipe.run_update(settings)
    print(ulmfit_pipe.metrics_table(metrics))
    if table := ulmfit_pipe.update_table(metrics):
        print(table)
    folder = shlex.quote(settings.output_dir)
    print(f"the updated classifier is in {settings.output_dir}; use it with")
    print(f"  ulmfit predict --model {folder} --input_file FILE --output_file OUT.csv")


def _label_next(settings: Any) -> None:
    print(ulmfit_pipe.label_next(settings))
    if settings.output_file is not None:
        print(f"written to {settings.output_file}; fill in its column label, then continue with")
        model, file = shlex.quote(settings.model), shlex.quote(settings.output_file)
        print(f"  ulmfit update {model} --train_file {file} --output_dir NEW_FOLDER")


def _find_learning_rate(job: Any) -> Any:
    result = ulmfit_pipe.find_learning_rate(job)
    print(f"{len(result.lrs)} of {job.num_steps} steps before the loss diverged")
    for name, lr in result.suggestions.items():
        print(f"{name:>8}  {lr:.2e}")
    for line in result.advice_lines():
        print(line)
    print(f"swept with these groups trained: {', '.join(result.trained)}")
    print(f"curve: {job.output_dir}/learning_rate.png")
    print(f"use it:  --{job.stage}.lr {result.taken:.1e}")
    return result


def _train_image_classifier(settings: Any) -> Any:
    metrics = ulmfit_pipe.run_image_pipeline(settings)
    print(ulmfit_pipe.metrics_table(metrics))
    print(ulmfit_pipe.thawing_table(metrics))
    folder = metrics["classifier"]
    print(f"the classifier is in {folder}; use it with")
    print(f'  ImagePipeline.load({_quoted(folder)}).predict(["image.jpg"])')
    return metrics


def _import_fastai(settings: Any) -> None:
    summary = ulmfit_pipe.import_fastai(settings)
    print(f"{summary.kind}: {', '.join(f'{name} {size:,}' for name, size in summary.sizes.items())}")
    if summary.labels:
        print(f"labels: {', '.join(summary.labels)}")
    print(f"it is in {summary.output_dir}; continue with")
    folder = shlex.quote(str(summary.output_dir))
    if summary.kind == "classifier":
        print(f"  ulmfit predict --model {folder} --input_file FILE --output_file OUT.csv")
        print(f"  ulmfit run --model {folder}/language_model --train_file OTHER_LABELS.csv --output_dir runs/mine")
    else:
        print(f"  ulmfit finetune-lm --model {folder} --train_file TEXTS.csv --output_dir runs/tuned")


def _export_fastai(settings: Any) -> None:
    summary = ulmfit_pipe.export_fastai(settings)
    for note in summary.notes:
        print(f"note: {note}")
    print(f"the {summary.kind} is in {summary.output_dir} as model.pth, encoder.pth and vocab.pkl; in fastai:")
    print("  from fastai.text.all import *")
    for line in summary.loading:
        print(f"  {line}")


def _low_shot(settings: Any) -> Any:
    results = ulmfit_pipe.run_low_shot(settings)
    if settings.stage == "language_model":
        print(f"language models: {', '.join(results['language_models'].values())}")
        return results
    print(f"\n{results['table']}\n")
    print(f"picture: {settings.figure or f'{settings.output_dir}/curve.png'}")
    return results


def _ablation(settings: Any) -> Any:
    results = ulmfit_pipe.run_ablation(settings)
    if settings.stage != "plans":
        print(f"\n{results['table']}")
    return results


def _transferability(settings: Any) -> Any:
    results = ulmfit_pipe.run_transferability(settings)
    print(f"\n{results['table']}\n\npicture: {results['figure']}\n\n{results['answer']}")
    return results


def _show_filters(settings: Any) -> None:
    shown = ulmfit_pipe.show_filters(settings)
    print(shown.changes)
    for name in shown.pictures:
        print(f"picture: {shown.output_dir / name}")


def _package_language_model(settings: Any) -> None:
    record = ulmfit_pipe.package_language_model(settings)
    print(f"{record['parameters']:,} parameters, {record['weight_bytes'] / 1e6:.1f} MB of weights")
    for name in ("perplexity", "perplexity_per_word", "bits_per_character"):
        if record["metrics"].get(name) is not None:
            print(f"{name.replace('_', ' ')}: {record['metrics'][name]:.3f}")
    print(f"sample: {record['sample']['text']}")
    folder = settings.output_dir
    print(f"the model is in {folder}, its card in {Path(folder) / 'README.md'}; use it:")
    print(f"  ulmfit run --model {shlex.quote(folder)} --train_file YOURS.csv --output_dir runs/mine")


def _push(settings: Any) -> None:
    print(f"the classifier is at {ulmfit_pipe.push(settings)}")


def _demo(settings: Any) -> Any:
    metrics = ulmfit_pipe.run_demo(settings)
    print(f"\n{metrics['table']}\n")
    for example in metrics["examples"]:
        print(f'"{example["text"]}"')
        print(f"  -> {example['label']} ({example['score']:.2f}), in truth {example['truth']}")
    print("\nseconds:", json.dumps(metrics["seconds"]))
    folder = metrics["classifier"]
    print(f"the classifier is in {folder}; try it:")
    code = f'from ulmfit_pipe import TextPipeline as T; print(T.load({_quoted(folder)}).predict(["..."]))'
    print(f"  python -c {shlex.quote(code)}")
    print("and with a table of your own, columns text and label:")
    model = shlex.quote(str(metrics["general_model"]))
    print(f"  ulmfit run --model {model} --train_file YOURS.csv --output_dir runs/mine")
    return metrics


def _write_configs(settings: Any) -> None:
    for source in sorted((Path(ulmfit_pipe.__file__).parent / "settings" / "accelerate").glob("*.yaml")):
        target, content = Path(settings.output_dir) / source.name, source.read_bytes()
        if target.exists() and target.read_bytes() != content:
            raise ValueError(f"{target} is there with another content; move it, or choose another folder")
        write_atomic(target, content)
        print(target)


def _quoted(folder: str) -> str:
    """Return a Python string literal."""
    return json.dumps(folder, ensure_ascii=False)


COMMANDS = {
    "run": Command(
        "PipelineSettings", _run, "Train a text classifier by ULMFiT: language model, then gradual unfreezing."
    ),
    "predict": Command("PredictFileSettings", _predict, "Predict every row of a table, or of several as one."),
    "explain": Command(
        "ExplainSettings", _explain, "Show which words of a text move a classifier towards its label.", first="model"
    ),
    "check-data": Command(
        "CheckDataSettings", _check_data, "Name the rows of a labelled table that may be wrong: repeats, label errors."
    ),
    "evaluate": Command("EvaluateSettings", _evaluate, "Score a classifier on a labelled table, with intervals."),
    "serve": Command("ServeSettings", _serve, "Serve a classifier over HTTP: labels, scores, why.", first="model"),
    "report": Command(
        "ReportSettings",
        _report,
        "Make a finished run's report.html again, or compare runs: ulmfit report DIR [DIR ...].",
        first="run_dir",
    ),
    "demo": Command("DemoSettings", _demo, "Run ULMFiT on docstrings of the installed libraries, beside baselines."),
    "finetune-lm": Command(
        "LanguageModelJob", _finetune_language_model, "Fine-tune a pretrained language model on the text of a task."
    ),
    "train-classifier": Command(
        "ClassifierJob", _train_classifier, "Train a classifier from a language model, an encoder or a classifier."
    ),
    "update": Command(
        "UpdateSettings", _update, "Continue a saved classifier on new labelled rows, new classes too.", first="model"
    ),
    "label-next": Command(
        "LabelNextSettings",
        _label_next,
        "Name the unlabelled rows to label next, and what their labels would buy.",
        first="model",
        short={"-n": "--n"},
    ),
    "lr-find": Command(
        "LearningRateJob", _find_learning_rate, "Sweep the learning rate of a stage and suggest values."
    ),
    "images": Command(
        "ImageSettings",
        _train_image_classifier,
        "Train an image classifier: a head on a frozen backbone, then gradual unfreezing.",
    ),
    "pretrain-lm": Command(
        "LanguageModelJob", _pretrain_language_model, "Train an AWD-LSTM language model on plain text."
    ),
    "package-lm": Command(
        "PackageSettings",
        _package_language_model,
        "Package a language model: float16 weights, tokenizer, record and model card.",
    ),
    "push": Command(
        "PushSettings", _push, "Upload a classifier to a model hub: ulmfit push DIR NAMESPACE/NAME.", first="model repo"
    ),
    "import-fastai": Command(
        "ImportFastaiSettings", _import_fastai, "Make a model folder out of a fastai .pth and its .pkl vocabulary."
    ),
    "export-fastai": Command(
        "ExportFastaiSettings", _export_fastai, "Write a model as .pth and .pkl files that fastai 2.8 loads."
    ),
    "show-filters": Command(
        "ShowFiltersSettings",
        _show_filters,
        "Draw filters, activations and weight changes, before and after fine-tuning.",
    ),
    "low-shot": Command("LowShotSettings", _low_shot, "Test error against the number of labels, beside baselines."),
    "ablation": Command(
        "AblationSettings",
        _ablation,
        "Test error, seconds and steps of different ways to unfreeze, with equal epochs.",
    ),
    "transferability": Command(
        "TransferabilitySettings",
        _transferability,
        "Accuracy against the number of copied layers: own, another task's, or random.",
    ),
    "configs": Command(
        "ConfigsSettings",
        _write_configs,
        "Write accelerate's configuration files for several GPUs or machines: ulmfit configs DIR.",
        first="output_dir",
    ),
}
