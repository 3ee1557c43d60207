"""Ways to move a file, one module each. `pilot.testing.copytool` says what a copy tool is by proving it."""
