"""Training only: the matcher, the losses, the model with its losses as one module."""
