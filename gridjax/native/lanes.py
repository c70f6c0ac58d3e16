"""Vectors of scenarios for Numba: one value of each of 8 (float64) or 16 (float32) scenarios, in a few registers.

A kernel written with them reads like that of one scenario, and its arithmetic does not depend on whether a compiler
finds out how to vectorise it. LLVM splits the vectors into what the processor has (two AVX2 or one AVX-512 register).
Memory is reached by pointers, which cost Numba nothing to pass on; vectors lie at multiples of 64 bytes, and their
indices count vectors.
"""

# Numba gives intrinsics their first argument, the typing context, itself.
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import operator
import sys
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

ALIGN = 64
FLAGS = ("contract",)  # a product and a sum may become one operation
INT = ir.IntType(64)
INDEX = types.intp
MADV_HUGEPAGE = 14
HUGE_PAGES = sys.platform == "linux" and binding.address_of_symbol("madvise") is not None


class Lanes(types.Type):
    """The Numba type of a vector."""

    def __init__(self, element):
        self.element = element
        self.width = 8 if element == types.float64 else 16
        super().__init__(name=f"Lanes({element})")


class Mask(types.Type):
    """The Numba type of a truth value for each scenario."""

    def __init__(self, width):
        self.width = width
        super().__init__(name=f"Mask({width})")


def _scalar(element):
    return ir.DoubleType() if element == types.float64 else ir.FloatType()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        super().__init__(manager, lanes, ir.VectorType(_scalar(lanes.element), lanes.width))


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager, mask):
        super().__init__(manager, mask, ir.VectorType(ir.IntType(1), mask.width))


def _vectors(context, builder, sig, args, k: int):
    """The address of a pointer argument's first vector."""
    vector = context.get_value_type(Lanes(sig.args[k].dtype))
    return builder.bitcast(args[k], vector.as_pointer())


