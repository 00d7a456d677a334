"""How transferable are your layers? The experiment of Yosinski et al. 2014 (figure 2) on your own data and model.

    python recipes/transferability.py --dataset digits --output_dir runs/transferability_digits
    python recipes/transferability.py --dataset docstrings --seeds 1 --output_dir runs/transferability_text
    python recipes/transferability.py --train_images photos/train --model microsoft/resnet-18 --output_dir runs/layers
    python recipes/transferability.py --train_file trec/train.csv --model awd-lstm-en --output_dir runs/layers_trec

The classes (four or more) are split in two halves, tasks A and B. A network is trained on each. Then layer groups 1..n
of one of them go into a network whose other groups are new, and it is trained on task B:

  BnB     its own layers, frozen: if it falls, layers depended on those above them (fragile co-adaptation)
  BnB+    its own layers, unfrozen after --frozen_epochs
  AnB     the other task's layers, frozen: if it falls below BnB, they are specific to the other task
  AnB+    the other task's layers, unfrozen after --frozen_epochs
  random  layers that nothing has trained, frozen
  baseB   the line: an ordinary network of task B

At the last n all but the head is copied: AnB there is a head trained on a frozen backbone, AnB+ the same, unfrozen
afterwards. That is why people unfreeze, or need not; the last printed sentence shows it with your figures.

With --model the two base networks start from the model's weights; --pretrained false lets them start at random, as in
the paper, where also --frozen_epochs is 0. New layers are random always. --task_a names the classes of task A, instead
of a draw by each seed: natural things on one side, man-made ones on the other. --rows_of_b 100 shows what few labels
change.

It continues where it was stopped, and can be started twice to share the work.

The digits took 2.5 minutes of one core (69 networks); the docstrings take about 5 a seed (23 networks).

OUTPUT_DIR/
  cells/         a record and the test probabilities of each network
  bases/         weights of the base networks, as long as they are needed
  results.json   the curves, differences, every network; results.csv one network a row; results.md table and sentence
  transferability.png   the picture; --figure puts it elsewhere

Where the package is installed, `ulmfit transferability` takes the same settings and does the same.
"""

from ulmfit_pipe import run_recipe
from ulmfit_pipe.cli import run_command


def main() -> None:
    """Do what `ulmfit transferability` does: read the settings, run, print the result."""
    run_command("transferability")


if __name__ == "__main__":
    run_recipe(main)
