"""What several test files use: toy models, tiny runs, small files."""
