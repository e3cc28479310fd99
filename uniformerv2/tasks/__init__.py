"""What a model can be trained for: a head, a loss, a batch and a metric in a folder each, named in table.py."""
