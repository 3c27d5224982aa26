"""Training on a COCO panoptic dataset with Ray Train, and synthetic scenes to train on."""
