"""Predict every row of a table, or of several (docs/tables.md lists the kinds), with a trained classifier.

    python recipes/predict.py --model runs/reviews/classifier --input_file new.csv --output_file predicted.csv

The output holds the same rows in the same order with all their columns, and after them:

label           the predicted label; for multi-label all that reach their thresholds (a list; in CSV joined with |)
score           its probability; for multi-label the lowest among the labels given
score_LABEL     the probability of every label, with --all_scores true

An input column that is itself called label or score is kept as label_given or score_given: `label` is always the
prediction, in the type of label_given. So a test table can be predicted as it is, and label == label_given counted.

The input is checked whole before the first prediction: a row that cannot be used is named and nothing is written
(--empty_text error does so with a row without text, whose label is left empty otherwise). Both files may be larger than
memory. The output takes its name only when it is whole: a run that was stopped leaves an earlier file as it was.

Large inputs, one file or many, are predicted by several processes into a folder of parts:

    torchrun --nproc_per_node 2 recipes/predict.py --model runs/reviews/classifier --input_file new.csv \
        --output_dir predicted --output_file predicted.csv

(`accelerate launch --num_processes 2` does the same on GPUs.) A part, part-000000001-000001024.csv, holds the rows that
its name gives, and is atomic. The same command, with any number of processes, continues after a kill and makes
no part twice; an input, model or setting that is another now is refused. --output_file, which may be given later, joins
the parts. Several machines need a disk that all of them see.

Give the folder of the classifier itself; one that holds a backward classifier is averaged with it.

To predict a few texts from Python:

    from ulmfit_pipe import TextPipeline
    TextPipeline.load("runs/reviews/classifier").predict(["It works."])

Where the package is installed, `ulmfit predict` takes the same settings and does the same.
"""

from ulmfit_pipe import run_recipe
from ulmfit_pipe.cli import run_command


def main() -> None:
    """Do what `ulmfit predict` does: read the settings, run, print the result."""
    run_command("predict")


if __name__ == "__main__":
    run_recipe(main)
