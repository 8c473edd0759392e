"""What Triton's interpreter (seen: 3.6) does otherwise than a GPU, set right. Called once, when it is made a device."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np


def repair_interpreter() -> None:
    """Products of bf16 numbers, rounding to bf16, loops whose bounds are computed, and a quarter of the time."""
    import triton.language as tl
    import triton.runtime.interpreter as interpreter

    builder = interpreter.InterpreterBuilder
    if builder.create_dot is _dot:
        return
    builder.create_dot = _dot
    builder.cast_impl = _rounding(builder.cast_impl)
    builder.binary_op = _of_one_bit(builder.binary_op)
    interpreter._patch_lang_tensor = _with_index(interpreter._patch_lang_tensor)
    interpreter._patch_lang = _once(interpreter._patch_lang, interpreter._LangPatchScope)
    interpreter._get_np_dtype = _of_each_name(interpreter._get_np_dtype)
    tl.block_type.__init__ = _of_each_shape(tl.block_type.__init__)
    tl.tensor.__init__ = _with_known_shape(tl.tensor.__init__)
    options = interpreter.InterpreterOptions(sanitize_overflow=False)  # whose checks are ten operations for one
    interpreter.interpreter_builder.options = options


def _dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
    """As tensor cores do: exact products, a sum that loses less than fp32. Triton's multiplies the bits of bf16
    numbers, and sums fp32 in an order that depends on the shape."""
    return type(d)((_values(a) @ _values(b) + d.data).astype(d.data.dtype), d.dtype.scalar)


def _values(handle: Any) -> Any:
    """The numbers of a tensor of the interpreter, exact in fp64."""
    bits = handle.data
    return (bits.view(ml_dtypes.bfloat16) if handle.dtype.scalar.is_bf16() else bits).astype(np.float64)


def _rounding(cast: Any) -> Any:
    """fp32 to the nearest bf16, ties to even, where Triton's cuts bits off; and integers, which it takes for bits."""

    def cast_impl(self: Any, source: Any, dtype: Any) -> Any:
        if dtype.scalar.is_bf16() and not source.dtype.scalar.is_bf16():
            rounded = source.data.astype(np.float32).astype(ml_dtypes.bfloat16)
            return type(source)(rounded.view(np.uint16), dtype.scalar)
        return cast(self, source, dtype)

    return cast_impl


def _of_one_bit(binary_op: Any) -> Any:
    """What comparisons give, where Triton's has the type of what was compared; a scalar that is made a mask was taken
    for one by 3.6, and is refused since."""
    import triton.language as tl

    def one_bit(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        result = binary_op(self, lhs, rhs, op)
        return type(result)(result.data, tl.int1) if result.data.dtype == np.bool_ else result

    return one_bit


def _with_index(patch: Any) -> Any:
    """Scalars, which are arrays of one number, as bounds of loops; newer NumPy refuses what Triton does."""

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patch_lang_tensor


def _once(patch: Any, scope: Any) -> Any:
    """Replaces the functions of the modules that a kernel uses for good. Triton does it at each launch and at each call
    of a function, around those that it put there before."""
    import triton.language as tl

    patched: set[tuple[int, ...]] = set()

    def patch_lang(function: Any) -> Any:
        modules = tuple(sorted({id(value) for value in function.__globals__.values() if value in (tl, tl.core)}))
        if modules not in patched:
            patched.add(modules)
            patch(function)
        return scope()

    return patch_lang


def _of_each_name(np_dtype: Any) -> Any:
    """Triton's makes a table of all dtypes to look one up, for each value that it creates."""
    found: dict[str, Any] = {}

    def get_np_dtype(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in found:
            found[name] = np_dtype(dtype)
        return found[name]

    return get_np_dtype


def _of_each_shape(init: Any) -> Any:
    """Blocks of one dtype and shape share what describes them, which Triton makes anew for each value."""
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *(getattr(size, "value", size) for size in shape))
        if key not in known:
            init(self, element_ty, shape)
            known[key] = vars(self).copy()
        vars(self).update(known[key])

    return block_type


def _with_known_shape(init: Any) -> Any:
    """Values of one shape share it, which Triton makes of constants anew for each."""
    known: dict[tuple[int, ...], dict[str, Any]] = {}

    def tensor(self: Any, handle: Any, type: Any) -> None:
        key = tuple(type.shape) if type.is_block() else ()
        if key not in known:
            init(self, handle, type)
            known[key] = vars(self).copy()
        vars(self).update(known[key], handle=handle, type=type, dtype=type.scalar)

    return tensor
