"""What every stage shares: the only place below text and images where training, models and data meet.

Importing this registers the AWD-LSTM and its tokenizer with transformers' Auto classes.
"""

from ulmfit_pipe.stages.artifacts import register

register()
