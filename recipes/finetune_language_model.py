"""Fine-tune a pretrained language model on the text of a task (the second step of ULMFiT).

    python recipes/finetune_language_model.py --model runs/general_lm --train_file reviews.csv \
        --train_file unlabelled.csv --output_dir runs/reviews_lm --preset fastai
    python recipes/finetune_language_model.py --model models/bert --train_file reviews.csv \
        --train_file unlabelled.csv --output_dir runs/reviews_bert --language_model.whole_word_masking true

Every text may be used here, labelled or not, but none that you will test on. A subword model keeps its vocabulary; a
word model gets a new one, in which known words keep their rows and new ones start at the mean. Any text model of
transformers will do: a BERT goes on guessing masked tokens, a GPT-2 or Llama the next one. What is measured then is a
pseudo-perplexity of masked tokens, or a perplexity; the two cannot be compared. The folder is plain transformers, for
AutoModelForMaskedLM or AutoModelForCausalLM.

The stage is finished when stage.json lies in the output folder; a second call with the same settings skips it. One
that was killed goes on from its last checkpoint with --resume true.
"""

import shlex

from ulmfit_pipe import LanguageModelJob, describe_perplexity, parse_settings, run_language_model, run_recipe


def main() -> None:
    """Read the settings, check that there is a model to go on from, fine-tune, and say what was reached."""
    job = parse_settings(
        LanguageModelJob,
        description="Fine-tune a pretrained language model on the text of a task.",
    )
    if job.model is None:
        raise ValueError(
            "--model is missing: the folder of a pretrained language model; "
            "recipes/pretrain_language_model.py makes one"
        )
    metrics = run_language_model(job)
    print(describe_perplexity(metrics["validation"]))
    print(f"the language model lies in {job.output_dir}; give it to the next stage:")
    folder = shlex.quote(job.output_dir)
    print(f"  python recipes/train_classifier.py --model {folder} --train_file train.csv --output_dir runs/mine")


if __name__ == "__main__":
    run_recipe(main)
