"""Several labels for every video, or none."""
