"""The modules of DETR panoptic, and faster forms of some of them for inference."""
