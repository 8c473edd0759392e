"""A GPU of several: its share of the weights and of the ops, and what it brings together with the others."""
