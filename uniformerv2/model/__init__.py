"""The network. Knows torch only; reads and writes no file."""
