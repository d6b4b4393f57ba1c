"""The toy world: data in the plane, where what pairing does can be computed and seen."""
