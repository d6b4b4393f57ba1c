"""A toy in the plane, where all that a coupling does can be computed and drawn."""
