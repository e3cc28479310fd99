"""Spans of labelled time: in the formats of benchmarks and labelling tools, and scored as the benchmarks score them."""
