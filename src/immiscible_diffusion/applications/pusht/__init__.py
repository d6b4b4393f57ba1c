"""Push-T: its simulator, policies and their evaluation (extra ``pusht``)."""
