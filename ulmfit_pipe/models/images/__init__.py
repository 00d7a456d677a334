"""Image backbones, and a classifier on any of them."""
