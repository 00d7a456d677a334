"""The base of this package's public errors: `except UlmfitError` catches what a user can act on."""


class UlmfitError(Exception):
    """What this package refuses or cannot do; the message names what came, what is allowed and what to do next."""
