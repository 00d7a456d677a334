"""``torch.compile`` for one phase: the code is made for what the phase trains, and thrown away at its end.

Compiled code is right for the parameters that trained when it was made. torch guards it by their ``requires_grad`` and
would compile again after thawing; here nothing depends on that, since every phase starts without any compiled code.
What a compiler would make worse runs as ever: modules that ask for it (an LSTM with dropped weights, which it would
unroll over time) and modules whose ``forward`` was replaced for the phase. torch itself leaves functions alone that run
its own LSTMs.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

EAGER = "runs_eagerly"  # attribute by which a module asks not to be compiled


@contextlib.contextmanager
def compiled(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """Compile a model for the time of a block.

    Args:
        model: The bare model, frozen as the phase has it, its ``forward`` as the phase runs it.
        enabled: False changes nothing.
    """
    if not enabled:
        yield
        return
    eager = [module for module in model.modules() if module is not model and _runs_eagerly(module)]
    before = [module.__dict__.get("forward") for module in eager]
    for module in eager:
        module.forward = torch.compiler.disable(module.forward)  # type: ignore[method-assign]
    try:
        model.compile()
        yield
    finally:
        model._compiled_call_impl = None
        for module, own in zip(eager, before, strict=True):
            module.__dict__.pop("forward", None)
            if own is not None:
                module.forward = own
        torch.compiler.reset()


def _runs_eagerly(module: nn.Module) -> bool:
    return bool(getattr(module, EAGER, False)) or "forward" in module.__dict__
