"""A run as pages, pictures, SQL tables and COCO files. Without Ray."""
