"""Objects of local disks, S3 and fsspec URLs. Only this room uses file systems and stores."""
