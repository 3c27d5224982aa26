"""Weight files: recognise, read and write them; model cards and their fingerprints."""
