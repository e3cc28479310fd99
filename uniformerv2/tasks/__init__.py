"""What a model can be trained for: a head, a loss, a metric."""
