"""The kernel as functions that XLA calls, by its foreign function interface.

The interface is `xla/ffi/api/c_api.h`, of which JAX has a copy. XLA passes the address of a call frame. Its layout is
the interface's stable binary one: fields are only ever added at the end of a struct. Every function takes and gives
plain buffers, in the order in which `gridjax.native.calls` passes them. A call is cut into passes of as many scenarios
as a vector has lanes, which the threads of XLA's own pool take one after the other.
"""

# Numba gives intrinsics their first argument, the typing context, itself.
# pyright: reportCallIssue=false, reportAttributeAccessIssue=false
from __future__ import annotations

import functools
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
from llvmlite import binding, ir
from numba import cfunc, njit, types
from numba.core import config
from numba.extending import intrinsic, overload

from gridjax.native import currents, kernel
from gridjax.native.lanes import (
    allocate,
    count_up,
    doubles,
    fill_zero,
    in_huge_pages,
    integers,
    named,
    release,
    set_half_word,
    set_word,
    singles,
    word,
    word_now,
)

if any(binding.address_of_symbol(name) is None for name in ("aligned_alloc", "free")):
    raise ImportError("the C library does not export aligned_alloc")


def _version(part: str) -> int:
    """The interface's version, of which this JAX brings the header."""
    text = (Path(jax.ffi.include_dir()) / "xla/ffi/api/c_api.h").read_text()
    return int(re.findall(rf"#define XLA_FFI_API_{part} (\d+)", text)[0])


MAJOR, MINOR = _version("MAJOR"), _version("MINOR")
if MAJOR != 0:
    raise ImportError(f"XLA's foreign function interface has version {MAJOR}, not 0")

# Offsets in XLA's structs.
API, CONTEXT, EXTENSION = 16, 24, 8
ARGUMENTS, RESULTS = 72, 112  # where the addresses of the buffers are
DATA = 24  # of a buffer
SCHEDULE, THREADS = 136, 144  # functions of the API
LARGE = 1 << 23  # bytes of results, beyond which touching fresh memory would cost more than solving
METADATA = 1  # the extension by which XLA asks for the version

DOUBLE, SINGLE = np.float64(0), np.float32(0)  # stand for their types

# What the threads of a call share: words.
NEXT, DONE, USERS, FRAME, PASSES = (8 * k for k in range(5))


def _floats(address, like):
    """A pointer to numbers of the type of `like`; Numba takes the function below for it."""
    raise NotImplementedError("only within functions that Numba compiles")


@overload(_floats)
def _floats_of(address, like):
    if like == types.float32:

        def of_singles(address, like):
            return singles(address)

        return named("of_singles", of_singles)

    def of_doubles(address, like):
        return doubles(address)

    return named("of_doubles", of_doubles)


def _buffer(offset: int) -> Any:
    @intrinsic
    def address(_, frame, k):
        """The address of the data of argument or result k."""

        def codegen(context, builder, sig, args):
            number = ir.IntType(64)

            def at(address, offset):
                return builder.load(builder.inttoptr(builder.add(address, offset), number.as_pointer()))

            buffers = at(args[0], number(offset))
            return at(at(buffers, builder.mul(args[1], number(8))), number(DATA))

        return types.int64(types.int64, types.int64), codegen

    return address


_argument, _result = _buffer(ARGUMENTS), _buffer(RESULTS)


@njit
def _asks_for_version(frame):
    """Answers XLA's question, if this is one."""
    extension = word(frame + EXTENSION)
    if extension == 0 or word(extension + 8) & 0xFFFFFFFF != METADATA:
        return False
    metadata = word(extension + 24)
    set_half_word(metadata + 24, MAJOR)
    set_half_word(metadata + 28, MINOR)
    set_half_word(metadata + 32, 0)
    return True


