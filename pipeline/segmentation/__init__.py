"""The job: units of images are fetched, segmented and written as shards, by Ray Data."""
