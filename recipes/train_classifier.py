"""Train a classifier on a fine-tuned language model (the third step of ULMFiT), or go on from a saved classifier.

    python recipes/train_classifier.py --model runs/reviews_lm --train_file train.csv --test_file test.csv \
        --output_dir runs/reviews_classifier --classifier.plan gradual

With new labelled data, give the saved classifier's own folder as --model: its head and weights are kept, as long as the
labels are the same.

--classifier.plan chooses how the layer groups thaw: the preset's way, gradual, chain-thaw, lp-ft, head, full.

The table that is shown before training:

phase           one row a phase; the frozen set changes between phases only
trains          the layer groups that move in it; the first is nearest the input
learning rates  the peak of each group's rate over the phase; - where the group is frozen
parameters      how many scalars an optimizer step may change

A training that was killed goes on where it was with the same command and --resume true.

With few labels, add unlabelled text to the language model first: recipes/finetune_language_model.py.
"""

import shlex

from ulmfit_pipe import ClassifierJob, metrics_table, parse_settings, run_classifier, run_recipe


def main() -> None:
    """Read the settings, train, show what was reached and how to use it."""
    job = parse_settings(
        ClassifierJob,
        description="Train a classifier by gradual unfreezing, from a language model or a saved classifier.",
    )
    metrics = run_classifier(job)
    print(metrics_table(metrics))
    print(f"the classifier lies in {job.output_dir}; use it with")
    folder = shlex.quote(job.output_dir)
    print(f"  python recipes/predict.py --model {folder} --input_file FILE --output_file OUT.csv")
    print("and go on from it when there is more labelled data with")
    print(f"  python recipes/train_classifier.py --model {folder} --train_file MORE.csv --output_dir NEW_FOLDER")


if __name__ == "__main__":
    run_recipe(main)
