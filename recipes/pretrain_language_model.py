"""Train a language model on plain text: the general model that ULMFiT starts from.

    python recipes/pretrain_language_model.py --train_file wiki.parquet --output_dir runs/general_lm \
        --language_model.embedding_size 256 --language_model.hidden_size 512 --language_model.epochs 1

The text is one document a row of a table (docs/tables.md lists the kinds). A subword vocabulary is made from it, then
an AWD-LSTM is trained with one cycle; the part of the text that was held out measures its perplexity.

For a backward model, the second half of an ensemble, add --language_model.direction backward and, so that both have one
vocabulary, --language_model.tokenizer_of runs/general_lm.

To go on from a model with more text or more epochs, add --model FOLDER (or --model awd-lstm-en, the built-in one): its
tokenizer stays, and its record (stage.json, lineage) takes over the legs it was trained in before.

A training that was killed (SIGTERM: exit code 75) goes on from its last checkpoint with --resume true.

How long it takes: tokens of text times epochs, over the tokens a second that the table of epochs shows.
"""

import shlex
from dataclasses import replace

from ulmfit_pipe import LanguageModelJob, describe_perplexity, parse_settings, run_language_model, run_recipe


def main() -> None:
    """Read the settings, train from scratch or on from a model, and say what was reached."""
    job = parse_settings(
        LanguageModelJob,
        description="Train an AWD-LSTM language model on plain text, from scratch or on from another.",
    )
    if job.model is not None and job.language_model.plan == "preset":
        job = replace(job, language_model=replace(job.language_model, plan="pretrain"))
    metrics = run_language_model(job)
    print(describe_perplexity(metrics["validation"]))
    print(f"the language model lies in {job.output_dir}; give it to the next stage:")
    folder = shlex.quote(job.output_dir)
    print(f"  python recipes/run_pipeline.py --model {folder} --train_file train.csv --output_dir runs/mine")


if __name__ == "__main__":
    run_recipe(main)
