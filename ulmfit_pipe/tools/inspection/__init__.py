"""What fine-tuning did to a model: filters, activations, weights."""
