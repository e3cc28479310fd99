"""Trained models made fast: by exact rewrites, precisions, backends and fewer tokens, with measured changes."""
