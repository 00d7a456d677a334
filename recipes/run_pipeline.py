"""From tables to a saved classifier by the whole method.

    python recipes/run_pipeline.py --train_file train.csv --test_file test.csv --output_dir runs/reviews

What happens, in this order:

1. The tables are read and checked; a validation part is held out unless a file is given.
2. The language model is fine-tuned on the training and unlabelled texts: the built-in awd-lstm-en, or another with
   --model FOLDER; --model null trains one from scratch.
3. Its encoder gets a classifier head and is thawed group by group; the plan's table is shown first.
4. The best epoch on validation data is scored once on the test table.

Settings come from --config FILE.yaml and --dotted.name VALUE; --help lists all of them. A second call with the same
settings skips the stages that are finished; with --resume true it goes on with one that was killed, from its last
checkpoint. Under `accelerate launch` it runs on every process.

OUTPUT_DIR/
  language_model/   the fine-tuned language model and its tokenizer
  classifier/       the classifier: TextPipeline.load, recipes/predict.py, AutoModelForSequenceClassification
  metrics.json      test and validation metrics, seconds of each stage, library versions, seed
  settings.yaml     what was run; give it back with --config
"""

import json
import shlex

from ulmfit_pipe import PipelineSettings, metrics_table, parse_settings, run_pipeline, run_recipe


def main() -> None:
    """Read the settings, run the pipeline, show what it reached and how to use it."""
    settings = parse_settings(
        PipelineSettings,
        description="Train a text classifier by ULMFiT: language model, then gradual unfreezing.",
    )
    metrics = run_pipeline(settings)
    print(metrics_table(metrics))
    folder = metrics["classifier"]
    if folder is None:
        print("these are scores of the folds; the same command without --folds trains the classifier to use")
        return
    print(f"the classifier lies in {folder}; use it with")
    print(f"  python recipes/predict.py --model {shlex.quote(folder)} --input_file FILE --output_file OUT.csv")
    print(f'  TextPipeline.load({json.dumps(folder, ensure_ascii=False)}).predict(["..."])')


if __name__ == "__main__":
    run_recipe(main)
