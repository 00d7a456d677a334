"""Networks and their weights, in the transformers idiom."""
