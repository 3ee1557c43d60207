"""What collaborations do differently from `generic`."""
