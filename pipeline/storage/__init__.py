"""Objects, wherever they lie: the only door to file systems and object stores."""
