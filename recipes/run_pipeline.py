"""From tables to a saved classifier by the whole method.

    python recipes/run_pipeline.py --train_file train.csv --test_file test.csv --output_dir runs/reviews

What happens, in this order:

1. The tables are read and checked; a validation part is held out unless a file is given.
2. The language model is fine-tuned on the training and unlabelled texts: the built-in awd-lstm-en, or another with
   --model FOLDER; --model null trains one from scratch.
3. Its encoder gets a classifier head and is unfrozen group by group; the plan's table is shown first.
4. The best epoch on validation data is scored once on the test table.

Settings come from --config FILE.yaml and --dotted.name VALUE; --help lists all of them. A second call with the same
settings skips the stages that are finished; with --resume true it continues one that was killed, from its last
checkpoint. Under `accelerate launch` it runs on every process.

OUTPUT_DIR/
  language_model/   the fine-tuned language model and its tokenizer
  classifier/       the classifier: TextPipeline.load, recipes/predict.py, AutoModelForSequenceClassification
  metrics.json      test and validation metrics, seconds of each stage, library versions, seed
  predictions.csv   the test rows with truth, prediction and scores
  report.html       the result on one page: mistakes, trust in the scores, what trained when (docs/report.md)
  settings.yaml     what was run; give it back with --config

In Python:

    from ulmfit_pipe import TextPipeline

    pipe = TextPipeline()  # the built-in model
    pipe.fit("train.csv", test="test.csv", output_dir="runs/reviews")
    print(pipe.predict(["It works."]))

Where the package is installed, `ulmfit run` takes the same settings and does the same.
"""

from ulmfit_pipe import run_recipe
from ulmfit_pipe.cli import run_command


def main() -> None:
    """Do what `ulmfit run` does: read the settings, run, print the result."""
    run_command("run")


if __name__ == "__main__":
    run_recipe(main)
