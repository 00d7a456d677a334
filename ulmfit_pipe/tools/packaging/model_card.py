"""A language model's card: Markdown with the hub's YAML front matter, from the plain record of its packaging.

Every number comes from the record; what the record lacks is given as not recorded.
"""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

UNKNOWN = "not recorded"
MEGA = 1_000_000
HOUR = 3600.0
WIDTH = 100  # of the lines of a command
# Of a model from scratch; one that is resumed from brings them along.
_SETTINGS_FROM_SCRATCH = (
    "tokenizer",
    "tokenizer_of",
    "vocab_size",
    "min_count",
    "embedding_size",
    "hidden_size",
    "num_hidden_layers",
)


def model_card(record: Mapping[str, Any]) -> str:
    """Return the card as text.

    Args:
        record: What ``stage.json`` of a packaged language model holds.
    """
    parts = (
        _front_matter(record),
        _introduction(record),
        _how_to_load(record),
        _text_and_licence(record),
        _training(record),
        _measured(record),
        _sample(record),
        _limits(record),
        _going_on(record),
    )
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _front_matter(record: Mapping[str, Any]) -> str:
    metrics = record["metrics"]
    values = [
        {"type": "perplexity", "name": f"perplexity of a {unit}", "value": round(metrics[name], 3)}
        for name, unit in (("perplexity", "token"), ("perplexity_per_word", "word"))
        if metrics.get(name) is not None
    ]
    dataset = {"name": record["data_note"], "type": record["measured_on"] or "held-out text"}
    header = {
        "language": ["en"],
        "license": record["license"],
        "library_name": "ulmfit_pipe",
        "pipeline_tag": "text-generation",
        "tags": ["awd-lstm", "ulmfit", "language-model", "transfer-learning"],
        "model-index": [
            {
                "name": record["name"],
                "results": [{"task": {"type": "text-generation"}, "dataset": dataset, "metrics": values}],
            }
        ],
    }
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---"


def _introduction(record: Mapping[str, Any]) -> str:
    sizes, direction = record["sizes"], record["direction"]
    twin = (
        ""
        if direction == "forward"
        else " It reads text from its end to its start, for the second half of an ensemble."
    )
    return f"""# {record["name"]}

An English language model to start text classifiers from, by the ULMFiT method: an AWD-LSTM of
{sizes["num_hidden_layers"]} layers (embedding {sizes["embedding_size"]}, hidden {sizes["hidden_size"]}) over
{sizes["vocab_size"]:,} tokens ({record["tokenizer"]}), {record["parameters"]:,} parameters. It reads {direction}.{twin}
The weights take {record["weight_bytes"] / MEGA:.1f} MB in float16 and are loaded as float32."""


def _how_to_load(record: Mapping[str, Any]) -> str:
    name = record["name"]
    backward = record["direction"] == "backward"
    both = f"""pipe.fit(
    "train.csv", output_dir="runs/mine", model_backward="{name}", ensemble=True
)  # columns text and label"""
    fit = both if backward else 'pipe.fit("train.csv", output_dir="runs/mine")  # columns text and label'
    start = "awd-lstm-en" if backward else name
    return f"""## How to load it

It lies in the package, so no network is asked:

```python
from ulmfit_pipe import TextPipeline

pipe = TextPipeline("{start}")
{fit}
print(pipe.predict(["It works."]))
```

As a transformers model:

```python
import ulmfit_pipe.stages  # makes transformers know the architecture
from transformers import AutoModelForCausalLM, AutoTokenizer
from ulmfit_pipe import builtin_models

folder = builtin_models()["{name}"]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
```

{_on_the_command_line(name, backward)}"""


def _on_the_command_line(name: str, backward: bool) -> str:
    if backward:
        return f"""On the command line `ulmfit run` and `ulmfit low-shot` take `--model_backward {name}`, for an
ensemble; `ulmfit pretrain-lm`, `ulmfit finetune-lm` and `ulmfit run` without an ensemble take
`--model {name} --language_model.direction backward`."""
    return f"""On the command line `ulmfit run` and `ulmfit low-shot` start from it by default;
`ulmfit pretrain-lm`, `ulmfit finetune-lm` and `ulmfit train-classifier` take `--model {name}`."""


def _text_and_licence(record: Mapping[str, Any]) -> str:
    return f"""## Text and licence

{record["data_note"]}

{record["license_note"]}"""


def _training(record: Mapping[str, Any]) -> str:
    legs: Sequence[Mapping[str, Any]] = record["lineage"]
    seen = sum(leg["tokens_seen"] for leg in legs)
    seconds = [leg["seconds"] for leg in legs]
    hours = UNKNOWN if None in seconds else f"{sum(seconds) / HOUR:.2f} hours"
    hardware = record["hardware"] or _hardware(legs)
    versions = record.get("trained_with") or {}
    start = legs[0]["started_from"] if legs else None
    before = f"\nThe first leg started from `{start}`, whose own training was not recorded.\n" if start else ""
    return f"""## Training

- Tokens seen: {seen:,} (over {len(legs)} leg{"s" if len(legs) != 1 else ""} of training).
- Wall time: {hours}, tokenizing and measuring included.
- Hardware: {hardware}.
- Precision: {_listed(leg["precision"] for leg in legs)}; the weights themselves were float32.
- Made with: {", ".join(f"{name} {number}" for name, number in versions.items()) or UNKNOWN}.
{before}
{_legs_table(legs)}

Perplexities in the table were measured at the end of each leg, in its precision, on the text that it held out."""


def _hardware(legs: Sequence[Mapping[str, Any]]) -> str:
    known = []
    for leg in legs:
        if leg["processor"] is not None:
            threads = f"{leg['processes']} x {leg['threads']} thread{'s' if leg['threads'] != 1 else ''}"
            known.append(f"{leg['processor']} ({threads})")
    return _listed(known)


