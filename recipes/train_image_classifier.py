"""Train an image classifier: a new head on a pretrained backbone, first alone, then with the layers below it.

    python recipes/train_image_classifier.py --train_images photos/train --test_images photos/test \
        --model microsoft/resnet-18 --output_dir runs/photos
    python recipes/train_image_classifier.py --config recipes/configs/digits.yaml --output_dir runs/digits

The same Learner, layer groups, phases and learning-rate finder as for text. What happens, in this order:

1. Every image is opened once: photos/train/CLASS/IMAGE, a table of paths (columns image and label), or a folder that
   `datasets` saved. One that does not open is named; --classifier.skip_bad_images true leaves such images out.
2. --model is any image model of transformers (folder or hub id: ResNet, ConvNeXt, ViT, Swin, ..., timm's where timm is
   installed), or a classifier that this recipe wrote. Without one, a small ResNet is built and pretrained on a related
   task (--pretraining.task printed-letters or rotations).
3. The head is trained on the frozen backbone, then all groups with lower rates the nearer they are to the image.
4. The best epoch on validation images is scored once on the test images.

A run that was killed continues with the same command and --resume true.

For those who know fastai's cnn_learner: cut is --classifier.keep_stages, lin_ftrs --classifier.head.hidden_sizes, ps
--classifier.head.dropouts, bn_final --classifier.head.final_norm, split_on --classifier.layer_groups, n_in
--classifier.channels, train_bn --classifier.train_norm; pretrained, concat_pool and init keep their names. custom_head
is an argument of ImagePipeline.fit and train_image_classifier in Python.

OUTPUT_DIR/
  pretraining/    the classifier of the related task, where there was one
  classifier/     weights, config.json, preprocessor_config.json: ImagePipeline.load
  metrics.json    test and validation metrics, the best validation score of each phase, seconds
  settings.yaml   what was run; give it back with --config
  report.html     the result, what trained when, curves, settings

Where the package is installed, `ulmfit images` takes the same settings and does the same.
"""

from ulmfit_pipe import run_recipe
from ulmfit_pipe.cli import run_command


def main() -> None:
    """Do what `ulmfit images` does: read the settings, run, print the result."""
    run_command("images")


if __name__ == "__main__":
    run_recipe(main)
