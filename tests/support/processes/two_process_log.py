"""Started by torchrun: a training of two processes that is logged, and gradient norms of a model in pieces."""

import copy
import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard

from tests.support.toy_models import groups_of, new_model, new_task
from tests.training.logs.test_events import Listed, train
from ulmfit_pipe.training.layer_groups import set_trainable
from ulmfit_pipe.training.logs.events import JsonlLog, gradient_norms
from ulmfit_pipe.training.optim import build_optimizer
from ulmfit_pipe.training.phases import gradual_unfreezing


def norms_in_pieces(accelerator: Accelerator) -> dict[str, dict[str, float]]:
    """The norms of a plain model, and of one whose parameters lie in pieces on the processes."""
    found = {}
    plain = new_model().double()
    for name, model in (("whole", copy.deepcopy(plain)), ("sharded", fully_shard(copy.deepcopy(plain)))):
        groups = groups_of(model)
        set_trainable(groups, (1, 2, 3))
        optimizer = build_optimizer(groups, [1e-3] * 4)
        batch = next(iter(new_task(11).train_batches))  # the same rows on both processes: the mean is the same
        torch.nn.functional.cross_entropy(model(batch["input_ids"]).logits, batch["labels"]).backward()
        found[name] = gradient_norms(optimizer, groups, accelerator)
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    process = Accelerator(cpu=True)
    heard = Listed()
    shares = {"rank": process.process_index, "world_size": process.num_processes}
    train(
        process,
        gradual_unfreezing(4, lr=1e-2, final_epochs=2),
        JsonlLog(folder / "log.jsonl"),
        heard,
        task=new_task(11, **shares),
        model=new_model().double(),
    )
    (folder / f"heard{process.process_index}.json").write_text(json.dumps(heard.lines))
    pieces = norms_in_pieces(process)
    if process.is_main_process:
        (folder / "pieces.json").write_text(json.dumps(pieces))
    process.end_training()
