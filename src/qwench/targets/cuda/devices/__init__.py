"""What is asked of a machine, and the two that answer: an NVIDIA GPU, and the CPU in Triton's interpreter."""
