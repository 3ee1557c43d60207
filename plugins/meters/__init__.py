"""How resources are measured."""
