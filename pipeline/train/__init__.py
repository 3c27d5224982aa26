"""Training on a COCO panoptic dataset, on Ray Train; and the made scenes to train on."""
