"""Models of three families in four sizes, whose speed is predicted and measured."""
