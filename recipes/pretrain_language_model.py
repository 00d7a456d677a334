"""Train a language model on plain text: the general model that ULMFiT starts from.

    python recipes/pretrain_language_model.py --train_file wiki.parquet --output_dir runs/general_lm \
        --language_model.embedding_size 256 --language_model.hidden_size 512 --language_model.epochs 1

The text is one document a row of a table (docs/tables.md lists the kinds). A subword vocabulary is made from it, then
an AWD-LSTM is trained with one cycle; the part of the text that was held out measures its perplexity.

For a backward model, the second half of an ensemble, add --language_model.direction backward and, so that both have one
vocabulary, --language_model.tokenizer_of runs/general_lm.

To continue from a model with more text or more epochs, add --model FOLDER (or --model awd-lstm-en, the built-in one):
its tokenizer stays, and its record (stage.json, lineage) takes over the runs it was trained in before.

A training that was killed (SIGTERM: exit code 75) continues from its last checkpoint with --resume true.

How long it takes: tokens of text times epochs, over the tokens per second that the table of epochs shows.

In Python:

    from ulmfit_pipe import LanguageModelSettings, load_table, train_language_model

    train, validation = load_table("wiki.parquet"), load_table("held_out.parquet")
    settings = LanguageModelSettings(embedding_size=256, hidden_size=512, epochs=1)
    train_language_model(train, validation, model=None, output_dir="runs/general_lm", settings=settings)

Where the package is installed, `ulmfit pretrain-lm` takes the same settings and does the same.
"""

from ulmfit_pipe import run_recipe
from ulmfit_pipe.cli import run_command


def main() -> None:
    """Do what `ulmfit pretrain-lm` does: read the settings, run, print the result."""
    run_command("pretrain-lm")


if __name__ == "__main__":
    run_recipe(main)
