"""Push-T: the simulator, policies in it, and how they are judged (extra ``pusht``)."""
