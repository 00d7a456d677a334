"""Check that fastai 2.8.12 and this project read one another's files and give the same logits; not run by the tests.

    python tests/reference/check_fastai_round_trip.py --fastai_python fastai-env/bin/python

    ... --store    # writes fastai_round_trip.json, which tests/tools/fastai/test_fastai_round_trip.py reads

Four steps, in turn in fastai's environment (see make_fastai_reference.py) and in this one, over a temporary folder:

1. fastai   trains small models for a moment, saves them in every way (`save` with and without optimizer,
            `save_encoder`, a classifier), and stores logits and token ids
2. ours     imports each file and compares; imports a file in the layout of fastai 0.7
3. ours     exports models of its own (EXPORTS: words, subwords, an untied decoder, backward, of the published size
            400/1152/3, classifiers with another head, for drop_mult=0, backward), and stores logits
4. fastai   loads each (`learn.load`, `load_model`, `load_encoder`, `pretrained_fnames`) and compares

Largest differences are printed; more than 1e-6 for a language model (1e-5 at 400/1152/3, whose sums are of a hundred
times as many terms) or 1e-5 for a classifier ends with exit code 1.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

LANGUAGE_MODEL, CLASSIFIER = 1e-6, 1e-5  # largest difference of logits that is allowed
SIZES = {"emb_sz": 10, "n_hid": 14, "n_layers": 3}
TEXTS = ["This is a GOOD film, I didn't expect it!", "A bad, bad and dull film... we cannot like it."] * 20
LABELS = ["pos", "neg"] * 20
LENGTHS = (1, 5, 72, 73, 200, 1369)
STORED = Path(__file__).with_name("fastai_round_trip.json")
FOUND = "differences.jsonl"  # in the temporary folder: what every step has compared
TINY = {"embedding_size": 6, "hidden_size": 9, "num_hidden_layers": 3}
PUBLISHED = {"embedding_size": 400, "hidden_size": 1152, "num_hidden_layers": 3}
# What is exported: our configuration, fastai's options, export_fastai's settings.
EXPORTS = {
    "word lm": {"config": TINY},
    "subword lm": {"config": TINY},
    "untied lm": {"config": {**TINY, "tie_word_embeddings": False}},
    "backward lm": {"config": {**TINY, "direction": "backward"}},
    "published lm": {"config": PUBLISHED},
    "word clas": {"config": TINY},
    "head_width clas": {"config": {**TINY, "head_hidden_size": 13}, "options": {"lin_ftrs": [13]}},
    "drop_mult_0 clas": {"config": TINY, "options": {"drop_mult": 0.0}, "export": {"drop_mult_zero": True}},
    "backward clas": {"config": {**TINY, "direction": "backward"}},
    "published clas": {"config": PUBLISHED},
}


def report(folder, name, theirs, ours, allowed, failures):
    theirs, ours = np.asarray(theirs, np.float64), np.asarray(ours, np.float64)
    difference, largest = float(np.abs(theirs - ours).max()), float(np.abs(theirs).max())
    print(f"{name:58} {difference:.1e}  (largest logit {largest:.2f}, spread {theirs.std():.3f})")
    with (folder / FOUND).open("a") as file:
        file.write(json.dumps({"name": name, "difference": difference, "largest_logit": largest}) + "\n")
    if not difference <= allowed:
        failures.append(f"{name}: {difference:.1e} is more than {allowed:.0e}")


# 1 and 4, where fastai is


def fastai_loaders(folder, vocab=None, labels=True):
    import pandas as pd
    from fastai.text.all import TextDataLoaders

    table = pd.DataFrame({"text": TEXTS, "label": LABELS})
    kinds = {"label_col": "label"} if labels else {"is_lm": True, "min_freq": 1}
    return TextDataLoaders.from_df(table, path=folder, text_col="text", text_vocab=vocab, bs=4, seq_len=5, **kinds)


def fastai_learner(folder, loaders, config, *, classifier, **more):
    from fastai.text.all import (
        AWD_LSTM,
        awd_lstm_clas_config,
        awd_lstm_lm_config,
        language_model_learner,
        text_classifier_learner,
    )

    builder = text_classifier_learner if classifier else language_model_learner
    base = awd_lstm_clas_config if classifier else awd_lstm_lm_config
    more.setdefault("pretrained", "pretrained_fnames" in more)
    return builder(loaders, AWD_LSTM, config={**base, **config}, path=folder, model_dir=".", **more)


def fastai_logits(learner, ids):
    learner.model.eval()
    learner.model.reset()
    with torch.no_grad():
        return learner.model(torch.tensor(ids))[0].numpy()


def fastai_saves(folder):
    from fastai.text.all import Numericalize, SpacyTokenizer, TokenizeWithRules, save_pickle

    torch.manual_seed(0)
    loaders = fastai_loaders(folder, labels=False)
    vocab = loaders.vocab
    learner = fastai_learner(folder, loaders, SIZES, classifier=False)
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(1, slice(1e-3, 1e-2))
    learner.save("lm_with_opt")
    learner.save("lm_bare", with_opt=False)
    learner.save_encoder("encoder")
    save_pickle(folder / "vocab.pkl", list(vocab))
    chance = np.random.default_rng(0)
    found = {"lm_ids": chance.integers(0, len(vocab), (2, 30)).tolist()}
    found["lm_logits"] = fastai_logits(learner, found["lm_ids"]).tolist()
    classes = fastai_loaders(folder, vocab)
    classifier = fastai_learner(folder, classes, SIZES, classifier=True)
    classifier.load_encoder("encoder")
    with classifier.no_bar(), classifier.no_logging():
        classifier.fit_one_cycle(2, slice(1e-3, 1e-2))
    classifier.save("clas")
    save_pickle(folder / "clas.pkl", [list(classes.vocab[0]), [str(name) for name in classes.vocab[1]]])
    found["documents"] = [chance.integers(2, len(vocab), (1, n)).tolist() for n in LENGTHS]
    found["clas_logits"] = [fastai_logits(classifier, ids)[0].tolist() for ids in found["documents"]]
    number = Numericalize(list(vocab))
    texts = [*TEXTS[:2], "An unseen word didn't hurt :)"]
    found["texts"] = texts
    found["text_ids"] = [number(list(t)).tolist() for t in TokenizeWithRules(SpacyTokenizer())(texts)]
    (folder / "fastai.json").write_text(json.dumps(found))


def fastai_loads(folder):
    from fastai.learner import load_model
    from fastai.text.all import load_pickle

    failures = []
    for name in EXPORTS:
        place = folder / f"export_{name}"
        stored = json.loads((folder / f"{name}.json").read_text())
        vocab = load_pickle(place / "vocab.pkl")
        is_classifier = name.endswith("clas")
        loaders = fastai_loaders(folder, vocab[0] if is_classifier else vocab, labels=is_classifier)
        options = {"classifier": is_classifier, **EXPORTS[name].get("options", {})}

        def fresh(loaders=loaders, place=place, config=stored["fastai_config"], options=options):
            return fastai_learner(place, loaders, config, **options)

        ways = {"learn.load": fresh().load("model")}
        ways["load_model"] = fresh()
        load_model(place / "model.pth", ways["load_model"].model, None, with_opt=False)
        if not is_classifier and not name.startswith("untied"):  # fastai's match_embeds ties the decoder
            ways["pretrained_fnames"] = fresh(options={**options, "pretrained_fnames": ["model", "vocab"]})
        for way, learner in ways.items():
            for ids, ours in zip(stored["ids"], stored["logits"], strict=True):
                told = f"fastai {way} of our {name}, {len(ids[0])} tokens"
                report(folder, told, fastai_logits(learner, ids), ours, allowed_for(name), failures)
        encoder = fresh().load_encoder("encoder").model[0].state_dict()
        whole = ways["learn.load"].model[0].state_dict()
        same = all(torch.equal(encoder[key], whole[key]) for key in whole)
        print(f"fastai load_encoder of our {name}: {'the same weights' if same else 'OTHER WEIGHTS'}")
        failures += [] if same else [f"load_encoder of {name}"]
    return failures


def allowed_for(name):
    return CLASSIFIER if name.endswith("clas") or name.startswith("published") else LANGUAGE_MODEL


# 2 and 3, in this environment


def imported(folder, name, vocab, **more):
    from ulmfit_pipe import ImportFastaiSettings, import_fastai

    target = folder / f"import_{name}"
    import_fastai(ImportFastaiSettings(str(folder / f"{name}.pth"), str(folder / vocab), str(target), **more))
    return target


def our_logits(target, ids):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from ulmfit_pipe.stages.artifacts import load_config, load_model

    is_classifier = "Sequence" in load_config(target).architectures[0]
    model = load_model(target, AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM).eval()
    with torch.no_grad():
        return [model(torch.tensor(rows)).logits.numpy() for rows in ids]


def ours_imports(folder):
    from ulmfit_pipe.stages.artifacts import load_tokenizer

    failures = []
    found = json.loads((folder / "fastai.json").read_text())
    weights = torch.load(folder / "lm_bare.pth", weights_only=True)
    old = {k.replace(".weight_hh_l0_raw", ".module.weight_hh_l0_raw"): v for k, v in weights.items()}
    old = {k.replace("encoder_dp.emb", "encoder_with_dropout.embed"): v for k, v in old.items()}
    torch.save(old, folder / "lm_0.7_layout.pth")
    for name in ("lm_with_opt", "lm_bare", "lm_0.7_layout"):
        target = imported(folder, name, "vocab.pkl")
        ours = our_logits(target, [found["lm_ids"]])[0]
        report(folder, f"our import of fastai's {name}", found["lm_logits"], ours, LANGUAGE_MODEL, failures)
    bias = weights["1.decoder.bias"].numpy()
    print(f"largest decoder bias of the file: {np.abs(bias).max():.4f}")
    ours = our_logits(imported(folder, "encoder", "vocab.pkl"), [found["lm_ids"]])[0]
    report(
        folder,
        "our import of fastai's encoder, its bias added",
        found["lm_logits"],
        ours + bias,
        LANGUAGE_MODEL,
        failures,
    )
    target = imported(folder, "clas", "clas.pkl")
    for ids, theirs, ours in zip(
        found["documents"], found["clas_logits"], our_logits(target, found["documents"]), strict=True
    ):
        report(
            folder, f"our import of fastai's classifier, {len(ids[0])} tokens", theirs, ours[0], CLASSIFIER, failures
        )
    same = load_tokenizer(target).encode_documents(found["texts"]) == found["text_ids"]
    print(f"token ids of {len(found['texts'])} texts: {'the same' if same else 'OTHERS'}")
    return failures + ([] if same else ["token ids"])


def ours_exports(folder):
    from ulmfit_pipe import ExportFastaiSettings, export_fastai
    from ulmfit_pipe.data.text.tokenization import train_tokenizer, vocab_hash

    chance = np.random.default_rng(1)
    for name, case in EXPORTS.items():
        torch.manual_seed(2)
        tokenizer = train_tokenizer(TEXTS, kind="unigram" if name.startswith("subword") else "word", vocab_size=150)
        model = our_model(name, vocab_size=len(tokenizer), vocab_hash=vocab_hash(tokenizer))
        if name.endswith("lm"):
            ids = [chance.integers(0, len(tokenizer), (2, 30)).tolist()]
        else:
            ids = [chance.integers(2, len(tokenizer), (1, n)).tolist() for n in LENGTHS]
        place = folder / f"ours_{name}"
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        settings = ExportFastaiSettings(str(place), str(folder / f"export_{name}"), **case.get("export", {}))
        print(f"{place.name}: {export_fastai(settings).loading[0]}")
        logits = [rows.tolist() for rows in our_logits(place, ids)]
        if model.config.direction == "backward" and name.endswith("clas"):  # ours turns a document around itself
            ids = [[row[::-1] for row in rows] for rows in ids]
        theirs = {"emb_sz": "embedding_size", "n_hid": "hidden_size", "n_layers": "num_hidden_layers"}
        config = {key: getattr(model.config, ours) for key, ours in theirs.items()}
        if not model.config.tie_word_embeddings:
            config["tie_weights"] = False
        stored = {"ids": ids, "logits": logits, "fastai_config": config}
        (folder / f"{name}.json").write_text(json.dumps(stored))
    return []


def our_model(name, **more):
    """Build what is exported under a name, with weights that are seen in the logits."""
    from ulmfit_pipe import AwdLstmConfig, AwdLstmForCausalLM, AwdLstmForSequenceClassification

    config = {**EXPORTS[name]["config"], **more}
    if name.endswith("lm"):
        model = AwdLstmForCausalLM(AwdLstmConfig(**config))
        model.lm_head.bias.data.uniform_(-0.1, 0.1)
        return model
    model = AwdLstmForSequenceClassification(AwdLstmConfig(**config, id2label={0: "neg", 1: "pos"}))
    for block in model.classifier.blocks:
        block.norm.running_mean.uniform_(-0.1, 0.1)
        block.norm.running_var.uniform_(0.01, 0.1)
    return model


def store(folder, fastai_python):
    """Write what was compared, and the keys and shapes of every file that fastai has loaded."""
    from importlib.metadata import version

    asked = "import fastai, torch; print(fastai.__version__, torch.__version__)"
    said = subprocess.run([fastai_python, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
    files = {}
    for name in EXPORTS:
        weights = torch.load(folder / f"export_{name}" / "model.pth", weights_only=True)
        files[name] = {key: list(tensor.shape) for key, tensor in weights.items()}
    found = [json.loads(line) for line in (folder / FOUND).read_text().splitlines()]
    content = {
        "made_with": "python tests/reference/check_fastai_round_trip.py --fastai_python ... --store",
        "versions": {"fastai": said[0], "torch of fastai": said[1], "torch": version("torch")},
        "differences": {one["name"]: [one["difference"], one["largest_logit"]] for one in found},
        "loaded_by_fastai": files,
    }
    lines = ",\n".join(f"{json.dumps(key)}: {as_lines(value)}" for key, value in content.items())
    STORED.write_text(f"{{\n{lines}\n}}\n")
    print(f"stored {len(found)} differences in {STORED}")


def as_lines(value):
    """JSON with one line for each entry of a dict."""
    if not isinstance(value, dict):
        return json.dumps(value)
    return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(part)}" for key, part in value.items()) + "\n}"


STEPS = {
    "fastai_saves": fastai_saves,
    "ours_imports": ours_imports,
    "ours_exports": ours_exports,
    "fastai_loads": fastai_loads,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fastai_python", help="Python of an environment that has fastai")
    parser.add_argument("--store", action="store_true", help="write fastai_round_trip.json if all is well")
    parser.add_argument("--step", choices=STEPS, help="(used inside)")
    parser.add_argument("--folder", help="(used inside)")
    words = parser.parse_args()
    if words.step:
        failures = STEPS[words.step](Path(words.folder))
        raise SystemExit("\n".join(failures) if failures else 0)
    code = 0
    with tempfile.TemporaryDirectory() as folder:
        for step in STEPS:
            python = words.fastai_python if step.startswith("fastai") else sys.executable
            code |= subprocess.run([python, __file__, "--step", step, "--folder", folder], check=False).returncode
        if words.store and code == 0:
            store(Path(folder), words.fastai_python)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
