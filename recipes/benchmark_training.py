"""How fast a language model trains here, and what each switch buys: ratios, all sides in one run.

    python recipes/benchmark_training.py
    python recipes/benchmark_training.py --hidden_size 1152 --embedding_size 400 --repeats 3

Two switches on random tokens: the precision, and on a CPU whether the memory that a step frees is kept for the next one
(ulmfit_pipe does so, unless one of the C library's own settings overrides it). Every side runs in a process of its
own, the sides in turn; its figure is the median. Run it on a machine that does nothing else; OMP_NUM_THREADS sets the
threads.
"""

import os
import statistics
import subprocess
import sys
from dataclasses import dataclass

import torch
from accelerate import Accelerator

import ulmfit_pipe as up

RETURNED = {"MALLOC_MMAP_MAX_": "65536"}  # glibc's default, set explicitly: then it is left alone
SIDES = {
    "float32, memory returned": ("no", RETURNED),
    "float32": ("no", {}),
    "bfloat16, memory returned": ("bf16", RETURNED),
    "bfloat16": ("bf16", {}),
}


@dataclass(frozen=True)
class Settings:
    """What to time: a model of these sizes, epochs of this many steps, every side so often (side: one side only)."""

    vocab_size: int = 12_000
    embedding_size: int = 256
    hidden_size: int = 512
    num_hidden_layers: int = 3
    batch_size: int = 16
    bptt: int = 64
    steps: int = 40
    repeats: int = 5
    side: str | None = None


class RandomText(list):
    """Batches of random tokens, the same in every epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Change nothing."""


def tokens_a_second(settings: Settings, precision: str) -> float:
    """Train two epochs and return the speed of the second."""
    names = ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "bptt")
    model = up.AwdLstmForCausalLM(up.AwdLstmConfig(**{name: getattr(settings, name) for name in names}))
    size = (settings.batch_size, settings.bptt + 1)
    windows = [torch.randint(settings.vocab_size, size) for _ in range(settings.steps)]
    batches = RandomText({"input_ids": tokens[:, :-1], "targets": tokens[:, 1:]} for tokens in windows)
    groups = up.split_layer_groups(model, [spec.prefixes for spec in up.layer_group_specs(model)])
    accelerator, task = Accelerator(mixed_precision=precision), up.Task(batches, up.SequenceObjective(decodes=True))
    learner = up.Learner(model, groups, task, accelerator=accelerator, pretrained=False, say=lambda line: None)
    return learner.fit(2, 1e-3).epochs[-1].items_per_second


def main() -> None:
    """Time every side in processes of its own, in turn, and print medians and ratios."""
    settings = up.parse_settings(Settings, description="Time the training of a language model on random tokens.")
    if settings.side is not None:
        print(tokens_a_second(settings, SIDES[settings.side][0]))
        return
    speeds: dict[str, list[float]] = {side: [] for side in SIDES}
    for side, (_, environment) in list(SIDES.items()) * settings.repeats:
        command = [sys.executable, *sys.argv, "--side", side]
        done = subprocess.run(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, check=True)
        speeds[side].append(float(done.stdout.split()[-1]))
    first = statistics.median(speeds["float32, memory returned"])
    print(f"{'side':26} {'tokens/s':>9} {'lowest':>8} {'highest':>8}  ratio")
    for side, values in speeds.items():
        median = statistics.median(values)
        print(f"{side:26} {median:9,.0f} {min(values):8,.0f} {max(values):8,.0f}  {median / first:.2f}")


if __name__ == "__main__":
    up.run_recipe(main)
