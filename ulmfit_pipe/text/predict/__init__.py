"""Prediction: one text, a file, many files."""
