"""Minutes on anybody's data: does pairing help there? A small network, several seeds, a control."""
