"""Trained models made fast: another precision, another backend, and how much either changes what is said."""