def _listed(values: Any) -> str:
    """Return the different values, in their order."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None)) or UNKNOWN


def _legs_table(legs: Sequence[Mapping[str, Any]]) -> str:
    head = (
        "leg",
        "date",
        "started from",
        "text",
        "tokens seen",
        "tokens of the text",
        "steps",
        "hours",
        "precision",
        "perplexity a token",
        "a word",
        "bits a character",
        "seed",
    )
    rows = [
        (
            str(number),
            _cell(leg["date"]),
            leg["started_from"] or "random weights",
            _listed(leg["train_files"] or []),
            f"{leg['tokens_seen']:,}",
            f"{leg['tokens_available']:,}",
            f"{leg['steps']:,}",
            _cell(None if leg["seconds"] is None else leg["seconds"] / HOUR, ".2f"),
            _cell(leg["precision"]),
            _cell(leg["perplexity"], ".2f"),
            _cell(leg["perplexity_per_word"], ".1f"),
            _cell(leg["bits_per_character"], ".3f"),
            _cell(leg["seed"]),
        )
        for number, leg in enumerate(legs, start=1)
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def _cell(value: Any, form: str = "") -> str:
    return UNKNOWN if value is None else format(value, form)


def _measured(record: Mapping[str, Any]) -> str:
    metrics = record["metrics"]
    if record["measured_on"] is None:
        how = "Measured by the training stage on the text it held out, before the weights were rounded to float16."
    else:
        how = (
            f"Measured with these float16 weights, computing in {record['measured_in']}, on `{record['measured_on']}`."
        )
    return f"""## What it reached

| on held-out text | |
| --- | --- |
| perplexity a token | {_cell(metrics.get("perplexity"), ".2f")} |
| perplexity a word (words as white space cuts them) | {_cell(metrics.get("perplexity_per_word"), ".1f")} |
| bits a character | {_cell(metrics.get("bits_per_character"), ".3f")} |
| next token right | {_cell(metrics.get("token_accuracy"), ".1%")} |
| tokens measured | {_cell(metrics.get("n"), ",.0f")} |

{how} The perplexity a token depends on the vocabulary; compare with other models by word or by character."""


def _sample(record: Mapping[str, Any]) -> str:
    sample = record["sample"]
    quoted = "\n".join(f"> {line}".rstrip() for line in sample["text"].splitlines())
    what = "ends with the prompt" if record["direction"] == "backward" else "begins with the prompt"
    return f"""## A sample

`generate` with seed {sample["seed"]}, temperature {sample["temperature"]:g}, the {sample["top_k"]} likeliest tokens and
{sample["tokens"]} new tokens; the first that came, not the best of several. The text {what} `{sample["prompt"]}`:

{quoted}"""


def _limits(record: Mapping[str, Any]) -> str:
    return f"""## Limits

- It is small: {record["parameters"] / MEGA:.1f} million parameters. It knows the language's usual turns, not facts:
  what it writes holds together for a phrase or a sentence and is not to be believed.
- It reads English only, and writes as the text it read. Reviews, chat and code are strange to it until it is
  fine-tuned on such text, which is what the method does first.
- It knows nothing newer than its text.
- It has taken over what its text says, and what it leaves out, of people, places and beliefs; this bias was neither
  measured nor reduced. A classifier trained on it can inherit it: check it on your own data.
- It is made to start classifiers from, not to write for readers."""


def _going_on(record: Mapping[str, Any]) -> str:
    name, last = record["name"], (record["lineage"] or [{}])[-1]
    validation = record["measured_on"] or "validation.parquet"
    train = [
        ("ulmfit", "pretrain-lm"),
        ("--model", name),
        ("--train_file", "wikipedia.parquet"),
        ("--validation_file", validation),
        ("--output_dir", f"runs/{name}"),
        *_flags_of_training(record, last),
    ]
    package = [
        ("ulmfit", "package-lm"),
        ("--model", f"runs/{name}"),
        ("--name", name),
        ("--validation_file", validation),
        *([("--mixed_precision", record["measured_in"])] if record["measured_in"] not in (None, "fp32") else []),
        ("--output_dir", f"ulmfit_pipe/models/pretrained/{name}"),
    ]
    return f"""## Training it further, and replacing it

One command trains it further on more text, with the settings of its last leg and the next seed. One puts the result in
its place (in a clone of the project) and prints the perplexities of both; tell it `--data_note` and `--hardware` in
words.

```bash
{_command(train)}
{_command(package)}
```

`--max_seconds` ends the first in time, with a schedule that follows the clock; `--resume true` continues
after a stop."""


def _flags_of_training(record: Mapping[str, Any], last: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that a further training run needs to be trained as the last one was."""
    flags = [("--preset", record["preset"])]
    if last.get("precision") not in (None, "fp32"):
        flags.append(("--mixed_precision", last["precision"]))
    if last.get("seed") is not None:
        flags.append(("--seed", str(last["seed"] + 1)))
    if record["tokenizer"] == "word":  # a word vocabulary would be made anew
        flags.append(("--language_model.tokenizer", "keep"))
    for setting, value in record["settings"].items():
        if value is not None and setting not in _SETTINGS_FROM_SCRATCH:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            flags.append((f"--language_model.{setting}", text))
    return flags


def _command(parts: Sequence[tuple[str, str]]) -> str:
    """Put a command of flags and values on lines; a flag stays beside its value."""
    lines: list[str] = []
    for part in parts:
        words = shlex.join(part)
        if lines and len(lines[-1]) + len(words) < WIDTH:
            lines[-1] += f" {words}"
        else:
            lines.append(f"    {words}" if lines else words)
    return " \\\n".join(lines)
