"""Checkpoints, and a training resumed from them."""
