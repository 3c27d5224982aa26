"""The run folder: its layout, its objects, its snapshots, and its one writer. Without Ray."""
