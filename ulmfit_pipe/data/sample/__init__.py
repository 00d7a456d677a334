"""Embedded sample data: docstrings of installed libraries, and images that need no download."""
