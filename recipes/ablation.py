"""Compare ways to unfreeze a classifier on your own table: the same language model, rows, seeds and number of epochs.

    python recipes/ablation.py --config recipes/configs/ablation_trec.yaml --model runs/low_shot_trec/language_model \
        --train_file trec/train.csv --test_file trec/test.csv --output_dir runs/ablation_trec

--model is a fine-tuned language model, from recipes/finetune_language_model.py or from the grid of recipes/low_shot.py.
--stage plans shows each variant's phases and trains nothing; --variants NAME, again for each, chooses some.

The budget: gradual unfreezing with classifier.epochs_per_phase and classifier.final_epochs. Every other variant gets
the same number of epochs in all: full and head in one phase; chain-thaw in phases as long, what is left at the end;
lp-ft trains its head for as long as gradual unfreezing takes.

--rates: learning rates to choose from, for each variant the one with the lowest error on --development_rows labelled
rows that no subset holds (one training per rate and variant more). Without it all variants have classifier.lr.

Reading the table: the error is the mean over seeds, with the lowest and the highest of them; a difference within that
range means nothing. Seconds differ where steps do not: a phase with frozen groups costs less.

It continues where it was stopped, like recipes/low_shot.py, and can be started twice to share the work.

OUTPUT_DIR/
  cells/         a record and the test probabilities of each variant and seed, with the table of its phases
  results.json   mean and spread, every cell; results.csv one cell a row; results.md the table

In Python:

    from ulmfit_pipe import AblationSettings, run_ablation

    settings = AblationSettings(
        model="runs/tuned", train_file=["train.csv"], test_file=["test.csv"], output_dir="runs/ablation"
    )
    print(run_ablation(settings)["table"])

Where the package is installed, `ulmfit ablation` takes the same settings and does the same.
"""

from ulmfit_pipe import run_recipe
from ulmfit_pipe.cli import run_command


def main() -> None:
    """Do what `ulmfit ablation` does: read the settings, run, print the result."""
    run_command("ablation")


if __name__ == "__main__":
    run_recipe(main)
