"""Checks of a labelled table before anything is trained."""
