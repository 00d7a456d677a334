"""Compare ways to thaw a classifier on your own table: the same language model, rows, seeds and number of epochs.

    python recipes/ablation.py --config recipes/configs/ablation_trec.yaml --model runs/low_shot_trec/language_model \
        --train_file trec/train.csv --test_file trec/test.csv --output_dir runs/ablation_trec

--model is a fine-tuned language model, from recipes/finetune_language_model.py or from the grid of recipes/low_shot.py.
--stage plans shows each variant's phases and trains nothing; --variants NAME, again for each, chooses some.

The budget: gradual unfreezing with classifier.epochs_per_phase and classifier.final_epochs. Every other variant gets
the same number of epochs in all: full and head in one phase; chain-thaw in phases as long, what is left at the end;
lp-ft trains its head for as long as gradual thaws.

--rates: learning rates to choose from, for each variant the one with the lowest error on --development_rows labelled
rows that no subset holds (one training a rate and variant more). Without it all variants have classifier.lr.

Reading the table: the error is the mean over seeds, with the lowest and the highest of them; a difference within that
range says nothing. Seconds differ where steps do not: a phase with frozen groups costs less.

It goes on where it was stopped, like recipes/low_shot.py, and can be started twice to share the work.

OUTPUT_DIR/
  cells/         a record and the test probabilities of each variant and seed, with the table of its phases
  results.json   mean and spread, every cell; results.csv one cell a row; results.md the table
"""

from ulmfit_pipe import AblationSettings, parse_settings, run_ablation, run_recipe


def main() -> None:
    """Read the settings, show the plans, run what is missing, show the table."""
    settings = parse_settings(
        AblationSettings,
        description="Test error, seconds and steps of different ways to thaw a classifier, with equal epochs.",
    )
    results = run_ablation(settings)
    if settings.stage == "plans":
        return
    print()
    print(results["table"])


if __name__ == "__main__":
    run_recipe(main)
