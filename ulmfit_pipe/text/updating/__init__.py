"""A saved classifier continues on new rows, which may have new classes: its head, its old rows, before and after."""
