"""A folder of nights: compute the difference, judge it, publish it, take it back."""
