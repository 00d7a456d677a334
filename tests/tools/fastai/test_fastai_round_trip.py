"""What fastai 2.8.12 made of our files, as check_fastai_round_trip.py stored it; today's have the same form."""

import importlib.util
import json

import pytest
import torch

from tests.support.fastai_files import REFERENCE
from ulmfit_pipe.tools.fastai.weights import to_fastai_state_dict

STORED = json.loads((REFERENCE / "fastai_round_trip.json").read_text(encoding="utf-8"))
SPEC = importlib.util.spec_from_file_location("check_fastai_round_trip", REFERENCE / "check_fastai_round_trip.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)
IMPORTS = ("lm_with_opt", "lm_bare", "lm_0.7_layout", "encoder, its bias added")


def test_fastai_and_we_gave_the_same_logits_for_everything_that_was_compared():
    assert STORED["versions"]["fastai"] == "2.8.12"
    worst = max(STORED["differences"], key=lambda name: STORED["differences"][name][0])
    assert STORED["differences"][worst][0] <= 2e-7, worst  # 1.2e-7: one rounding of float32 at 400/1152/3
    assert min(largest for _, largest in STORED["differences"].values()) > 0.1  # logits that could differ


@pytest.mark.parametrize("name", script.EXPORTS)
def test_every_export_was_loaded_by_fastai_in_each_of_its_ways(name):
    ways = ["learn.load", "load_model", "pretrained_fnames"]
    if name.endswith("clas") or name.startswith("untied"):
        ways.remove("pretrained_fnames")
    lengths = script.LENGTHS if name.endswith("clas") else [30]
    wanted = {f"fastai {way} of our {name}, {length} tokens" for way in ways for length in lengths}
    assert {told for told in STORED["differences"] if f"of our {name}," in told} == wanted


def test_every_import_was_compared():
    wanted = {f"our import of fastai's {name}" for name in IMPORTS}
    wanted |= {f"our import of fastai's classifier, {length} tokens" for length in script.LENGTHS}
    assert {told for told in STORED["differences"] if told.startswith("our import")} == wanted


@pytest.mark.parametrize("name", script.EXPORTS)
def test_what_is_written_today_has_the_keys_order_and_shapes_that_fastai_loaded(name):
    loaded = STORED["loaded_by_fastai"][name]
    rows = next(iter(loaded.values()))[0]
    with torch.device("meta"):
        model = script.our_model(name, vocab_size=rows)
    linear_index = (1, 2) if script.EXPORTS[name].get("export", {}).get("drop_mult_zero") else (2, 2)
    written = to_fastai_state_dict(model.state_dict(), linear_index=linear_index)
    assert [(key, list(tensor.shape)) for key, tensor in written.items()] == list(map(tuple, loaded.items()))
