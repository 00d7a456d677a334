"""Which parameters make up each layer group of a model, input side first, by architecture."""
