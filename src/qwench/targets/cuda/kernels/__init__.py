"""Triton kernels, one concept a file. All are batch-invariant: what a row gets depends on its own values alone.

Where a kernel works on rows by themselves that holds by construction. `product.py` and `attention.py` say how it holds
where rows meet in one instruction. Triton must not fuse products and sums that are written apart (`enable_fp_fusion`),
so that the same formula rounds alike in every kernel.
"""
