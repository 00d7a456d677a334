"""Story 1: texts, from tables to a language model, a classifier and its predictions."""
