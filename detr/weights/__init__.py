"""Files of weights: recognise one, read it, write our own, and say what can change a result."""
