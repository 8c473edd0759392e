"""How many programs of a kernel are launched for an op, and of which tile; the kernels are in `kernels/`."""
