"""A small PanDA for demos and tests, speaking the real wire."""
