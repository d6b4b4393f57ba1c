"""Images, diffused in pixel space."""
