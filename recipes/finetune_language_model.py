"""Fine-tune a pretrained language model on the text of a task (the second step of ULMFiT).

    python recipes/finetune_language_model.py --model runs/general_lm --train_file reviews.csv \
        --train_file unlabelled.csv --output_dir runs/reviews_lm --preset fastai
    python recipes/finetune_language_model.py --model models/bert --train_file reviews.csv \
        --train_file unlabelled.csv --output_dir runs/reviews_bert --language_model.whole_word_masking true

Every text may be used here, labelled or not, but none that you will test on. A subword model keeps its vocabulary; a
word model gets a new one, in which known words keep their rows and new ones start at the mean. Any text model of
transformers will do: a BERT continues guessing masked tokens, a GPT-2 or Llama the next one. What is measured then is a
pseudo-perplexity of masked tokens, or a perplexity; the two cannot be compared. The folder is plain transformers, for
AutoModelForMaskedLM or AutoModelForCausalLM.

The stage is finished when stage.json is in the output folder; a second call with the same settings skips it. One
that was killed continues from its last checkpoint with --resume true.

In Python:

    from ulmfit_pipe import load_table, train_language_model

    train, validation = load_table("reviews.csv"), load_table("held_out.csv")
    result = train_language_model(train, validation, model="awd-lstm-en", output_dir="runs/reviews_lm")
    print(result.metrics["perplexity"])

Where the package is installed, `ulmfit finetune-lm` takes the same settings and does the same.
"""

from ulmfit_pipe import run_recipe
from ulmfit_pipe.cli import run_command


def main() -> None:
    """Do what `ulmfit finetune-lm` does: read the settings, run, print the result."""
    run_command("finetune-lm")


if __name__ == "__main__":
    run_recipe(main)
