"""Annotations and datasets of clips."""
