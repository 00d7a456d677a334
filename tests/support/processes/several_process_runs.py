"""Stages of a few thousand weights whose results must not depend on the number of processes.

test_stages_several_processes.py writes the models and images that are read here, and runs this in one process and in
several.
"""

import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.support.tiny_images import QUICK, save_backbone, write_images
from tests.support.tiny_runs import multi_label_table, reviews, table, texts_of
from tests.support.tiny_transformers import save_bert, save_gpt2
from ulmfit_pipe.data.images.files import load_images
from ulmfit_pipe.data.text.tokenization import train_tokenizer, vocab_hash
from ulmfit_pipe.images.classifier import build_image_learner, train_image_classifier
from ulmfit_pipe.models.awd_lstm.configuration_awd_lstm import AwdLstmConfig
from ulmfit_pipe.models.awd_lstm.modeling_awd_lstm import AwdLstmForCausalLM
from ulmfit_pipe.settings.images import AugmentationSettings, ImageHeadSettings
from ulmfit_pipe.settings.text import ClassifierSettings, LanguageModelSettings
from ulmfit_pipe.stages.context import RunContext
from ulmfit_pipe.text.classifier import build_classifier_learner, train_classifier
from ulmfit_pipe.text.language_model import build_language_model_learner, train_language_model
from ulmfit_pipe.training import loop
from ulmfit_pipe.training.distributed.agreement import check_agreement, checksum
from ulmfit_pipe.training.learner import Learner
from ulmfit_pipe.training.records import Phase

HEAD = ImageHeadSettings(hidden_sizes=[6], dropouts=[0.0])
PADDED = "it was made with a story by three brothers and its music "  # some texts are much longer than others
ROWS = [(PADDED * (row % 5) + text, label) for row, (text, label) in enumerate(reviews(26))]
HELD_OUT = reviews(11, seed=7)
TEXTS, HELD_OUT_TEXTS = ([text for text, _ in rows] for rows in (ROWS, HELD_OUT * 3))
Said = Callable[[str], None]


