"""Our language-model windows against fastai 2.8.12's own (tests/reference/make_fastai_reference.py)."""

import json
from pathlib import Path

import pytest

from ulmfit_pipe.data.streams.lm_batches import LanguageModelBatches

STORED = json.loads((Path(__file__).parents[2] / "reference" / "lm_stream.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("batch_size", "bptt"), [(2, 5), (3, 4), (4, 8)])
def test_windows_are_fastais(batch_size, bptt):
    batches = LanguageModelBatches(STORED["documents"], batch_size=batch_size, bptt=bptt, shuffle=False)
    ours = [{name: tensor.tolist() for name, tensor in batch.items()} for batch in batches]
    assert ours == STORED[f"batch_size_{batch_size}_bptt_{bptt}"]
