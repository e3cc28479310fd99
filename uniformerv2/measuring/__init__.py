"""What is done with many videos, shared out among processes and resumable."""
