"""Making a trained language model fit to be shipped: half the size on disk, no trace of the machine, and a model card.

The weights are rounded to float16 and load as float32 again. The card's content is taken from the record of the
training, and measured again on the rounded weights where a validation file is given.
"""

import copy
import re
from pathlib import Path, PurePath
from typing import Any

import torch
from safetensors.torch import save
from transformers import AutoModelForCausalLM

from ulmfit_pipe.data.tables.row_sources import reading_of
from ulmfit_pipe.data.tables.tables import load_table
from ulmfit_pipe.data.text.tokenization import UlmfitTokenizer
from ulmfit_pipe.models.quiet_transformers import quiet_transformers
from ulmfit_pipe.settings.model_files import PackageSettings
from ulmfit_pipe.stages.artifacts import (
    ArtifactError,
    load_model,
    load_tokenizer,
    read_stage,
    resolve_model,
    save_stage,
)
from ulmfit_pipe.stages.context import RunContext, context_of
from ulmfit_pipe.stages.presets import load_preset
from ulmfit_pipe.storage.atomic import write_atomic
from ulmfit_pipe.text.language_model_scores import score_language_model
from ulmfit_pipe.text.lineage import lineage_of, precision_name
from ulmfit_pipe.text.tables import VALIDATION
from ulmfit_pipe.tools.packaging.model_card import model_card

MOST_BYTES = 32_000_000  # of a built-in model's weights: it travels in the wheel
CARD_FILE = "README.md"
PROMPTS = {"forward": "The city lies on the", "backward": "in the nineteenth century."}


def package_language_model(settings: PackageSettings, *, context: RunContext | None = None) -> dict[str, Any]:
    """Write a language model's folder as it is shipped, with its model card.

    Args:
        settings: What to package, and notes for the card.
        context: Device and precision of measuring; logs the perplexities of a replaced model beside the new ones.

    Returns:
        What its ``stage.json`` holds.

    Raises:
        ArtifactError: The model has no record of its training, is too large, does not fit into float16, or its name
            contradicts its direction; or the output folder holds something else.
    """
    context = context or context_of(settings)
    source = Path(resolve_model(settings.model))
    trained = _training_record_of(source)
    network = load_model(source, AutoModelForCausalLM)
    tokenizer = load_tokenizer(source, config=network.config)
    _check_name(settings.name, network.config.direction)
    weights = _rounded_weights(network, source)
    record: dict[str, Any] = {
        "name": settings.name,
        "model": source.name,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "weight_bytes": len(weights),
        "direction": network.config.direction,
        "tokenizer": tokenizer.kind,
        "sizes": {name: getattr(network.config, name) for name in _SIZES},
        "metrics": _metrics(network, tokenizer, trained, settings, context),
        "measured_on": Path(settings.validation_file).name if settings.validation_file else trained.get("measured_on"),
        "measured_in": precision_name(context.accelerator.mixed_precision)
        if settings.validation_file
        else trained.get("measured_in"),
        "sample": _sample(network, tokenizer, settings),
        "lineage": without_paths(lineage_of(trained)),
        "settings": without_paths(_settings_of(trained)),
        "preset": _preset_of(trained),
        "trained_with": trained.get("trained_with", trained.get("versions")),
        **{name: getattr(settings, name) for name in ("hardware", "data_note", "license", "license_note")},
    }

    def write(folder: Path) -> None:
        network.save_pretrained(folder)
        write_atomic(folder / "model.safetensors", weights)
        tokenizer.save_pretrained(folder)
        write_atomic(folder / CARD_FILE, model_card(record).encode())

    if context.accelerator.is_main_process:
        replaced = read_stage(settings.output_dir)
        save_stage(settings.output_dir, stage="package", record=record, write=write)
        if replaced is not None:
            context.tell(f"replaced {settings.output_dir}: {compared_with(replaced, record)}")
    context.accelerator.wait_for_everyone()
    return record


