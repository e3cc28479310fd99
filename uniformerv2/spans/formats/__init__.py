"""Spans as benchmarks publish them and labelling tools write them: a module for each format or family."""