def _spread(builder, x, width: int):
    undefined = ir.Constant(ir.VectorType(x.type, width), ir.Undefined)
    first = builder.insert_element(undefined, x, ir.IntType(32)(0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)
    return builder.shuffle_vector(first, undefined, zeros)


@intrinsic
def spread(_, x):
    """The same value in all lanes."""
    lanes = Lanes(x)

    def codegen(context, builder, sig, args):
        return _spread(builder, args[0], lanes.width)

    return lanes(x), codegen


@intrinsic
def full(_, like, x):
    """A number in all lanes of a vector like `like`."""

    def codegen(context, builder, sig, args):
        value = args[1] if like.element == types.float64 else builder.fptrunc(args[1], ir.FloatType())
        return _spread(builder, value, like.width)

    return like(like, types.float64), codegen


@intrinsic
def at(_, array, index):
    """`array[index]`."""

    def codegen(context, builder, sig, args):
        return builder.load(builder.gep(args[0], [args[1]]))

    return array.dtype(array, INDEX), codegen


@intrinsic
def load(_, array, index):
    """Vector number `index`."""

    def codegen(context, builder, sig, args):
        return builder.load(builder.gep(_vectors(context, builder, sig, args, 0), [args[1]]), align=ALIGN)

    return Lanes(array.dtype)(array, INDEX), codegen


@intrinsic
def store(_, array, index, value):
    """Makes `value` vector number `index`."""

    def codegen(context, builder, sig, args):
        builder.store(args[2], builder.gep(_vectors(context, builder, sig, args, 0), [args[1]]), align=ALIGN)
        return context.get_dummy_value()

    return types.void(array, INDEX, value), codegen


def _row(builder, first, last, k: int, stride):
    """Where the row of lane k starts; rows past the last are that one again."""
    row = builder.add(first, INT(k))
    return builder.mul(builder.select(builder.icmp_signed("<", row, last), row, last), stride)


@intrinsic
def gather(_, array, first, last, stride, index):
    """Entry `index` of row `first + k`, but at most `last`, in lane k; rows are `stride` numbers long."""
    lanes = Lanes(array.dtype)

    def codegen(context, builder, sig, args):
        out = ir.Constant(context.get_value_type(lanes), ir.Undefined)
        for k in range(lanes.width):
            place = builder.add(_row(builder, args[1], args[2], k, args[3]), args[4])
            out = builder.insert_element(out, builder.load(builder.gep(args[0], [place])), ir.IntType(32)(k))
        return out

    return lanes(array, INDEX, INDEX, INDEX, INDEX), codegen


@intrinsic
def gather_pair(_, array, first, last, stride, index):
    """The same for entries `index` and `index + 1`."""
    lanes = Lanes(array.dtype)

    def codegen(context, builder, sig, args):
        pair = ir.VectorType(_scalar(array.dtype), 2)
        out = [ir.Constant(context.get_value_type(lanes), ir.Undefined)] * 2
        for k in range(lanes.width):
            place = builder.add(_row(builder, args[1], args[2], k, args[3]), args[4])
            numbers = builder.load(builder.bitcast(builder.gep(args[0], [place]), pair.as_pointer()), align=4)
            for i in (0, 1):
                number = builder.extract_element(numbers, ir.IntType(32)(i))
                out[i] = builder.insert_element(out[i], number, ir.IntType(32)(k))
        return context.make_tuple(builder, sig.return_type, out)

    return types.UniTuple(lanes, 2)(array, INDEX, INDEX, INDEX, INDEX), codegen


@intrinsic
def scatter(_, array, first, last, stride, index, value):
    """The reverse of `gather`."""

    def codegen(context, builder, sig, args):
        for k in range(value.width):
            place = builder.add(_row(builder, args[1], args[2], k, args[3]), args[4])
            builder.store(builder.extract_element(args[5], ir.IntType(32)(k)), builder.gep(args[0], [place]))
        return context.get_dummy_value()

    return types.void(array, INDEX, INDEX, INDEX, INDEX, value), codegen


@intrinsic
def scatter_pair(_, array, first, last, stride, index, value, second):
    """The same for two values, the second behind the first."""

    def codegen(context, builder, sig, args):
        pair = ir.VectorType(args[5].type.element, 2)
        for k in range(value.width):
            place = builder.add(_row(builder, args[1], args[2], k, args[3]), args[4])
            both_ = ir.Constant(pair, ir.Undefined)
            for i in (0, 1):
                number = builder.extract_element(args[5 + i], ir.IntType(32)(k))
                both_ = builder.insert_element(both_, number, ir.IntType(32)(i))
            builder.store(both_, builder.bitcast(builder.gep(args[0], [place]), pair.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(array, INDEX, INDEX, INDEX, INDEX, value, second), codegen


@intrinsic
def further(_, pointer, vectors):
    """The pointer moved by so many vectors."""

    def codegen(context, builder, sig, args):
        width = Lanes(pointer.dtype).width
        return builder.gep(args[0], [builder.mul(args[1], INT(width))])

    return pointer(pointer, INDEX), codegen


def _binary(name: str) -> Any:
    @intrinsic
    def operation(_, a, b):
        if not isinstance(a, Lanes) or a != b:
            return None

        def codegen(context, builder, sig, args):
            return getattr(builder, name)(*args, flags=FLAGS)

        return a(a, b), codegen

    return operation


def named(name: str, function: Any) -> Any:
    """Gives a function made by another its own name.

    Numba names its machine code after it. Functions of one name, compiled by different processes, could be taken for
    each other when they are loaded from the cache.
    """
    function.__name__ = function.__qualname__ = name
    return function


def _overload(symbol, operation) -> None:
    def of_vectors(a, b):
        return operation(a, b)

    def of_number(a, b):
        return operation(a, spread(b))

    named(f"{symbol.__name__}_vectors", of_vectors)
    named(f"{symbol.__name__}_number", of_number)

    @overload(symbol)
    def implementation(a, b):
        if isinstance(a, Lanes) and isinstance(b, Lanes):
            return of_vectors
        if isinstance(a, Lanes) and isinstance(b, types.Float):
            return of_number
        return None


for _symbol, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _overload(_symbol, _binary(_name))


def _compare(symbol: str) -> Any:
    @intrinsic
    def operation(_, a, b):
        def codegen(context, builder, sig, args):
            return builder.fcmp_ordered(symbol, *args)

        return Mask(a.width)(a, b), codegen

    return operation


above, at_most, below = _compare(">"), _compare("<="), _compare("<")


def _logic(name: str) -> Any:
    @intrinsic
    def operation(_, a, b):
        def codegen(context, builder, sig, args):
            return getattr(builder, name)(*args)

        return a(a, b), codegen

    return operation


both, either = _logic("and_"), _logic("or_")


@intrinsic
def some(_, mask):
    """Whether any lane is true."""

    def codegen(context, builder, sig, args):
        bits = builder.bitcast(args[0], ir.IntType(mask.width))
        return builder.icmp_unsigned("!=", bits, ir.IntType(mask.width)(0))

    return types.boolean(mask), codegen


@intrinsic
def all_true(_, mask):
    """Whether all lanes are true."""

    def codegen(context, builder, sig, args):
        bits = builder.bitcast(args[0], ir.IntType(mask.width))
        return builder.icmp_unsigned("==", bits, ir.IntType(mask.width)(-1))

    return types.boolean(mask), codegen


@intrinsic
def select(_, mask, a, b):
    """`a` where the mask is true, else `b`."""

    def codegen(context, builder, sig, args):
        return builder.select(*args)

    return a(mask, a, b), codegen


def _extreme(symbol: str) -> Any:
    @intrinsic
    def operation(_, a, b):
        def codegen(context, builder, sig, args):
            return builder.select(builder.fcmp_ordered(symbol, *args), *args)

        return a(a, b), codegen

    return operation


largest, smallest = _extreme(">"), _extreme("<")


def _function(name: str) -> Any:
    @intrinsic
    def operation(_, a):
        def codegen(context, builder, sig, args):
            kind = args[0].type
            full = f"llvm.{name}.v{a.width}{'f64' if a.element == types.float64 else 'f32'}"
            function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), full)
            return builder.call(function, args)

        return a(a), codegen

    return operation


root, magnitude, exponential, logarithm = (_function(name) for name in ("sqrt", "fabs", "exp", "log"))


@intrinsic
def full_zero(_, pointer):
    """Zero in all lanes, of the pointer's type."""
    lanes = Lanes(pointer.dtype)

    def codegen(context, builder, sig, args):
        return ir.Constant(context.get_value_type(lanes), [0.0] * lanes.width)

    return lanes(pointer), codegen


def _blend(*columns: int) -> Any:
    """A row of complex numbers times vectors of complex lanes: `sum g x + sum h z`; returns both parts."""

    def codegen(context, builder, sig, args):
        row = builder.gep(args[0], [args[1]])
        width = Lanes(sig.args[0].dtype).width
        re = im = None

        def plus(total, a, b, minus=False):
            term = builder.fmul(a, b, flags=FLAGS)
            if total is None:
                return term
            return (builder.fsub if minus else builder.fadd)(total, term, flags=FLAGS)

        entry = 0
        for part, count in enumerate(columns):
            x = builder.gep(_vectors(context, builder, sig, args, 2 + 2 * part), [args[3 + 2 * part]])
            for k in range(count):
                xr, xi = (builder.load(builder.gep(x, [INT(2 * k + i)]), align=ALIGN) for i in (0, 1))
                gr, gi = (_spread(builder, builder.load(builder.gep(row, [INT(entry + i)])), width) for i in (0, 1))
                re, im = plus(re, xr, gr), plus(im, xr, gi)
                re, im = plus(re, xi, gi, minus=True), plus(im, xi, gr)
                entry += 2
        return context.make_tuple(builder, sig.return_type, [re, im])

    def typed(*arguments):
        lanes = Lanes(arguments[0].dtype)
        return types.UniTuple(lanes, 2)(*arguments), codegen

    if len(columns) == 1:

        @intrinsic
        def single(_, row, start, x, xi):
            return typed(row, INDEX, x, INDEX)

        return single

    @intrinsic
    def double(_, row, start, x, xi, z, zi):
        return typed(row, INDEX, x, INDEX, z, INDEX)

    return double


blend, blend_33 = _blend(1), _blend(3, 3)


def product(rows: int, *columns: int, onto: bool) -> Any:
    """Straight-line code for `y = A x`, `y = A x + B z`, or that added to y (`onto`), of fixed sizes.

    The matrices are row by row in one array, A and then B. The function takes each array with an index: of vectors for
    y, x, z, of numbers for the matrices.
    """

    def codegen(context, builder, sig, args):
        y = builder.gep(_vectors(context, builder, sig, args, 0), [args[1]])
        matrices = builder.gep(args[2], [args[3]])
        inputs = [
            builder.gep(_vectors(context, builder, sig, args, 4 + 2 * k), [args[5 + 2 * k]])
            for k in range(len(columns))
        ]
        width = Lanes(sig.args[0].dtype).width
        for row in range(0, rows, 2):  # two at a time, which halves the loads of x
            places = [builder.gep(y, [INT(row + i)]) for i in (0, 1)]
            sums: list[Any] = [builder.load(p, align=ALIGN) if onto else None for p in places]
            start = 0
            for x, count in zip(inputs, columns, strict=True):
                for j in range(count):
                    value = builder.load(builder.gep(x, [INT(j)]), align=ALIGN)
                    for i in (0, 1):
                        entry = builder.load(builder.gep(matrices, [INT(start + (row + i) * count + j)]))
                        term = builder.fmul(value, _spread(builder, entry, width), flags=FLAGS)
                        sums[i] = term if sums[i] is None else builder.fadd(sums[i], term, flags=FLAGS)
                start += rows * count
            for place, value in zip(places, sums, strict=True):
                builder.store(value, place, align=ALIGN)
        return context.get_dummy_value()

    if len(columns) == 1:

        @intrinsic
        def single(_, y, yi, a, ai, x, xi):
            return types.void(y, INDEX, a, INDEX, x, INDEX), codegen

        return single

    @intrinsic
    def double(_, y, yi, a, ai, x, xi, z, zi):
        return types.void(y, INDEX, a, INDEX, x, INDEX, z, INDEX), codegen

    return double


def _pointer(element) -> Any:
    @intrinsic
    def pointer(_, address):
        target = types.CPointer(element)

        def codegen(context, builder, sig, args):
            return builder.inttoptr(args[0], context.get_value_type(target))

        return target(types.int64), codegen

    return pointer


# Pointers to what lies at an address.
integers, longs, singles, doubles = (_pointer(t) for t in (types.int32, types.int64, types.float32, types.float64))


@intrinsic
def word(_, address):
    """The 64 bits at an address."""

    def codegen(context, builder, sig, args):
        return builder.load(builder.inttoptr(args[0], INT.as_pointer()))

    return types.int64(types.int64), codegen


@intrinsic
def set_word(_, address, value):
    """Writes 64 bits."""

    def codegen(context, builder, sig, args):
        builder.store(args[1], builder.inttoptr(args[0], INT.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def set_half_word(_, address, value):
    """Writes 32 bits."""

    def codegen(context, builder, sig, args):
        small = builder.trunc(args[1], ir.IntType(32))
        builder.store(small, builder.inttoptr(args[0], ir.IntType(32).as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def count_up(_, address, step):
    """Adds to the word at an address, whatever other threads do; returns what was there."""

    def codegen(context, builder, sig, args):
        return builder.atomic_rmw("add", builder.inttoptr(args[0], INT.as_pointer()), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def word_now(_, address):
    """The word at an address that other threads change."""

    def codegen(context, builder, sig, args):
        return builder.load_atomic(builder.inttoptr(args[0], INT.as_pointer()), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def set_float(_, pointer, index, value):
    """`pointer[index] = value`."""

    def codegen(context, builder, sig, args):
        builder.store(args[2], builder.gep(args[0], [args[1]]))
        return context.get_dummy_value()

    return types.void(pointer, INDEX, pointer.dtype), codegen


@intrinsic
def allocate(_, size):
    """So many bytes, at an address that is a multiple of 64; to be released."""

    def codegen(context, builder, sig, args):
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.IntType(8).as_pointer(), [INT, INT]), "aligned_alloc"
        )
        rounded = builder.and_(builder.add(args[0], INT(ALIGN - 1)), INT(-ALIGN))
        return builder.ptrtoint(builder.call(function, [INT(ALIGN), rounded]), INT)

    return types.int64(types.int64), codegen


@intrinsic
def release(_, address):
    """Gives memory back."""

    def codegen(context, builder, sig, args):
        bytes_ = ir.IntType(8).as_pointer()
        function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [bytes_]), "free")
        builder.call(function, [builder.inttoptr(args[0], bytes_)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def fill_zero(_, pointer, start, count):
    """Makes `count` numbers zero."""

    def codegen(context, builder, sig, args):
        size = builder.mul(args[2], INT(4 if pointer.dtype == types.float32 else 8))
        cgutils.memset(builder, builder.gep(args[0], [args[1]]), size, 0)
        return context.get_dummy_value()

    return types.void(pointer, INDEX, INDEX), codegen


@intrinsic
def in_huge_pages(_, address, size):
    """Asks Linux for pages of 2 MiB (`madvise`), for what has been allocated but not touched; elsewhere nothing."""

    def codegen(context, builder, sig, args):
        if HUGE_PAGES:
            bytes_ = ir.IntType(8).as_pointer()
            kind = ir.FunctionType(ir.IntType(32), [bytes_, INT, ir.IntType(32)])
            function = cgutils.get_or_insert_function(builder.module, kind, "madvise")
            page = INT(4096)
            start = builder.and_(builder.add(args[0], builder.sub(page, INT(1))), builder.neg(page))
            end = builder.and_(builder.add(args[0], args[1]), builder.neg(page))
            place = builder.inttoptr(start, bytes_)
            builder.call(function, [place, builder.sub(end, start), ir.IntType(32)(MADV_HUGEPAGE)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen
