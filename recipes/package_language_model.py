"""Make a trained language model fit to be shipped: float16 on disk, no path of this machine, and a model card.

    python recipes/package_language_model.py --model runs/en_lm --name awd-lstm-en \
        --validation_file validation.parquet --hardware "2 cores of a server" \
        --output_dir ulmfit_pipe/models/pretrained/awd-lstm-en

What happens, in this order:

1. The weights are rounded to float16; more than 32 MB of them are refused.
2. With a validation file the rounded weights are measured on it; else the training's own figures stand.
3. A sample is drawn with a fixed seed.
4. The folder is written: model.safetensors, config.json, tokenizer, stage.json, and README.md, the model card, whose
   numbers all come from the record of the training (its legs, where a training went on from another).

A folder below ulmfit_pipe/models/pretrained/ is a built-in model: its name works wherever a model is asked for, and
the wheel contains it. A second call replaces the folder; the folder of a training is never overwritten.
"""

import shlex
from pathlib import Path

from ulmfit_pipe import PackageSettings, package_language_model, parse_settings, run_recipe


def main() -> None:
    """Read the settings, package the model, and say what the card says."""
    settings = parse_settings(
        PackageSettings,
        description="Package a language model: float16 weights, tokenizer, record and model card.",
    )
    record = package_language_model(settings)
    metrics = record["metrics"]
    print(f"{record['parameters']:,} parameters, {record['weight_bytes'] / 1e6:.1f} MB of weights")
    for name in ("perplexity", "perplexity_per_word", "bits_per_character"):
        if metrics.get(name) is not None:
            print(f"{name.replace('_', ' ')}: {metrics[name]:.3f}")
    print(f"sample: {record['sample']['text']}")
    print(f"the model lies in {settings.output_dir}, its card in {Path(settings.output_dir) / 'README.md'}; use it:")
    folder = shlex.quote(settings.output_dir)
    print(f"  python recipes/run_pipeline.py --model {folder} --train_file YOURS.csv --output_dir runs/mine")


if __name__ == "__main__":
    run_recipe(main)
