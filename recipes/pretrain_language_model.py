"""Train a language model from scratch on plain text: the general model that ULMFiT starts from.

    python recipes/pretrain_language_model.py --train_file wiki.parquet --output_dir runs/general_lm \
        --language_model.embedding_size 256 --language_model.hidden_size 512 --language_model.epochs 1

The text is one document a row (CSV, TSV, JSONL, Parquet). A subword vocabulary is made from it, then an AWD-LSTM is
trained with one cycle; the part of the text that was held out measures its perplexity.

For a backward model, the second half of an ensemble, add --language_model.direction backward.

How long it takes: tokens of text times epochs, over the tokens a second that the table of epochs shows.
"""

from ulmfit_pipe import LanguageModelJob, parse_settings, run_language_model, run_recipe


def main() -> None:
    """Read the settings, check that it is from scratch, train, and say what was reached."""
    job = parse_settings(
        LanguageModelJob,
        description="Train an AWD-LSTM language model from scratch on plain text.",
    )
    if job.model is not None:
        raise ValueError(
            "--model is for going on from a language model; "
            "use recipes/finetune_language_model.py, or leave --model out"
        )
    metrics = run_language_model(job)
    validation = metrics["validation"]
    print(
        f"validation perplexity {validation['perplexity']:.2f} a token, "
        f"{validation['bits_per_character']:.3f} bits a character, "
        f"next-token accuracy {validation['token_accuracy']:.3f}"
    )
    print(f"the language model lies in {job.output_dir}; give it to the next stage:")
    print(f"  python recipes/run_pipeline.py --model {job.output_dir} --train_file train.csv --output_dir runs/mine")


if __name__ == "__main__":
    run_recipe(main)
