"""Our own plug-ins, a folder a kind."""
