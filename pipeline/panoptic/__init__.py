"""Panoptic maps as run-length strings, and exact panoptic quality from them. Pure."""

from pipeline.scratch import keep_kernels

keep_kernels(__path__[0])