@njit
def _circuit(frame, like):
    """Arguments 0 to 11."""
    counts = integers(_argument(frame, 11))
    return kernel.Circuit(
        integers(_argument(frame, 0)), _floats(_argument(frame, 1), like), integers(_argument(frame, 2)),
        integers(_argument(frame, 3)), integers(_argument(frame, 4)), _floats(_argument(frame, 5), like),
        integers(_argument(frame, 6)), integers(_argument(frame, 7)), integers(_argument(frame, 8)),
        _floats(_argument(frame, 9), like), integers(_argument(frame, 10)),
        counts[0], counts[1], counts[2], counts[3], counts[4], counts[5], counts[6], counts[7], counts[8], counts[9],
        counts[10],
    )  # fmt: skip


@njit
def _begin(frame, like):
    """Memory for passes, and the circuit and room they work with."""
    circuit = _circuit(frame, like)
    memory = allocate(64 * kernel.room_size(circuit))
    return memory, (circuit, kernel.make_room(circuit, _floats(memory, like)))


@njit
def _read(frame, state, like, first):
    """Takes the scenarios of a pass."""
    circuit, room = state
    sizes = integers(_argument(frame, 12))
    rows = kernel.Rows(first, sizes[0] - 1, sizes[1], sizes[2])
    p, q = _floats(_argument(frame, 14), like), _floats(_argument(frame, 15), like)
    kernel.read(circuit, room, rows, p, q, _floats(_argument(frame, 17), like))
    return circuit, room, rows


@njit
def _clear(circuit, rows, v, slots, count):
    """Zeros where nothing will be written: slots of no unit, nodes that only pad."""
    fill_zero(slots, rows.first * rows.slots, count * rows.slots)
    if circuit.nodes < rows.nodes:
        fill_zero(v, 2 * rows.first * rows.nodes, 2 * count * rows.nodes)


@njit
def _solve(frame, state, like, first, count):
    """Further arguments: chord, plain, no-load voltages, what the root's coordinates draw; sizes: method, limits."""
    circuit, room, rows = _read(frame, state, like, first)
    sizes, slots = integers(_argument(frame, 12)), _floats(_result(frame, 1), like)
    _clear(circuit, rows, _floats(_result(frame, 0), like), slots, count)
    kernel.solve_pass(
        circuit, _floats(_argument(frame, 19), like), _floats(_argument(frame, 18), like),
        _floats(_argument(frame, 21), like), room, rows, _floats(_argument(frame, 16), like),
        _floats(_argument(frame, 20), like), sizes[4], _floats(_argument(frame, 13), like)[0], sizes[5], sizes[3],
        sizes[6], _floats(_result(frame, 0), like), slots, _floats(_result(frame, 2), like),
        _floats(_result(frame, 3), like), _floats(_result(frame, 4), like), _floats(_result(frame, 5), like),
    )  # fmt: skip


@njit
def _tangent(frame, state, like, first, count):
    """Further arguments: chord, u, zeros for the nodes, changes of p, q, head, source, more ones of u; the root's."""
    circuit, room, rows = _read(frame, state, like, first)
    sizes, slots = integers(_argument(frame, 12)), _floats(_result(frame, 1), like)
    _clear(circuit, rows, _floats(_result(frame, 0), like), slots, count)
    kernel.tangent_pass(
        circuit, _floats(_argument(frame, 18), like), _floats(_argument(frame, 26), like), room, rows,
        _floats(_argument(frame, 20), like), _floats(_argument(frame, 13), like)[0], sizes[3],
        _floats(_argument(frame, 19), like), _floats(_argument(frame, 21), like), _floats(_argument(frame, 22), like),
        _floats(_argument(frame, 23), like), _floats(_argument(frame, 24), like), _floats(_argument(frame, 25), like),
        _floats(_result(frame, 0), like), slots, _floats(_result(frame, 2), like), _floats(_result(frame, 3), like),
        _floats(_result(frame, 4), like),
    )  # fmt: skip


