"""Temporal localisation: which spans of a film show which action, on the embeddings of a frozen video model."""
