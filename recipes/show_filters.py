"""Draw what fine-tuning did to a model: its first filters, what its layers make of images, which layers moved how far.

    python recipes/show_filters.py --before runs/digits/pretraining --after runs/digits/classifier \
        --images seven.png --images nine.png --output_dir runs/digits_filters
    python recipes/show_filters.py --before distilbert-base-uncased --after runs/reviews/classifier \
        --output_dir runs/reviews_change

Both are folders, built-in names or hub ids of one architecture. They may be of different kinds: an encoder or language
model before, a classifier after; a head that is new since then is reported as new.

OUTPUT_DIR/
  weight_changes.png    ||after - before|| / ||before|| of each layer group, and of its tensors as dots (log scale)
  weight_changes.json   the same in numbers, for every tensor; running statistics of batch norms apart
  filters.png           image models: the first convolution's filters before and after, and where they changed
  activations_NAME.png  image models, with --images: the channels of a layer that changed most, before and after

Text models have no filters to draw: their weight changes are all there is.

Choose layers by their names in the model after fine-tuning, for example --layers backbone.encoder.stages.0 (repeat the
option for more); a wrong name is answered by the nearest real ones. Reading the pictures: with gradual unfreezing and
lower rates near the input, early groups should have moved least; a group at 0 was frozen throughout.

In Python, on a learner: learner.snapshot() before training, then print(learner.weight_changes()) and
learner.weight_changes().plot("change.png").

In Python:

    from ulmfit_pipe import ShowFiltersSettings, show_filters

    shown = show_filters(ShowFiltersSettings(before="bert", after="runs/classifier", output_dir="runs/change"))
    print(shown.changes)

Where the package is installed, `ulmfit show-filters` takes the same settings and does the same.
"""

from ulmfit_pipe import run_recipe
from ulmfit_pipe.cli import run_command


def main() -> None:
    """Do what `ulmfit show-filters` does: read the settings, run, print the result."""
    run_command("show-filters")


if __name__ == "__main__":
    run_recipe(main)