@njit
def _cotangent(frame, state, like, first, count):
    """Further arguments: transposed chord, u, cotangents of v, u, the root's current, the power taken; the root's."""
    circuit, room, rows = _read(frame, state, like, first)
    sizes, slots = integers(_argument(frame, 12)), _floats(_result(frame, 4), like)
    fill_zero(slots, rows.first * rows.slots, count * rows.slots)
    kernel.cotangent_pass(
        circuit, _floats(_argument(frame, 18), like), _floats(_argument(frame, 24), like), room, rows,
        _floats(_argument(frame, 13), like)[0], sizes[3], _floats(_argument(frame, 19), like),
        _floats(_argument(frame, 20), like), _floats(_argument(frame, 21), like), _floats(_argument(frame, 22), like),
        _floats(_argument(frame, 23), like), _floats(_result(frame, 0), like), _floats(_result(frame, 1), like),
        _floats(_result(frame, 2), like), _floats(_result(frame, 3), like), slots, _floats(_result(frame, 5), like),
    )  # fmt: skip


@njit
def _begin_currents(frame, like):
    """Arguments 0 to 7 and 10: the tables of the elements and the sizes."""
    sizes = integers(_argument(frame, 7))
    elements = currents.Elements(
        integers(_argument(frame, 0)), _floats(_argument(frame, 1), like), _floats(_argument(frame, 2), like),
        integers(_argument(frame, 3)), _floats(_argument(frame, 10), like), _floats(_argument(frame, 4), like),
        integers(_argument(frame, 5)), integers(_argument(frame, 6)), sizes[3], sizes[4], sizes[5],
        sizes[6], sizes[7], sizes[8] > 0,
    )  # fmt: skip
    memory = allocate(64 * currents.room_size(elements))
    return memory, (elements, _floats(memory, like))


@njit
def _currents(frame, state, like, first, count):
    """Further arguments: voltages, taps. Results: the currents, or the largest of each terminal."""
    sizes, (elements, room) = integers(_argument(frame, 7)), state
    currents.currents_pass(
        elements, room, first, sizes[0] - 1, _floats(_argument(frame, 8), like),
        _floats(_argument(frame, 9), like), _floats(_result(frame, 0), like), _floats(_result(frame, 1), like),
        sizes[1] > 0,
    )  # fmt: skip


@njit
def _largest_cotangent(frame, state, like, first, count):
    """Further arguments: voltages, taps, cotangents of the largest currents. Results: those of voltages and taps."""
    sizes, (elements, room) = integers(_argument(frame, 7)), state
    currents.largest_cotangent_pass(
        elements, room, first, sizes[0] - 1, _floats(_argument(frame, 8), like), _floats(_argument(frame, 9), like),
        _floats(_argument(frame, 11), like), _floats(_result(frame, 0), like), _floats(_result(frame, 1), like),
    )  # fmt: skip


def _work(name: str, begin, each, like, width: int, at: int) -> Any:
    def work(shared):
        """Takes passes while there are any. Without one nothing but `shared` may be touched: the call may be over."""
        number = count_up(shared + NEXT, 1)
        if number >= word(shared + PASSES):
            return
        frame = word(shared + FRAME)
        batch = integers(_argument(frame, at))[0]
        memory, state = begin(frame, like)
        while number < word(shared + PASSES):
            first = number * width
            each(frame, state, like, first, min(width, batch - first))
            count_up(shared + DONE, 1)
            number = count_up(shared + NEXT, 1)
        release(memory)

    return njit(named(name, work))


SIZES, SIZES_OF_CURRENTS = 12, 7  # which argument they are
_solve_64 = _work("_solve_64", _begin, _solve, DOUBLE, 8, SIZES)
_solve_32 = _work("_solve_32", _begin, _solve, SINGLE, 16, SIZES)
_tangent_64 = _work("_tangent_64", _begin, _tangent, DOUBLE, 8, SIZES)
_tangent_32 = _work("_tangent_32", _begin, _tangent, SINGLE, 16, SIZES)
_cotangent_64 = _work("_cotangent_64", _begin, _cotangent, DOUBLE, 8, SIZES)
_cotangent_32 = _work("_cotangent_32", _begin, _cotangent, SINGLE, 16, SIZES)
_currents_64 = _work("_currents_64", _begin_currents, _currents, DOUBLE, 8, SIZES_OF_CURRENTS)
_currents_32 = _work("_currents_32", _begin_currents, _currents, SINGLE, 16, SIZES_OF_CURRENTS)
_largest_cotangent_64 = _work(
    "_largest_cotangent_64", _begin_currents, _largest_cotangent, DOUBLE, 8, SIZES_OF_CURRENTS
)
_largest_cotangent_32 = _work(
    "_largest_cotangent_32", _begin_currents, _largest_cotangent, SINGLE, 16, SIZES_OF_CURRENTS
)


