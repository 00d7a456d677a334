"""Make a trained language model fit to be shipped: float16 on disk, no path of this machine, and a model card.

    python recipes/package_language_model.py --model runs/en_lm --name awd-lstm-en \
        --validation_file validation.parquet --hardware "2 cores of a server" \
        --output_dir ulmfit_pipe/models/pretrained/awd-lstm-en

What happens, in this order:

1. The weights are rounded to float16; more than 32 MB of them are refused.
2. With a validation file the rounded weights are measured on it; else the training's own figures are kept.
3. A sample is drawn with a fixed seed.
4. The folder is written: model.safetensors, config.json, tokenizer, stage.json, and README.md, the model card, whose
   numbers all come from the record of the training (its legs, where a training continued from another).

A folder below ulmfit_pipe/models/pretrained/ is a built-in model: its name works wherever a model is asked for, and
the wheel contains it. A second call replaces the folder; the folder of a training is never overwritten.

In Python:

    from ulmfit_pipe import PackageSettings, package_language_model

    settings = PackageSettings(model="runs/en_lm", name="mine", output_dir="shipped")
    print(package_language_model(settings)["metrics"]["perplexity"])

Where the package is installed, `ulmfit package-lm` takes the same settings and does the same.
"""

from ulmfit_pipe import run_recipe
from ulmfit_pipe.cli import run_command


def main() -> None:
    """Do what `ulmfit package-lm` does: read the settings, run, print the result."""
    run_command("package-lm")


if __name__ == "__main__":
    run_recipe(main)
