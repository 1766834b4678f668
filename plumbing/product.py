"""Products of small matrices inside numba kernels, as fast as a library's.

A library is called once for each product and works on all rows; by the next call they have left the core's cache. A
kernel that has its own product does everything that it has to do on a few rows while they are there.
"""

import llvmlite.binding
import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

compiled = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})
# columns at a time: with AVX-512, 8 rows of them fill half of the registers
WIDE = 32 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 16
SIZE, INDEX = ir.IntType(64), ir.IntType(32)


def tile_of(rows, columns):
    """A few rows and columns of a product: the sums stay in registers until they are complete.

    All arguments are numbers: the three addresses, distances between neighbours in floats, the terms of each sum, and
    whether they are added to what is there.
    """

    @intrinsic
    def tile(context, a, a_row, a_term, b, b_term, out, out_row, terms, add):
        def generate(context, builder, signature, given):
            a, a_row, a_term, b, b_term, out, out_row, terms, add = given
            number = ir.FloatType()
            vector = ir.VectorType(number, columns)

            def at(base, distance, kind):
                return builder.inttoptr(builder.add(base, builder.mul(distance, SIZE(4))), kind.as_pointer())

            sums = [cgutils.alloca_once(builder, vector) for _ in range(rows)]
            places = [at(out, builder.mul(out_row, SIZE(row)), vector) for row in range(rows)]
            with builder.if_else(builder.icmp_signed("!=", add, SIZE(0))) as (adds, begins):
                with adds:
                    for total, place in zip(sums, places):
                        builder.store(builder.load(place, align=4), total)
                with begins:
                    for total in sums:
                        builder.store(vector([0.0] * columns), total)
            with cgutils.for_range(builder, terms) as loop:
                factors = builder.load(at(b, builder.mul(loop.index, b_term), vector), align=4)
                begin = builder.mul(loop.index, a_term)
                for row, total in enumerate(sums):
                    one = builder.load(at(a, builder.add(begin, builder.mul(a_row, SIZE(row))), number))
                    many = builder.insert_element(vector(ir.Undefined), one, INDEX(0))
                    zeros = ir.VectorType(INDEX, columns)([0] * columns)
                    many = builder.shuffle_vector(many, vector(ir.Undefined), zeros)
                    term = builder.fmul(many, factors, flags=["contract"])
                    builder.store(builder.fadd(term, builder.load(total), flags=["contract"]), total)
            for total, place in zip(sums, places):
                builder.store(builder.load(total), place, align=4)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 9), generate

    return tile


wide_8, wide_4, wide_1 = tile_of(8, WIDE), tile_of(4, WIDE), tile_of(1, WIDE)
narrow_8, narrow_1, single = tile_of(8, 4), tile_of(1, 4), tile_of(1, 1)


@compiled
def tiles(a, a_row, a_term, b, b_term, out, out_row, rows, columns, terms, add):
    j = 0
    while j < columns:
        wide, narrow, i = columns - j >= WIDE, columns - j >= 4, 0
        while i < rows:
            a_, b_, out_ = a + 4 * i * a_row, b + 4 * j, out + 4 * (i * out_row + j)
            if wide and rows - i >= 8:
                wide_8(a_, a_row, a_term, b_, b_term, out_, out_row, terms, add)
                i += 8
            elif wide and rows - i >= 4:
                wide_4(a_, a_row, a_term, b_, b_term, out_, out_row, terms, add)
                i += 4
            elif wide:
                wide_1(a_, a_row, a_term, b_, b_term, out_, out_row, terms, add)
                i += 1
            elif narrow and rows - i >= 8:
                narrow_8(a_, a_row, a_term, b_, b_term, out_, out_row, terms, add)
                i += 8
            elif narrow:
                narrow_1(a_, a_row, a_term, b_, b_term, out_, out_row, terms, add)
                i += 1
            else:
                single(a_, a_row, a_term, b_, b_term, out_, out_row, terms, add)
                i += 1
        j += WIDE if wide else 4 if narrow else 1


@compiled
def product(a, first_a, b, out, first_out, add):
    """out (or, with add, out plus) a @ b, of the columns of a and of out that begin at the given ones."""
    terms, columns = b.shape
    begin, end = a.ctypes.data + 4 * first_a, out.ctypes.data + 4 * first_out
    tiles(begin, a.shape[1], 1, b.ctypes.data, columns, end, out.shape[1], len(a), columns, terms, add)


@compiled
def add_product_transposed(a, b, out):
    """out becomes out + a.T @ b."""
    columns = b.shape[1]
    tiles(a.ctypes.data, 1, a.shape[1], b.ctypes.data, columns, out.ctypes.data, columns, len(out), columns, len(a), 1)
