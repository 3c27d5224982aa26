"""Panoptic maps as run-length strings, and exact panoptic quality from them. Pure."""
