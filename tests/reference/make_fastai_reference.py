"""Store what fastai 2.8.12 computes, for the parity tests. Not run by the tests; fastai is not a dependency.

    python3 -m venv fastai-env
    fastai-env/bin/pip install -c constraints.txt fastai==2.8.12
    fastai-env/bin/python tests/reference/make_fastai_reference.py

Writes, beside itself: text_rules.json, schedules.json, lm_stream.json, language_model.npz, classifier.npz,
language_model_steps.npz, classifier_steps.npz. Sizes all differ: batch 2, seq 3, embedding 5, hidden 7, vocab 11.
"""

import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fastai.callback.rnn import rnn_cbs
from fastai.callback.schedule import (
    SchedCos,
    combine_scheds,
    combined_cos,
    minimum,
    slide,
    steep,
    valley,
)
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import Adam, Optimizer
from fastai.text.core import defaults
from fastai.text.data import LMDataLoader
from fastai.text.learner import match_embeds
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_clas_split, awd_lstm_lm_config, awd_lstm_lm_split
from fastai.text.models.core import get_language_model, get_text_classifier

HERE = Path(__file__).parent
VOCAB, EMBEDDING, HIDDEN, LAYERS, LABELS = 11, 5, 7, 3, 4
BPTT = 72
NO_DROPOUT = 1e-30  # drops nothing; at exactly 0 fastai's weight dropout fails on torch 2.13 when validation starts
SIZES = {"emb_sz": EMBEDDING, "n_hid": HIDDEN, "n_layers": LAYERS}
LM_CONFIG = {**awd_lstm_lm_config, **SIZES}

TRICKY_TEXTS = [
    "I LOVE this sooooo much!!!",
    "It's GREAT great great great GREAT stuff",
    "word word word word again",
    "<br />New line and/or #1 best",
    "Hello World FOO Bar a I A",
    "McDonald's iPhone U.S.A. OK",
    "... wait... what",
    "HTML &amp; &lt;b&gt;",
    "ÀÉ ÉCOLE École",
    "",
    " ",
    "   leading and   inner    spaces   ",
    "one\ttab\nand a newline\r\nand two\n\nmore",
    "no no",
    "no no no",
    "no no no no.",
    "yes yes yes, yes yes yes",
    "ha ha ha ha ha",
    "Bye Bye Bye bye",
    "aaa bbb cc d",
    "!!!??? ... ---",
    "1000000 and 11 and 111",
    "$$$ make MONEY fast $$$",
    "C:\\path\\to\\file and http://example.com/a/b#c",
    'escaped \\n newline and \\" quote',
    "it#39;s an old&nbsp;scrape quot;herequot; #36;5 and #146;",
    "&quot;quoted&quot; &#39;single&#39; &eacute;",
    "a @-@ b 3 @.@ 5 <unk> end",
    "X",
    "X Y Z",
    "OK.",
    "A.B.C. Inc. NASA's JPL-2 R2D2 3D 4K",
    "(HELLO) \"WORLD\" [Nice] 'Day'",
    "CamelCase camelCase CAMELcase",
    "ÜBER über Ärger ŁÓDŹ Москва МОСКВА",
    "日本語 日本語 日本語 日本語 テスト",
    "smile 😀😀😀 end",
    "naïve café ZOË",
    "İstanbul STRASSE straße",
    "xxbos xxmaj already marked xxunk",
    "trailing newline\n",
    "The END",
    "I I I I am",
    "A a A a A",
    "word  word  word  word",
    "e\u0301e\u0301e\u0301 combining",
    "zero\u200bwidth\u00a0nbsp\u2003em space",
    "a" * 300 + " " + "b " * 40,
]


def text_after_rules(text):
    """The chain of cleaning rules, before tokenization."""
    for rule in defaults.text_proc_rules:
        text = rule(text)
    return text


