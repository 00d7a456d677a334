"""Write a model of ours as files that fastai 2.8 loads.

    python recipes/export_fastai.py --model runs/reviews/classifier --output_dir runs/for_fastai

Three files are written:

model.pth       the weights, as `learn.save("model", with_opt=False)` writes them; read by `learn.load("model")`
encoder.pth     the part without decoder or head, for `learn.load_encoder("encoder")`
vocab.pkl       the list of tokens, position = id; for a classifier [tokens, labels]

A language model can also be given as `pretrained_fnames=["model", "vocab"]`, which fits it to the words of other texts;
fastai then gives the decoder the embedding's weights, also where it had its own.

fastai must number tokens as vocab.pkl does. Give its list to the loaders, for example

    vocab = load_pickle("runs/for_fastai/vocab.pkl")
    dls = TextDataLoaders.from_df(df, is_lm=True, text_vocab=vocab)      # a language model
    dls = TextDataLoaders.from_df(df, text_vocab=vocab[0])               # a classifier; vocab[1] are its labels

A model of subwords is written too, but how it tokenizes text is not part of fastai's files.

In Python:

    from ulmfit_pipe import ExportFastaiSettings, export_fastai

    summary = export_fastai(ExportFastaiSettings(model="runs/reviews/classifier", output_dir="runs/for_fastai"))
    print(summary.kind, summary.loading)

Where the package is installed, `ulmfit export-fastai` takes the same settings and does the same.
"""

from ulmfit_pipe import run_recipe
from ulmfit_pipe.cli import run_command


def main() -> None:
    """Do what `ulmfit export-fastai` does: read the settings, run, print the result."""
    run_command("export-fastai")


if __name__ == "__main__":
    run_recipe(main)
