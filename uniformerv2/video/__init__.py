"""Files -> frames -> clips."""
