"""Find a learning rate for one stage at one freeze state.

    python recipes/find_learning_rate.py --stage classifier --model runs/reviews_lm --train_file train.csv \
        --freeze_to -1 --output_dir runs/lr

Writes learning_rate.png (look at it) and learning_rate.json. The sweep leaves nothing behind: weights, random state and
data order are as before. Sweep once for each state you are going to train: --freeze_to -1, -2, 0
(the head; the last two layer groups; all of them).

Reading the picture: `valley` is a safe peak for one-cycle, `steep` is faster and riskier, `minimum` is a tenth of the
rate at the lowest loss, `slide` is the end of the slope.

One rate is swept for all groups that train. Give discriminative rates afterwards, for example in Python
`learner.fit_one_cycle(2, slice(valley / 2.6**4, valley))`: the input side gets the first, the head the last.

The same sweep for a language model, with every layer group trained:

    python recipes/find_learning_rate.py --stage language_model --train_file text.csv --freeze_to 0 --output_dir runs/lr

In Python:

    from ulmfit_pipe import build_classifier_learner, load_table

    parts = build_classifier_learner(load_table("train.csv"), None, model="runs/reviews_lm")
    parts.learner.freeze_to(-1)
    result = parts.learner.lr_find()
    print(result.suggestions)
    result.plot()

Where the package is installed, `ulmfit lr-find` takes the same settings and does the same.
"""

from ulmfit_pipe import run_recipe
from ulmfit_pipe.cli import run_command


def main() -> None:
    """Do what `ulmfit lr-find` does: read the settings, run, print the result."""
    run_command("lr-find")


if __name__ == "__main__":
    run_recipe(main)
