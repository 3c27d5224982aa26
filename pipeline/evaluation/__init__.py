"""PQ of a run against ground truth, and comparisons of two runs."""
