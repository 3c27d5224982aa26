"""The parts of DETR panoptic as the paper draws them, and the forms that inference uses."""
