"""Feature spaces that images are compared in."""
