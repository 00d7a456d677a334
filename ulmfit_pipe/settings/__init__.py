"""What a user may set, and how it is read: frozen dataclasses, without torch."""
