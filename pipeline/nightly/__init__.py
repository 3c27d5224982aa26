"""Nightly: compute the changes of a source, check them, publish them, roll them back."""