def write_inputs(folder: Path) -> None:
    """Write images to train and validate on, and models without dropout."""
    write_images(folder / "train", count=9)
    write_images(folder / "valid", count=3, seed=1)
    save_backbone(folder / "resnet")
    save_awd_lstm(folder / "language_model")
    save_awd_lstm(folder / "telling_language_model", embedding_scale=10.0)
    save_bert(folder / "bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    save_gpt2(folder / "gpt2")
    config = json.loads((folder / "gpt2" / "config.json").read_text())
    config |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    (folder / "gpt2" / "config.json").write_text(json.dumps(config))


def save_awd_lstm(folder: Path, *, embedding_scale: float = 1.0, **changes: Any) -> Path:
    """Write a language model that reads 11 tokens at a time, whose classifier has no dropout in the head.

    With larger embeddings its features tell texts apart as those of a trained one do. Where all texts have the same,
    the gradient of a norm's weight is mere rounding, of which Adam makes 2e-5.
    """
    tokenizer = train_tokenizer(TEXTS + HELD_OUT_TEXTS, vocab_size=110)
    sizes = {"embedding_size": 10, "hidden_size": 14, "num_hidden_layers": 2, "head_hidden_size": 6}
    windows = {"bptt": 11, "gradient_window": 22}
    known = {"vocab_size": len(tokenizer), "vocab_hash": vocab_hash(tokenizer)}
    torch.manual_seed(0)
    model = AwdLstmForCausalLM(AwdLstmConfig(**{**sizes, **windows, **known, "head_dropout": 0.0, **changes}))
    model.get_input_embeddings().weight.data *= embedding_scale
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def quiet(_line: str) -> None:
    """Hear nothing."""


def context_of(preset: str = "auto", *, say: Said = quiet, seed: int = 0, **settings: Any) -> RunContext:
    return RunContext(preset=preset, seed=seed, say=say, **settings)


@contextmanager
def boundaries() -> Iterator[list[list[int]]]:
    """Collect the checksums of all weights wherever the loop compares them: after every phase."""
    found: list[list[int]] = []

    def noting(model: nn.Module, *arguments: Any, **named: Any) -> None:
        found.append([int(checksum(value)) for value in model.state_dict().values()])
        check_agreement(model, *arguments, **named)

    with mock.patch.object(loop, "check_agreement", noting):
        yield found


def widened(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Give a model in float64 its inputs in float64."""
    return arguments, {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in named.items()
    }


def widen(learner: Learner) -> None:
    """Put a learner's model into float64, without dropout."""
    for module in learner.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    learner.model.double()
    learner.model.register_forward_pre_hook(widened, with_kwargs=True)


def in_double(learner: Learner, phases: list[Phase]) -> dict[str, Any]:
    """Train all phases in float64, without dropout."""
    widen(learner)
    with boundaries() as found:
        history = learner.fit_plan(phases)
    return {
        "losses": [step.loss for step in history.steps],
        "lrs": [step.lrs for step in history.steps],
        "train_losses": [record.train_loss for record in history.epochs],
        "metrics": [record.metrics for record in history.epochs],
        "weights": {name: value.clone() for name, value in learner.model.state_dict().items()},
        "boundaries": found,
    }


def classifier_learner(folder: Path, model: str, *, said: Said = quiet, seed: int = 0, **changes: Any) -> Any:
    settings = {"plan": "gradual", "epochs_per_phase": 1, "final_epochs": 2, "batch_size": 8, "lr": 1e-2}
    settings["num_workers"] = 1
    if model == "language_model":
        settings["drop_mult"] = 0.0
    return build_classifier_learner(
        table(ROWS),
        table(HELD_OUT),
        model=str(folder / model),
        settings=ClassifierSettings(**{**settings, **changes}),
        context=context_of(say=said, seed=seed),
    )


def classifier(folder: Path, model: str = "language_model", **changes: Any) -> dict[str, Any]:
    """Batches of 8, 8, 8 and 2 texts: of three processes, one gets none of the last."""
    torch.manual_seed(0)
    parts = classifier_learner(folder, model, **changes)
    return in_double(parts.learner, parts.phases)


def language_model(folder: Path, model: str, **changes: Any) -> dict[str, Any]:
    """Rows of a stream: three processes share four, or five of the blocks of a transformer."""
    torch.manual_seed(0)
    settings = {"plan": "gradual", "frozen_epochs": 1, "epochs": 1, "lr": 1e-2, "num_workers": 1}
    if model == "language_model":
        settings |= {"drop_mult": 0.0, "batch_size": 4, "bptt": 30, "variable_bptt": True}
    else:
        settings |= {"batch_size": 5, "block_size": 40}
    parts = build_language_model_learner(
        texts_of(*TEXTS),
        texts_of(*HELD_OUT_TEXTS),
        model=str(folder / model),
        settings=LanguageModelSettings(**{**settings, **changes}),
        context=context_of(),
    )
    return in_double(parts.learner, parts.phases)


def image_settings(**changes: Any) -> Any:
    still = {"plan": "gradual", "head": HEAD, "lr": 1e-2, "batch_size": 8, "num_workers": 0}
    return dataclasses.replace(QUICK, **{**still, **changes})


def images(folder: Path, **changes: Any) -> dict[str, Any]:
    """Batch norms in the backbone too, trained or with their statistics moving; 18 images in batches of 8, 8, 2."""
    torch.manual_seed(0)
    parts = build_image_learner(
        load_images(folder / "train"),
        load_images(folder / "valid"),
        model=str(folder / "resnet"),
        settings=image_settings(**changes),
        context=context_of("fastai"),
    )
    return in_double(parts.learner, parts.phases)


def sweep(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    learner = classifier_learner(folder, "language_model").learner
    widen(learner)
    result = learner.lr_find(num_steps=40)
    return {"lrs": result.lrs, "losses": result.losses, "suggestions": result.suggestions}


def logged(folder: Path) -> dict[str, Any]:
    """Read losses, learning rates and the epochs' numbers back from the log that a stage wrote at every step."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps, epochs = ([line for line in lines if ("epoch" in line) == whole] for whole in (False, True))
    judged = ("epoch/loss", "validation/")
    return {
        "losses": [line["loss"] for line in steps],
        "lrs": [{name: value for name, value in line.items() if name.startswith("lr/")} for line in steps],
        "epochs": [{name: value for name, value in line.items() if name.startswith(judged)} for line in epochs],
    }


def whole_stages(folder: Path, output: Path) -> dict[str, Any]:
    """Run stages from tables to folders as recipes do, in float32: 20 steps or so at 1e-3 at most."""
    said: list[str] = []
    context = context_of(say=said.append, log_every=1)
    few: dict[str, Any] = {"lr": 1e-3, "num_workers": 1}
    results = {
        "classifier": train_classifier(
            table(ROWS),
            table(HELD_OUT),
            model=str(folder / "telling_language_model"),
            output_dir=output / "classifier",
            settings=ClassifierSettings(
                plan="gradual",
                epochs_per_phase=1,
                final_epochs=7,
                batch_size=8,
                drop_mult=0.0,
                accumulation_steps=2,
                keep="last",
                **few,
            ),
            context=context,
        ),
        "several labels": train_classifier(
            multi_label_table(22),
            multi_label_table(9, seed=3),
            model=str(folder / "bert"),
            output_dir=output / "several_labels",
            # Adam's eps is 1e-8 here and the gradient of a key's bias mere rounding: a rate of 1e-3 makes 2e-5 of it
            settings=ClassifierSettings(plan="full", final_epochs=7, batch_size=8, lr=1e-4, num_workers=1),
            context=context,
        ),
        "language model": train_language_model(
            texts_of(*TEXTS),
            texts_of(*HELD_OUT_TEXTS),
            model=str(folder / "telling_language_model"),
            output_dir=output / "language_model",
            settings=LanguageModelSettings(plan="full", epochs=2, batch_size=5, bptt=60, drop_mult=0.0, **few),
            context=context,
        ),
        "images": train_image_classifier(
            load_images(folder / "train"),
            load_images(folder / "valid"),
            model=str(folder / "resnet"),
            output_dir=output / "images",
            settings=image_settings(lr=1e-3, final_epochs=4, batch_size=6, keep="last"),  # fewer rows a norm: ill-posed
            context=context_of("fastai", say=said.append, log_every=1),
        ),
    }
    files = {name: load_file(result.path / "model.safetensors") for name, result in results.items()}
    return {
        "said": said,
        **{
            name: {"metrics": result.metrics, "weights": files[name], **logged(result.path)}
            for name, result in results.items()
        },
    }


def after_a_probe(folder: Path, output: Path) -> dict[str, Any]:
    """Set the head by logistic regression, then train all groups from there."""
    result = train_classifier(
        table(ROWS),
        table(HELD_OUT),
        model=str(folder / "bert"),
        output_dir=output / "probe",
        settings=ClassifierSettings(final_epochs=3, batch_size=8, rest_lr=1e-4, num_workers=1, keep="last"),
        context=context_of(),
    )
    record = json.loads((result.path / "stage.json").read_text())
    weights = load_file(result.path / "model.safetensors")
    return {"metrics": result.metrics, "held_out": record["probe"]["held_out"], "weights": weights}


@mock.patch("accelerate.utils.memory.clear_device_cache", lambda **_options: None)  # slower than the models
def everything(folder: Path, output: Path) -> dict[str, Any]:
    shifting = AugmentationSettings(least_crop=0.8)
    return {
        "classifier": classifier(folder),
        "classifier, several micro-batches": classifier(folder, accumulation_steps=2, class_weights="balanced"),
        "classifier, few tokens a batch": classifier(folder, max_tokens=160),
        "transformer classifier": classifier(folder, "bert"),
        "transformer classifier in windows": classifier(
            folder, "bert", head="concat-pooling", long_documents="windows", window_length=16, batch_size=7
        ),
        "language model": language_model(folder, "language_model"),
        "masked language model": language_model(folder, "bert"),
        "causal language model": language_model(folder, "gpt2"),
        "images": images(folder, train_norm=True, augmentation=shifting),
        "images over a still backbone": images(folder, train_norm=False),
        "sweep": sweep(folder),
        "stages": whole_stages(folder, output),
        "after a probe": after_a_probe(folder, output),
    }


def accuracies_with_dropout(folder: Path) -> list[float]:
    """Train with dropout from five seeds on texts of which a third has the wrong label, and return each accuracy."""
    chance = random.Random(9)
    wrong = {"bad": "good", "good": "bad"}
    rows = [(text, label if chance.random() > 0.35 else wrong[label]) for text, label in reviews(240, seed=1)]
    found = []
    for seed in range(5):
        torch.manual_seed(seed)
        parts = build_classifier_learner(
            table(rows),
            table(reviews(120, seed=2)),
            model=str(folder / "language_model"),
            settings=ClassifierSettings(
                plan="full", final_epochs=8, batch_size=16, lr=2e-2, lr_decay=1.0, keep="last", num_workers=1
            ),
            context=context_of(seed=seed),
        )
        history = parts.learner.fit_plan(parts.phases, keep_best=False)
        found.append(history.epochs[-1].metrics["accuracy"])
    return found
