"""Training runs, read from their folders and compared."""