def _task(work) -> Any:
    @intrinsic
    def address(_):
        """The address of a function that threads of XLA's pool run: `work` and, if it is the last user, the end."""

        def task(shared):
            work(shared)
            _leave(shared)

        named(f"{work.py_func.__name__}_task", task)

        def codegen(context, builder, sig, args):
            signature = types.void(types.int64)
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
            function = ir.Function(builder.module, kind, f"gridjax{work.py_func.__name__}")
            function.linkage = "internal"
            inside = ir.IRBuilder(function.append_basic_block("entry"))
            compiled = context.compile_subroutine(inside, task, signature)
            shared = inside.ptrtoint(function.args[0], ir.IntType(64))
            context.call_internal_no_propagate(inside, compiled.fndesc, signature, [shared])
            inside.ret_void()
            return builder.ptrtoint(function, ir.IntType(64))

        return types.int64(), codegen

    return address


@intrinsic
def _call(_, function, argument):
    """Calls one of the interface's functions."""

    def codegen(context, builder, sig, args):
        number = ir.IntType(64)
        kind = ir.FunctionType(number, [number])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])

    return types.int64(types.int64, types.int64), codegen


@njit
def _leave(shared):
    """Releases what the threads share after the last has gone."""
    if count_up(shared + USERS, -1) == 1:
        release(shared)


