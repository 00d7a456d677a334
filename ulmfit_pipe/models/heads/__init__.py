"""Classifier heads, and classifiers of documents on any text backbone."""
