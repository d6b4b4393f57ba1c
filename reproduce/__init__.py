"""The papers' measurements beside their published figures, and the scripts behind docs/results."""
