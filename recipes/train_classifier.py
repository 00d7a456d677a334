"""Train a classifier on a fine-tuned language model (the third step of ULMFiT), or continue from a saved classifier.

    python recipes/train_classifier.py --model runs/reviews_lm --train_file train.csv --test_file test.csv \
        --output_dir runs/reviews_classifier --classifier.plan gradual

With new labelled data, give the saved classifier's own folder as --model: its head and weights are kept, as long as the
labels are the same.

--classifier.plan chooses how the layer groups are unfrozen: the preset's way, gradual, chain-thaw, lp-ft, head, full.

The table that is shown before training:

phase           one row per phase; the frozen set changes between phases only
trains          the layer groups that move in it; the first is nearest the input
learning rates  the peak of each group's rate over the phase; - where the group is frozen
parameters      how many scalars an optimizer step may change

A training that was killed continues with the same command and --resume true.

With few labels, add unlabelled text to the language model first: recipes/finetune_language_model.py.

In Python:

    from ulmfit_pipe import load_table, train_classifier

    train, validation = load_table("train.csv"), load_table("held_out.csv")
    result = train_classifier(train, validation, model="runs/reviews_lm", output_dir="runs/reviews_classifier")
    print(result.metrics["accuracy"])

Where the package is installed, `ulmfit train-classifier` takes the same settings and does the same.
"""

from ulmfit_pipe import run_recipe
from ulmfit_pipe.cli import run_command


def main() -> None:
    """Do what `ulmfit train-classifier` does: read the settings, run, print the result."""
    run_command("train-classifier")


if __name__ == "__main__":
    run_recipe(main)
