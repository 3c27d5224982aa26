"""Figures against ground truth, and of one run against another."""
