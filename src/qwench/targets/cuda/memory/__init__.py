"""What lies in device memory: weights, activation buffers, and the paged KV cache."""
