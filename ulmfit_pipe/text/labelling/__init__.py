"""Which unlabelled rows to label next, and what their labels would buy."""
