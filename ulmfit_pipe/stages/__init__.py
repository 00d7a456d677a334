"""The stages of the method: the only place where training, models and data meet.

Importing this registers the AWD-LSTM and its tokenizer with transformers' Auto classes.
"""

from ulmfit_pipe.stages.artifacts import register

register()
