"""What a training logs while it runs, and summaries of a model."""
