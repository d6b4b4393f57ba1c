"""What the two papers measured on their pairings, measured here."""
