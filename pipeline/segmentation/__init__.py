"""The segmentation job: Ray Data fetches work units, segments them and writes them as shards."""
