"""Experiments about the method; nothing below imports them."""