def compared_with(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return a comparison of a packaged model's perplexities with those of the one it replaces, from their records."""
    parts = []
    for name, unit in (("perplexity", "token"), ("perplexity_per_word", "word")):
        before, after = (record["metrics"].get(name) for record in (old, new))
        if before is not None and after is not None:
            verdict = "no change" if after == before else f"{after / before - 1:+.1%}"
            parts.append(f"{before:.2f} -> {after:.2f} per {unit} ({verdict})")
    told = f"validation perplexity {', '.join(parts)}" if parts else "no perplexity of both is known"
    same_size = old["sizes"]["vocab_size"] == new["sizes"]["vocab_size"]
    ways = [_measuring_of(record, with_tokens=same_size) for record in (old, new)]
    if ways[0] != ways[1] or new["measured_on"] is None:
        told += f"; not to be compared: the old one was measured {ways[0]}, the new one {ways[1]}"
    return told if same_size else f"{told}; the vocabularies differ: compare by word"


def _measuring_of(record: dict[str, Any], *, with_tokens: bool) -> str:
    if record["measured_on"] is None:
        return "by its training on the text that this held out"
    tokens = f" ({record['metrics']['n']:,.0f} tokens)" if with_tokens and "n" in record["metrics"] else ""
    return f"on {record['measured_on']}{tokens} in {record['measured_in']}"


_SIZES = ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers")


def _training_record_of(source: Path) -> dict[str, Any]:
    record = read_stage(source) if source.is_dir() else None
    if record is None or not lineage_of(record):
        raise ArtifactError(
            f"{source} has no record of a language model's training (stage.json), so its card would be empty; give "
            "the folder that ulmfit pretrain-lm wrote"
        )
    return record


def _settings_of(trained: dict[str, Any]) -> dict[str, Any]:
    """Return the training's settings and metrics, from a stage's record or that of a packaged model."""
    return trained["identity"]["settings"] if "identity" in trained else trained.get("settings", {})


def _preset_of(trained: dict[str, Any]) -> str:
    return trained.get("identity", trained).get("preset", "fastai")


def _check_name(name: str, direction: str) -> None:
    if name.endswith("-backward") != (direction == "backward"):
        fitting = f"{name}-backward" if direction == "backward" else name.removesuffix("-backward")
        raise ArtifactError(f"the model reads text {direction}, so {name!r} would mislead; name it {fitting!r}")


def _rounded_weights(network: Any, source: Path) -> bytes:
    """Round a network's weights to float16 in place (they stay float32) and return them as a safetensors file.

    Raises:
        ArtifactError: A weight is too large for float16, or all of them are too many.
    """
    halves, known = {}, set()
    for name, value in network.state_dict().items():
        if value.data_ptr() in known:  # tied weights are stored once, under their first name
            continue
        known.add(value.data_ptr())
        half = value.half()
        if not bool(half.isfinite().all()):
            raise ArtifactError(
                f"{name} of {source} does not fit into float16 (its largest weight is {float(value.abs().max()):.3g}, "
                f"float16 ends at {torch.finfo(torch.float16).max:,.0f}); train it again with a lower rate"
            )
        value.copy_(half)
        halves[name] = half.contiguous()
    content = save(halves, metadata={"format": "pt"})
    if len(content) > MOST_BYTES:
        raise ArtifactError(
            f"the weights of {source} take {len(content) / 1e6:.1f} MB in float16, more than the "
            f"{MOST_BYTES / 1e6:g} MB that a built-in model may take; train a narrower one or a smaller vocabulary"
        )
    return content


def _metrics(
    network: Any, tokenizer: UlmfitTokenizer, trained: dict[str, Any], settings: PackageSettings, context: RunContext
) -> dict[str, Any]:
    if settings.validation_file is None:
        return dict(trained["metrics"])
    wanted = _settings_of(trained).get("batch_size") or load_preset(_preset_of(trained)).batch_size
    texts = load_table(
        settings.validation_file,
        text_columns=tuple(settings.text_column),
        label_column=None,
        usual_splits=VALIDATION,
        reading=reading_of(settings),
        say=context.tell,
    )
    return score_language_model(network, tokenizer, texts, batch_size=wanted, context=context)


def _sample(network: Any, tokenizer: UlmfitTokenizer, settings: PackageSettings) -> dict[str, Any]:
    """Write on from the prompt, or towards it where the model reads backward; marks and padding are not drawn."""
    backward = network.config.direction == "backward"
    prompt = settings.prompt or PROMPTS[network.config.direction]
    ids = tokenizer(prompt)["input_ids"]
    ids = ids[:0:-1] if backward else ids  # backward without xxbos, which is at a text's start
    never = [tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    network.eval()
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(settings.seed)
        found = network.generate(
            torch.tensor([ids], device=network.device),
            do_sample=True,
            temperature=settings.temperature,
            top_k=settings.top_k,
            max_new_tokens=settings.sample_tokens,
            suppress_tokens=never,
        )[0].tolist()
    written = tokenizer.decode(found[::-1] if backward else found, skip_special_tokens=True)
    text = str(written).lstrip(" ")  # backward, what is before the first word was not written
    numbers = {"seed": settings.seed, "temperature": settings.temperature, "top_k": settings.top_k}
    return {"prompt": prompt, "text": text, "tokens": len(found) - len(ids), **numbers}


def without_paths(value: Any) -> Any:
    """Return a record in which every path is its last part: where files lay on a machine is nobody's business."""
    if isinstance(value, dict):
        return {name: without_paths(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(part) for part in value]
    if isinstance(value, PurePath) or (isinstance(value, str) and _is_path(value)):
        return re.split(r"[\\/]+", str(value).rstrip("\\/"))[-1]
    return copy.copy(value)


def _is_path(text: str) -> bool:
    """Return whether a text is a path, of Windows too, or holds one; a slash between spaces and an address are none."""
    if "://" in text:
        return False
    return text.startswith(("/", "~", "./", "../")) or re.search(r"\\|[^\s/]/[^\s/]|\s~?/[^\s/]", text) is not None
