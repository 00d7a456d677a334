import functools
import io
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from tests.support.toy_models import groups_of, new_model, new_phase, new_task
from ulmfit_pipe.training.logs import progress_bar
from ulmfit_pipe.training.logs.progress_bar import size_of, unit_of
from ulmfit_pipe.training.loop import fit
from ulmfit_pipe.training.records import TrainingOptions


def run(accelerator, model, phase, **options):
    return fit(model, groups_of(model), phase, new_task(), accelerator=accelerator, options=TrainingOptions(**options))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "progress", "shown"),
    [(io.StringIO, None, False), (Terminal, None, True), (io.StringIO, True, True), (Terminal, False, False)],
)
def test_the_bar_shows_itself_only_on_a_terminal_unless_asked(accelerator, monkeypatch, stream, progress, shown):
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setattr(progress_bar, "tqdm", functools.partial(progress_bar.tqdm, mininterval=0))
    run(accelerator, new_model(), new_phase(2, 3, lr=slice(1e-3, 1e-2), name="thaw"), progress=progress)
    text = sys.stderr.getvalue()
    assert bool(text) is shown
    if shown:
        assert "thaw 1/1" in text
        assert "lr 0.0e+00..1.0e-02" in text
        assert "loss " in text
        assert "rows/s" in text


class Kernel:
    kernel = object()


@pytest.mark.parametrize(("shell", "shown"), [(Kernel(), True), (object(), False), (None, False)])
def test_the_bar_shows_itself_in_a_notebook(accelerator, monkeypatch, shell, shown):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(progress_bar, "NOTEBOOK_DELAY", 0)
    run(accelerator, new_model(), new_phase(3))
    assert ("1/1" in sys.stderr.getvalue()) is shown
    assert "Warning" not in sys.stderr.getvalue()


def test_the_bar_is_quiet_on_other_processes(accelerator, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(Accelerator, "is_main_process", property(lambda _self: False))
    run(accelerator, new_model(), new_phase(3), progress=True)
    assert sys.stderr.getvalue() == ""


def test_items_are_tokens_where_there_is_a_mask_and_rows_elsewhere():
    assert size_of({"input_ids": torch.ones(2, 3), "attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}) == 3
    assert size_of({"input_ids": torch.ones(2, 5), "targets": torch.ones(2, 5)}) == 10
    assert size_of({"pixels": torch.ones(2, 5)}) == 2


def test_speed_is_counted_in_tokens_where_a_batch_holds_tokens():
    tokens = torch.ones(2, 3, dtype=torch.int64)
    assert unit_of({"input_ids": tokens, "attention_mask": tokens}) == "tokens"
    assert unit_of({"input_ids": tokens, "targets": tokens}) == "tokens"
    assert unit_of({"pixel_values": torch.ones(2, 3)}) == "rows"
