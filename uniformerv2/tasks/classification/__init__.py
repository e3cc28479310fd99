"""A label for every video."""
