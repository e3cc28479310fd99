"""Output for people: HTML pages, curves and pictures of timelines."""
