"""Ways to run a payload in a container, one file each."""
