"""A classifier over HTTP."""
