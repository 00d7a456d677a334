"""A trained language model made fit to be published, and its card."""
