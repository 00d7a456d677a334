"""What every stage shares: the only folder below text and images that imports training, models and data.

Importing this registers the AWD-LSTM and its tokenizer with transformers' Auto classes.
"""

from ulmfit_pipe.stages.artifacts import register

register()
