"""The outputs of frozen groups, computed once per row."""
