"""Make a folder that the recipes take out of a model that fastai saved.

    python recipes/import_fastai.py --weights models/wt103.pth --vocab models/wt103.pkl --output_dir runs/wt103

--weights: a language model (`learn.save`), an encoder (`learn.save_encoder`) or a classifier, of fastai 2, 1 or 0.7
(`fwd_wt103.h5`) or of the salesforce scripts; it must be an AWD-LSTM.
--vocab: the pickled list of its tokens (`itos.pkl` in fastai 0.7); for a classifier [tokens, labels], or a list of
tokens and the labels as --labels NAME, once for each output in its order.

A language model or an encoder becomes a folder that every stage starts from. A classifier becomes two: OUTPUT_DIR, for
predict.py and train_classifier.py with the same labels, and OUTPUT_DIR/language_model, its encoder as a language model,
for the recipes that fine-tune one (finetune_language_model.py, run_pipeline.py, TextPipeline) or train other labels.

Both files are pickles, which can run code when they are read in the usual way. Here they are not: weights go through
torch's reader of plain tensors, and from a vocabulary nothing but lists of strings is taken. A file that names any
class or function is refused, with that name. fastai's own vocabulary of a classifier is such a one; save it as lists:

    pickle.dump([list(learn.dls.vocab[0]), [str(name) for name in learn.dls.vocab[1]]], open("vocab.pkl", "wb"))

Text is split into words as fastai's spaCy tokenizer does. Every row stays with its token; what was decided on the way
(old names of special tokens, a decoder that the file lacks) is printed and kept in the folder's stage.json.

In Python:

    from ulmfit_pipe import ImportFastaiSettings, import_fastai

    settings = ImportFastaiSettings(weights="wt103.pth", vocab="wt103.pkl", output_dir="runs/wt103")
    print(import_fastai(settings).kind)

Where the package is installed, `ulmfit import-fastai` takes the same settings and does the same.
"""

from ulmfit_pipe import run_recipe
from ulmfit_pipe.cli import run_command


def main() -> None:
    """Do what `ulmfit import-fastai` does: read the settings, run, print the result."""
    run_command("import-fastai")


if __name__ == "__main__":
    run_recipe(main)
