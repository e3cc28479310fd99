"""One training loop and the recipe that it follows. Knows no task by name."""
