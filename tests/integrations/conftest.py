"""Fixtures of the integrations."""

from fixtures.recorder import recorder

__all__ = ["recorder"]
