"""Where live logs go."""
