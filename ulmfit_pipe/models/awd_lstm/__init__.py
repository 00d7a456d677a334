"""The AWD-LSTM, in the transformers idiom."""
