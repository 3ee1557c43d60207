"""What plug-in authors test with. `pilot.testing.copytool` is the conformance suite that defines a copy tool."""
