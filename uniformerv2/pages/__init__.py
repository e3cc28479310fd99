"""What people look at: pages, curves and timelines."""
