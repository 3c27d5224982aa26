"""What people look at and other tools read: pages, pictures, SQL, COCO files. Without Ray."""
