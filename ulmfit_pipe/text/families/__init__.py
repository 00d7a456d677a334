"""The two families of text models: the AWD-LSTM and the transformers."""
