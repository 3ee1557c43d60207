"""What stands around a pilot in a batch slot: set up the node, start the pilot, watch it, tell how it ended."""
