"""The study of learning: which source of gradients learns what, and how fast by the clock."""
