"""The bench's own model, where those of the prediction study do not serve."""
