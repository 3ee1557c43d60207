"""Finding plug-ins: ours by their place, others by entry point (groups `pilot.copytools`, `pilot.experiments`, ...)."""
