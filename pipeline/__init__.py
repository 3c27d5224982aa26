"""The data plane: object storage -> Ray Data -> Parquet shards of RLE -> PQ."""
