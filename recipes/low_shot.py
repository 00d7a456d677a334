"""Measure what few labels reach: the method beside baselines, on nested subsets of a labelled table.

    python recipes/low_shot.py --config recipes/configs/low_shot_trec.yaml \
        --train_file trec/train.csv --test_file trec/test.csv --output_dir runs/low_shot_trec

Each method (scratch, pretrained, ulmfit, backward, ensemble, tfidf), size and seed is a cell. A finished cell is kept:
run the same command again after a stop and it continues. To share the work, start the command twice (or with different
--methods); each process takes the cells that nobody is at, and the last one to end writes the whole table.

Rows: the subsets of a seed are stratified and nested. No label beyond a cell's own is used: the last epoch is tested,
TF-IDF chooses C by cross-validation. Only the network from scratch gets more: the best of three learning rates on
--development_rows rows that no subset holds. The language model never reads a text of the test table.

The whole test table, for one size and seed:

    python recipes/low_shot.py --config ... --test_rows null --methods ulmfit --sizes 2000 --seeds 1

To choose settings (epochs, dropout, rates) by development rows instead of test rows, add --score development.

Two grids in one picture:

    python recipes/low_shot.py --combine runs/low_shot_imdb/results.json --combine runs/low_shot_trec/results.json \
        --figure low_shot.png

OUTPUT_DIR/
  cells/            a record and the test probabilities of each cell
  rates/            the same for the learning rates tried for scratch
  language_model/   the fine-tuned language model (and language_model_backward/)
  results.json      mean and spread, the curves, every cell; results.csv one cell a row; results.md the table
  curve.png         error against labels; --figure puts it elsewhere

Where the package is installed, `ulmfit low-shot` takes the same settings and does the same.
"""

from ulmfit_pipe import run_recipe
from ulmfit_pipe.cli import run_command


def main() -> None:
    """Do what `ulmfit low-shot` does: read the settings, run, print the result."""
    run_command("low-shot")


if __name__ == "__main__":
    run_recipe(main)
