"""Evaluation and features of many videos, shared among processes and resumable."""
