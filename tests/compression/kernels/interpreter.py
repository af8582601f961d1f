"""Triton 3.6's interpreter, mended: numpy 2.4 refuses how it reads loop bounds, and its products know no bfloat16.

TRITON_INTERPRET=1 must be set before triton is loaded, and transformers loads it: run cases in a process of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def mend_interpreter() -> None:
    """Let `range` in interpreted programs take computed bounds, and `tl.dot` take bfloat16."""
    from triton.runtime import interpreter

    plain_patch, plain_dot = interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot

    def patch(tensor: Any, scope: Any) -> None:
        plain_patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    def dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return plain_dot(self, _widened(a), _widened(b), *others)

    interpreter._patch_lang_tensor, interpreter.InterpreterBuilder.create_dot = patch, dot


def _widened(handle: Any) -> Any:
    """bfloat16, which the interpreter keeps as the upper half of a float32, as that."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
