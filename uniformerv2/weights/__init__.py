"""Files of any origin -> architecture, weights, labels, preprocessing."""