def write_json(name, content):
    (HERE / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def write_arrays(name, arrays):
    np.savez_compressed(HERE / name, **{key: np.asarray(value) for key, value in arrays.items()})


def weights_of(model, prefix="weights/"):
    return {prefix + key: value.detach().numpy().copy() for key, value in model.state_dict().items()}


def make_text_rules():
    write_json("text_rules.json", [{"text": text, "after_rules": text_after_rules(text)} for text in TRICKY_TEXTS])


def make_schedules():
    lr_max, positions = 1e-2, [i / 10 for i in range(10)]
    one_cycle = combined_cos(0.25, lr_max / 25, lr_max, lr_max / 1e5)
    momentum = combined_cos(0.25, 0.8, 0.7, 0.8)
    fine_tune_frozen = combined_cos(0.99, 2e-3 / 25, 2e-3, 2e-3 / 1e5)
    flat_cosine = combine_scheds([0.75, 0.25], [SchedCos(1e-3, 1e-3), SchedCos(1e-3, 1e-3 / 1e5)])
    lrs = torch.tensor([1e-7 * 1e8 ** (i / 100) for i in range(100)])
    u = lrs.log10()
    losses = 2 - 1.2 * torch.sigmoid(2.5 * (u + 3)) + 0.2 * torch.exp(3 * (u + 0.6))
    lrs, losses = lrs[10:-5], losses[10:-5]
    rising = torch.arange(len(lrs)).float()
    spread = Optimizer([[torch.nn.Parameter(torch.zeros(1))] for _ in range(3)], [], lr=1.0)
    spreads = {}
    for name, value in {"1e-4..1e-2": slice(1e-4, 1e-2), "..1e-2": slice(1e-2), "1e-3": 1e-3}.items():
        spread.set_hyper("lr", value)
        spreads[name] = [float(hypers["lr"]) for hypers in spread.hypers]
    write_json(
        "schedules.json",
        {
            "positions": positions,
            "one_cycle_lr_max_1e-2": [float(one_cycle(p)) for p in positions],
            "one_cycle_momentum_.8_.7_.8": [float(momentum(p)) for p in positions],
            "fine_tune_frozen_base_2e-3": [float(fine_tune_frozen(p)) for p in positions],
            "flat_cosine_lr_1e-3_pct_.75": [float(flat_cosine(p)) for p in positions],
            "lr_spread_over_3_groups": spreads,
            "lr_find": {
                "lrs": lrs.tolist(),
                "losses": losses.tolist(),
                "suggestions": {
                    suggest.__name__: suggest(lrs, losses, 100)[0] for suggest in (valley, slide, minimum, steep)
                },
                "suggestions_on_a_rising_line": {
                    suggest.__name__: suggest(lrs, rising, 100)[0] for suggest in (valley, slide)
                },
            },
        },
    )


def make_lm_stream():
    documents = [torch.arange(start, start + n) for start, n in ((100, 7), (200, 1), (300, 12), (400, 5), (500, 9))]
    dataset = [(document,) for document in documents]
    stream = {"documents": [document.tolist() for document in documents]}
    for batch_size, seq_len in ((2, 5), (3, 4), (4, 8)):
        loader = LMDataLoader(dataset, lens=[len(d) for d in documents], bs=batch_size, seq_len=seq_len, shuffle=False)
        stream[f"batch_size_{batch_size}_bptt_{seq_len}"] = [
            {"input_ids": x.tolist(), "targets": y.tolist()} for x, y in loader
        ]
    write_json("lm_stream.json", stream)


def make_language_model():
    torch.manual_seed(0)
    model = get_language_model(AWD_LSTM, VOCAB, config=LM_CONFIG).eval()
    model[1].decoder.bias.data.uniform_(-0.1, 0.1)
    first, second = torch.randint(0, VOCAB, (2, 3)), torch.randint(0, VOCAB, (2, 4))
    model.reset()
    arrays = {**weights_of(model), "first_ids": first, "second_ids": second}
    with torch.no_grad():
        for name, ids in (("first", first), ("second", second)):
            logits, raw, _ = model(ids)
            arrays |= {f"{name}_logits": logits, f"{name}_raw_output": raw}
    old_tokens = [f"word{i}" for i in range(VOCAB)]
    new_tokens = ["word0", "word1", "novel", "word7", "word2", "other", "word10"]
    moved = match_embeds({k: v.clone() for k, v in model.state_dict().items()}, old_tokens, new_tokens)
    arrays |= {"old_tokens": old_tokens, "new_tokens": new_tokens}
    arrays |= {"moved_weight": moved["0.encoder.weight"], "moved_bias": moved["1.decoder.bias"]}
    write_arrays("language_model.npz", arrays)


def build_classifier(drop_mult, seq_len, max_len):
    return get_text_classifier(
        AWD_LSTM, VOCAB, LABELS, seq_len=seq_len, config=dict(SIZES), drop_mult=drop_mult, max_len=max_len
    )


def make_classifier():
    torch.manual_seed(1)
    model = build_classifier(1.0, BPTT, BPTT * 20)
    for block in model[1].layers:
        block[0].running_mean.uniform_(-0.1, 0.1)
        block[0].running_var.uniform_(0.01, 0.1)
        block[0].weight.data.uniform_(0.5, 1.5)
    model.eval()
    arrays = weights_of(model)
    no_dropout = build_classifier(0.0, BPTT, BPTT * 20)  # drop_mult 0: the first block's linear has another index
    arrays["keys_at_drop_mult_0"] = list(no_dropout.state_dict())
    for length in (1, 5, 71, 72, 73, 200, 1369):
        ids = torch.randint(2, VOCAB, (1, length))
        with torch.no_grad():
            arrays |= {f"ids_{length}": ids.numpy().astype(np.uint8), f"logits_{length}": model(ids)[0]}
    write_arrays("classifier.npz", arrays)


def train_five_steps(model, batches, splitter, moms):
    """Train one epoch of one-cycle at dropout 0, weight decay 0; return losses, rates and momenta per step."""
    seen = {"losses": [], "lrs": [], "moms": [], "penalized_losses": []}
    loaders = DataLoaders(DataLoader(batches, bs=None), DataLoader(batches, bs=None))
    learner = Learner(
        loaders, model, CrossEntropyLossFlat(), opt_func=partial(Adam, decouple_wd=True), splitter=splitter, wd=0.0,
        cbs=rnn_cbs(alpha=2, beta=1), moms=moms,
    )  # fmt: skip
    step = learner._step

    def recorded_step():
        if learner.training:
            seen["losses"].append(float(learner.loss))
            seen["penalized_losses"].append(float(learner.loss_grad))
            seen["lrs"].append([float(hypers["lr"]) for hypers in learner.opt.hypers])
            seen["moms"].append([float(hypers["mom"]) for hypers in learner.opt.hypers])
        step()

    learner._step = recorded_step
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(1, slice(4e-3, 1e-2))
    return seen


def make_language_model_steps():
    torch.manual_seed(2)
    model = get_language_model(AWD_LSTM, VOCAB, config=LM_CONFIG, drop_mult=NO_DROPOUT)
    arrays = weights_of(model)
    stream = torch.randint(0, VOCAB, (2, 5 * 3 + 1))
    batches = [(stream[:, i : i + 3].contiguous(), stream[:, i + 1 : i + 4].contiguous()) for i in range(0, 15, 3)]
    seen = train_five_steps(model, batches, awd_lstm_lm_split, (0.8, 0.7, 0.8))
    write_arrays("language_model_steps.npz", {**arrays, "stream": stream, **seen, **weights_of(model, "after/")})


def make_classifier_steps():
    arrays, bptt = {}, 4
    for name, length in (("short", 3), ("long", 14)):
        torch.manual_seed(3)
        model = build_classifier(NO_DROPOUT, bptt, 5 * bptt)  # keeps at most 20 tokens: all
        model.double()  # the batch norms of so small a model blow single-precision noise up to 1e-5
        model[1].layers[1][1].p = 0.0  # the head's second dropout is not scaled by drop_mult
        ids, labels = torch.randint(2, VOCAB, (5, 6, length)), torch.randint(0, LABELS, (5, 6))
        arrays |= {**weights_of(model, f"{name}/weights/"), f"{name}/ids": ids, f"{name}/labels": labels}
        seen = train_five_steps(model, list(zip(ids, labels, strict=True)), awd_lstm_clas_split, (0.8, 0.7, 0.8))
        arrays |= {f"{name}/{key}": value for key, value in seen.items()} | weights_of(model, f"{name}/after/")
    write_arrays("classifier_steps.npz", arrays)


if __name__ == "__main__":
    make_text_rules()
    make_schedules()
    make_lm_stream()
    make_language_model()
    make_classifier()
    make_language_model_steps()
    make_classifier_steps()
    for path in sorted(HERE.glob("*.[jn]*")):
        print(f"{path.name}: {path.stat().st_size} bytes")
