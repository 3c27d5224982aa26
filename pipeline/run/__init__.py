"""The run folder: its objects, rows, snapshots, and the lease of its one writer. Without Ray."""
