"""Inference: from the bytes of image files to panoptic maps."""
