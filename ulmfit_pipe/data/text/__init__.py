"""Texts -> token ids."""