@njit
def _start(frame, at, width, task, forward):
    """Puts down what the threads share and calls them; not more of them than there is work for.

    Argument `at` are the sizes: scenarios, complex numbers of the first result, numbers of the second.
    """
    sizes = integers(_argument(frame, at))
    for k in range(2):
        size = sizes[0] * sizes[k + 1] * (128 // width if k == 0 else 64 // width)
        if forward and size > LARGE:
            in_huge_pages(_result(frame, k), size)
    shared = allocate(128)
    passes = (sizes[0] + width - 1) // width
    set_word(shared + NEXT, 0)
    set_word(shared + DONE, 0)
    set_word(shared + USERS, 1)
    set_word(shared + FRAME, frame)
    set_word(shared + PASSES, passes)
    if passes > 1:
        api, message = word(frame + API), shared + 64
        set_word(message, 32)  # the struct's size, no extension, context, where the answer goes
        set_word(message + 8, 0)
        set_word(message + 16, word(frame + CONTEXT))
        set_word(message + 24, message + 40)
        helpers = 0
        if _call(word(api + THREADS), message) == 0:
            helpers = min(word_now(message + 40), passes) - 1
        set_word(message, 40)  # the struct's size, no extension, context, task, its data
        set_word(message + 24, task)
        set_word(message + 32, shared)
        for _ in range(helpers):
            count_up(shared + USERS, 1)
            if _call(word(api + SCHEDULE), message) != 0:
                count_up(shared + USERS, -1)
    return shared


@njit
def _finish(shared):
    """Waits for the passes that other threads have taken."""
    while word_now(shared + DONE) < word(shared + PASSES):
        pass
    _leave(shared)


_solve_64_task = _task(_solve_64)


def solve_64(frame):
    """Solves a batch, in float64."""
    if not _asks_for_version(frame):
        shared = _start(frame, SIZES, 8, _solve_64_task(), True)
        _solve_64(shared)
        _finish(shared)
    return 0


_solve_32_task = _task(_solve_32)


def solve_32(frame):
    """Solves a batch, in float32."""
    if not _asks_for_version(frame):
        shared = _start(frame, SIZES, 16, _solve_32_task(), True)
        _solve_32(shared)
        _finish(shared)
    return 0


_tangent_64_task = _task(_tangent_64)


def tangent_64(frame):
    """Linear answers of a batch, in float64."""
    if not _asks_for_version(frame):
        shared = _start(frame, SIZES, 8, _tangent_64_task(), True)
        _tangent_64(shared)
        _finish(shared)
    return 0


_tangent_32_task = _task(_tangent_32)


def tangent_32(frame):
    """Linear answers of a batch, in float32."""
    if not _asks_for_version(frame):
        shared = _start(frame, SIZES, 16, _tangent_32_task(), True)
        _tangent_32(shared)
        _finish(shared)
    return 0


_cotangent_64_task = _task(_cotangent_64)


def cotangent_64(frame):
    """Their transposes, in float64."""
    if not _asks_for_version(frame):
        shared = _start(frame, SIZES, 8, _cotangent_64_task(), False)
        _cotangent_64(shared)
        _finish(shared)
    return 0


_cotangent_32_task = _task(_cotangent_32)


def cotangent_32(frame):
    """Their transposes, in float32."""
    if not _asks_for_version(frame):
        shared = _start(frame, SIZES, 16, _cotangent_32_task(), False)
        _cotangent_32(shared)
        _finish(shared)
    return 0


_currents_64_task = _task(_currents_64)


def currents_64(frame):
    """Currents into elements, in float64."""
    if not _asks_for_version(frame):
        shared = _start(frame, SIZES_OF_CURRENTS, 8, _currents_64_task(), True)
        _currents_64(shared)
        _finish(shared)
    return 0


_currents_32_task = _task(_currents_32)


def currents_32(frame):
    """Currents into elements, in float32."""
    if not _asks_for_version(frame):
        shared = _start(frame, SIZES_OF_CURRENTS, 16, _currents_32_task(), True)
        _currents_32(shared)
        _finish(shared)
    return 0


_largest_cotangent_64_task = _task(_largest_cotangent_64)


def largest_cotangent_64(frame):
    """What the largest currents say to voltages and taps, in float64."""
    if not _asks_for_version(frame):
        shared = _start(frame, SIZES_OF_CURRENTS, 8, _largest_cotangent_64_task(), False)
        _largest_cotangent_64(shared)
        _finish(shared)
    return 0


_largest_cotangent_32_task = _task(_largest_cotangent_32)


def largest_cotangent_32(frame):
    """What the largest currents say to voltages and taps, in float32."""
    if not _asks_for_version(frame):
        shared = _start(frame, SIZES_OF_CURRENTS, 16, _largest_cotangent_32_task(), False)
        _largest_cotangent_32(shared)
        _finish(shared)
    return 0


HANDLERS = {
    f.__name__: f
    for f in (
        solve_64, solve_32, tangent_64, tangent_32, cotangent_64, cotangent_32, currents_64, currents_32,
        largest_cotangent_64, largest_cotangent_32,
    )
}  # fmt: skip
_KEPT: dict[str, object] = {}


def _cache() -> str:
    """Where compiled functions are kept: beside the package if it can be written, else in the user's cache.

    The folder is named after what they are made of.
    """
    here = Path(__file__).parent
    parts = [(here / f"{part}.py").read_bytes() for part in ("ffi", "kernel", "currents", "lanes")]
    text = b"".join(parts) + f"{MAJOR}.{MINOR}".encode()
    name = hashlib.sha256(text).hexdigest()[:16]
    if os.access(here, os.W_OK):
        return str(here / "__pycache__" / name)
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(root) / "gridjax" / name)


@functools.cache
def target(name: str, dtype: np.dtype) -> str:
    """Compiles a function for a type, or takes it from the cache, and tells XLA; returns its name there."""
    handler = HANDLERS[f"{name}_{8 * dtype.itemsize}"]
    before, config.CACHE_DIR = config.CACHE_DIR, _cache()
    try:
        function = cfunc(types.int64(types.int64), cache=True)(handler)
    finally:
        config.CACHE_DIR = before
    full = f"gridjax_{handler.__name__}"
    _KEPT[full] = function
    jax.ffi.register_ffi_target(full, jax.ffi.pycapsule(function.ctypes), platform="cpu")
    return full
