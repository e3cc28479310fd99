"""The paper's claims, repeated on data that anyone has: docs/evidence.md. Not part of the installed package."""
