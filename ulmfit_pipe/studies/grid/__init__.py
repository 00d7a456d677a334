"""Grids of measurements: one training each, kept on disk, and what they come to."""
