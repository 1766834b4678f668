"""Losses and gradients of stacked models, as machine code that is written for their sizes.

A model is given by tables. `up`, `gate` (of SwiGLU), `down` and `head` are the matrices after the attention, with a
last row of biases where a LayerNorm is before them. What is before them is either
  `embedding` [width, LANES], `positions` [length, width], and the matrices `query` and `attended` (keys, values) or
  `kv` [columns, length, LANES] and `xq` [columns, queries, LANES]: keys and values of every token at every place,
  and the residual stream and queries where something is predicted.
Values are what the attention adds to the residual stream: they have been multiplied by its output matrix.

LANES examples are computed at a time, one in each lane of a vector register. All loops over widths are unrolled, so
that what follows from a query stays in registers. A column of `kv` or `xq` for all tokens at a place fits a register:
one instruction picks the values of LANES examples. Gradients are transposed and added to rows, one for each token.
bench.py has the time of a step.
"""

import ctypes
import functools
import itertools
import math
import os
from concurrent.futures import ThreadPoolExecutor

import llvmlite.binding as llvm
import numpy as np
import torch
from llvmlite import ir

LANES = 16
LOG2E = 1.4426950408889634
TILE = 3, 8  # rows and columns of a matrix whose gradients are in registers
FLOAT, BYTE, INT, LONG = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)
VECTOR, INTS = ir.VectorType(FLOAT, LANES), ir.VectorType(INT, LANES)
FAST = ("reassoc", "contract", "arcp", "afn", "nsz")  # NaN and infinity stay what they are


class Value:
    """A vector of LANES numbers; arithmetic on it writes instructions."""

    def __init__(self, code, value):
        self.code, self.value = code, value

    def combined(self, operation, other):
        return Value(self.code, getattr(self.code.at, operation)(self.value, self.code.vector(other).value, flags=FAST))

    __add__ = functools.partialmethod(combined, "fadd")
    __sub__ = functools.partialmethod(combined, "fsub")
    __mul__ = functools.partialmethod(combined, "fmul")
    __truediv__ = functools.partialmethod(combined, "fdiv")

    def minus(self, other):
        """The difference, not merged with the sums before it: near 0 it would be all rounding errors."""
        return Value(self.code, self.code.at.fsub(self.value, other.value))

    def __neg__(self):
        return self * -1.0

    def below(self, other):
        """1 in the lanes where it is less, else 0."""
        return self.code.at.fcmp_ordered("<", self.value, self.code.vector(other).value)

    def max(self, other):
        return self.code.select(self.below(other), other, self)


def total(values):
    return functools.reduce(Value.__add__, values)


def dot(xs, ys):
    return total(x * y for x, y in zip(xs, ys))


def plus(xs, ys):
    return [x + y for x, y in zip(xs, ys)]


class Code:
    """The function that is being written."""

    def __init__(self, name, pointers, numbers, training=False):
        self.module, self.training = ir.Module(name), training
        kinds = [ir.PointerType()] * pointers + [LONG] * numbers
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), kinds), name)
        self.at = ir.IRBuilder(self.function.append_basic_block())
        self.times = {self.at.block: 1}  # how often each block runs

    def vector(self, x):
        """A number in all lanes, or what is a vector already."""
        return x if isinstance(x, Value) else Value(self, ir.Constant(VECTOR, [float(x)] * LANES))

    def select(self, condition, one, other):
        return Value(self, self.at.select(condition, self.vector(one).value, self.vector(other).value))

    def flat(self, row, size, column):
        """Where [row, column] lies, in rows of this size."""
        row, column = (n if isinstance(n, ir.Value) else LONG(n) for n in (row, column))
        return self.at.add(self.at.mul(row, LONG(size)), column)

    def place(self, pointer, kind, index):
        index = index if isinstance(index, ir.Value) else LONG(index)
        return self.at.gep(pointer, [index], source_etype=kind)

    def load(self, pointer, index):
        """The vector at pointer[index], pointer[index + 1], ..."""
        return Value(self, self.at.load(self.place(pointer, FLOAT, index), typ=VECTOR, align=4))

    def store(self, value, pointer, index):
        self.at.store(value.value, self.place(pointer, FLOAT, index), align=4)

    def store_total(self, value, pointer, index):
        """The sum of all lanes."""
        kind = ir.FunctionType(FLOAT, [FLOAT, VECTOR])
        add = self.module.declare_intrinsic(f"llvm.vector.reduce.fadd.v{LANES}f32", fnty=kind)
        self.at.store(self.at.call(add, [FLOAT(0.0), value.value], fastmath=FAST), self.place(pointer, FLOAT, index))

    def splat(self, pointer, index):
        """The number at pointer[index] in all lanes."""
        return self.everywhere(self.at.load(self.place(pointer, FLOAT, index), typ=FLOAT), VECTOR)

    def everywhere(self, number, kind):
        start = self.at.insert_element(ir.Constant(kind, ir.Undefined), number, INT(0))
        filled = self.at.shuffle_vector(start, start, ir.Constant(INTS, [0] * LANES))
        return Value(self, filled) if kind is VECTOR else filled

    def scratch(self, rows, width=1):
        """Room on the stack."""
        block = self.at.alloca(ir.ArrayType(VECTOR, rows * width))
        block.align, block.type = 64, ir.PointerType()
        return Rows(self, block, width)

    def zeros(self, rows, width=1):
        found = self.scratch(rows, width)
        self.loop(0, rows, lambda row: found.__setitem__(row, [0] * width))
        return found

    def loop(self, start, stop, body, first=(), times=None):
        """body(i) for i from start to stop, at least once; `times`, or that often in the mean. Where there are `first`
        values, it is body(i, values) -> the next values, and the last ones are returned."""
        before, inside, after = self.at.block, *(self.function.append_basic_block() for _ in range(2))
        self.times |= {inside: self.times[before] * (times or stop - start), after: self.times[before]}
        start, stop = (n if isinstance(n, ir.Value) else LONG(n) for n in (start, stop))
        first = [self.vector(x).value for x in first]
        self.at.branch(inside)
        self.at.position_at_end(inside)
        i, *values = [self.at.phi(kind) for kind in (LONG, *[VECTOR] * len(first))]
        found = body(i, [Value(self, x) for x in values]) if first else body(i)
        last = [self.vector(x).value for x in found] if first else []
        following = self.at.add(i, LONG(1))
        for phi, one, next_one in zip((i, *values), (start, *first), (following, *last)):
            phi.add_incoming(one, before)
            phi.add_incoming(next_one, self.at.block)
        self.at.cbranch(self.at.icmp_signed("<", following, stop), inside, after)
        self.at.position_at_end(after)
        return [Value(self, x) for x in last]

    def call(self, name, *values):
        """One of LLVM's functions: sqrt, fabs, copysign."""
        kind = ir.FunctionType(VECTOR, [VECTOR] * len(values))
        function = self.module.declare_intrinsic(f"llvm.{name}.v{LANES}f32", fnty=kind)
        return Value(self, self.at.call(function, [x.value for x in values], fastmath=FAST))

    def exp(self, x):
        """e^x for x <= 0, to float32."""
        return self.exp2(x * LOG2E)

    def exp2(self, x):
        """2^x for x <= 0: 2^n times a polynomial of the rest."""
        at, exact, large = self.at, ("contract",), self.vector(1.5 * 2**23).value
        z = x.max(-125.5).value
        shifted = at.fadd(z, large, flags=exact)  # rounds z; the last bits are n
        r = Value(self, at.fsub(z, at.fsub(shifted, large), flags=exact))
        p = self.vector(1.3276472027704202e-3)
        for c in (9.675541479820563e-3, 5.550713274652408e-2, 2.4022119721167026e-1, 6.931469670632626e-1, 1.0):
            p = p * r + c
        power = at.shl(at.bitcast(shifted, INTS), INTS([23] * LANES))
        return Value(self, at.bitcast(at.add(at.bitcast(p.value, INTS), power), VECTOR))

    def picked(self, column, tokens):
        """Each lane's token of a column: one instruction, where there is one."""
        found = ir.Constant(VECTOR, ir.Undefined)
        for lane in map(INT, range(LANES)):
            value = self.at.extract_element(column.value, self.at.extract_element(tokens, lane))
            found = self.at.insert_element(found, value, lane)
        return Value(self, found)

    def transposed(self, rows):
        """LANES vectors of columns from as many of rows."""
        rows = [row.value for row in rows]
        for bit in (1, 2, 4, 8):
            for i in (i for i in range(LANES) if not i & bit):
                a, b = rows[i], rows[i | bit]
                low = [lane if not lane & bit else LANES + (lane ^ bit) for lane in range(LANES)]
                high = [lane ^ bit if not lane & bit else LANES + lane for lane in range(LANES)]
                rows[i] = self.at.shuffle_vector(a, b, INTS(low))
                rows[i | bit] = self.at.shuffle_vector(a, b, INTS(high))
        return [Value(self, row) for row in rows]


class Rows:
    """Rows of `width` vectors; one is read and written as a list."""

    def __init__(self, code, pointer, width):
        self.code, self.pointer, self.width = code, pointer, width

    def part(self, row, start, count):
        return [self.code.load(self.pointer, place) for place in self.places(row, start, count)]

    def places(self, row, start, count):
        row = row if isinstance(row, ir.Value) else LONG(row)
        return [self.code.flat(self.code.flat(row, self.width, start + i), LANES, 0) for i in range(count)]

    def __getitem__(self, row):
        return self.part(row, 0, self.width)

    def __setitem__(self, row, values):
        self.put(row, 0, len(values), values)

    def put(self, row, start, count, values):
        for place, value in zip(self.places(row, start, count), values):
            self.code.store(self.code.vector(value), self.pointer, place)


class Table:
    """A vector of all tokens for each column and place. Until `write` its gradient has a row for each token."""

    def __init__(self, code, places, columns, pointer, gradient):
        self.code, self.places, self.columns = code, places, columns
        self.pointer = pointer or code.scratch(places, columns).pointer
        if code.training:
            self.gradient = gradient or self.pointer
            self.rows = code.zeros(places * LANES, -(-columns // LANES))

    def where(self, place):
        return [self.code.flat(self.code.flat(i, self.places, place), LANES, 0) for i in range(self.columns)]

    def __getitem__(self, place):
        return [self.code.load(self.pointer, where) for where in self.where(place)]

    def store(self, pointer, place, columns):
        for where, column in zip(self.where(place), columns):
            self.code.store(column, pointer, where)

    def read(self, place, tokens):
        """The columns of these tokens, one a lane."""
        return [self.code.picked(column, tokens) for column in self[place]]

    def add(self, place, token, columns):
        """To the gradient; token(lane)."""
        columns = columns + [self.code.vector(0)] * (-len(columns) % LANES)
        parts = [self.code.transposed(columns[i : i + LANES]) for i in range(0, len(columns), LANES)]
        for lane, row in enumerate(zip(*parts)):
            where = self.code.flat(place, LANES, token(lane))
            self.rows[where] = plus(self.rows[where], row)

    def write(self):
        def one(place):
            parts = zip(*(self.rows[self.code.flat(place, LANES, token)] for token in range(LANES)))
            self.store(self.gradient, place, itertools.chain(*map(self.code.transposed, parts)))

        self.code.loop(0, self.places, one)


class Matrix:
    """A matrix behind a pointer. Called with x, it is x times it. Until `write` its gradient has one sum a lane."""

    def __init__(self, code, shape, pointer, gradient, calls):
        self.code, (self.rows, self.columns), self.pointer, self.gradient = code, shape, pointer, gradient
        self.calls = calls
        if gradient:
            self.kept = code.scratch(calls, self.rows), code.scratch(calls, self.columns)
            self.sums = code.zeros(self.rows, self.columns)

    def row(self, i):
        return [self.code.splat(self.pointer, self.code.flat(i, self.columns, o)) for o in range(self.columns)]

    def __call__(self, x, call):
        """-> x times it; keeps x for `add_all`."""
        if self.gradient:
            self.kept[0][call] = x
        return [dot(column, x) for column in zip(*map(self.row, range(self.rows)))]

    def back(self, dy, call):
        """-> the gradient of x; keeps dy for `add_all`."""
        self.kept[1][call] = dy
        return [dot(self.row(i), dy) for i in range(self.rows)]

    def add_all(self):
        """The products of all calls, for some rows and columns at a time, whose sums are in registers."""
        (xs, dys), (most_rows, most_columns) = self.kept, TILE
        for i, o in itertools.product(range(0, self.rows, most_rows), range(0, self.columns, most_columns)):
            rows, columns = min(most_rows, self.rows - i), min(most_columns, self.columns - o)

            def one(call, found, xs=(xs, i, rows), dys=(dys, o, columns)):
                x, dy = (kept.part(call, start, count) for kept, start, count in (xs, dys))
                return plus(found, [a * b for a in x for b in dy])

            found = self.code.loop(0, self.calls, one, [0] * (rows * columns))
            for row in range(rows):
                where, part = (i + row, o, columns), found[row * columns : (row + 1) * columns]
                self.sums.put(*where, plus(self.sums.part(*where), part))

    def write(self):
        def one(row):
            for o, value in enumerate(self.sums[row]):
                self.code.store_total(value, self.gradient, self.code.flat(row, self.columns, o))

        self.code.loop(0, self.rows, one)


class Norm:
    """LayerNorm or RMSNorm of x; its weights and biases are in the matrix after it."""

    def __init__(self, code, eps, centered, x):
        self.centered, self.share = centered, 1 / len(x)
        x = self.without_mean(x)
        self.scale = code.vector(1) / code.call("sqrt", dot(x, x) * self.share + eps)
        self.normal = [value * self.scale for value in x]
        self.out = self.normal + [code.vector(1)] * centered  # times the row of biases

    def without_mean(self, x):
        if not self.centered:
            return x
        mean = total(x) * self.share
        return [value - mean for value in x]

    def back(self, dy):
        dy = dy[: len(self.normal)]
        along = dot(dy, self.normal) * self.share
        return [(d - n * along) * self.scale for d, n in zip(self.without_mean(dy), self.normal)]


def gelu(code, x):
    """Exact GELU and its slope: the error function by Abramowitz and Stegun 7.1.26, 1.5e-7 at most."""
    density = 0.3989422804014327  # of the normal distribution at 0
    bell = code.exp2(x * (x * (-0.5 * LOG2E)) + math.log2(density))
    t = code.vector(1) / (code.call("fabs", x) * 0.2316418882663604 + 1.0)
    p = code.vector(0.5307027145 / density)
    for c in (-0.7265760135, 0.7107068705, -0.142248368, 0.127414796):
        p = p * t + c / density
    beyond = code.call("copysign", -(p * t * bell) + 0.5, x) + 0.5
    return x * beyond, beyond + x * bell


def silu(code, x):
    """SiLU and its slope."""
    e = code.exp(-code.call("fabs", x))
    large = code.vector(1) / (e + 1.0)
    sigmoid = code.select(x.below(0.0), e * large, large)
    return x * sigmoid, sigmoid * ((-sigmoid + 1.0) * x + 1.0)


RESULTS = ("totals", "shift", "right")
numbered = itertools.count()  # of the functions


def write(training, layout, eps, shapes, each=1):
    """The function for these sizes. Its arguments are pointers to the rows, the tables, the RESULTS and, in training,
    the gradients of the tables; then the number of examples and of blocks of LANES. `each`: of blocks, where operations
    are counted."""
    shapes = dict(shapes)
    names = ("rows", *shapes, *RESULTS, *(f"d {name}" for name in shapes if training))
    code = Code(f"batch_{next(numbered)}", len(names), 2, training)
    at, (*arguments, count, blocks) = code.at, code.function.args
    pointers, queried = dict(zip(names, arguments)), layout.length - layout.first
    (_, width), given = shapes["down"], "kv" in shapes
    columns = shapes["kv"][0] if given else shapes["attended"][1]
    head, centered = columns - width, shapes["up"][0] > width
    assert layout.vocabulary <= LANES, layout

    def table(name, places, columns):
        return Table(code, places, columns, pointers.get(name), pointers.get(f"d {name}"))

    def matrix(name, calls):
        return Matrix(code, shapes[name], pointers[name], pointers.get(f"d {name}"), calls)

    kv, xq = table("kv", layout.length, columns), table("xq", queried, width + head)
    norm = functools.partial(Norm, code, eps, centered)
    matrices = {name: matrix(name, queried) for name in ("up", "gate", "down", "head") if name in shapes}
    after, (up, *gates, down, to_logits) = list(matrices.values()), matrices.values()
    pairs = code.scratch(layout.length, columns)  # keys and values, then their gradients
    scores, slopes = (code.scratch(layout.length * queried) for _ in range(2))
    queries, d_queries = (code.scratch(queried, head) for _ in range(2))
    streams, attended, upstream = (code.scratch(queried, width) for _ in range(3))
    inverse = code.scratch(queried)
    totals, shift, right = (Rows(code, pointers[name], 1) for name in RESULTS)
    share = at.fdiv(FLOAT(1.0), at.sitofp(at.mul(count, LONG(queried)), FLOAT))
    share, padded = code.everywhere(share, VECTOR), at.mul(blocks, LONG(LANES))
    seen = sum(range(layout.first + 1, layout.length + 1))  # pairs of a query and a place that it sees

    def block(number):
        begin = code.flat(number, LANES, 0)
        lanes = ir.Constant(INTS, list(range(LANES)))
        alive = at.icmp_signed("<", lanes, code.everywhere(at.trunc(at.sub(count, begin), INT), INTS))

        def place_of(query):
            return at.add(query, LONG(layout.first))

        def tokens(place, kind=INTS, lane=0):
            """Of this place in all lanes; of kind LONG in one."""
            where = code.place(pointers["rows"], BYTE, at.add(at.mul(place, padded), at.add(begin, LONG(lane))))
            loaded = ir.VectorType(BYTE, LANES) if kind is INTS else BYTE
            return at.zext(at.load(where, typ=loaded, align=1), kind)

        def keys(place):
            return pairs.part(place, 0, head)

        def values(place):
            return pairs.part(place, head, width)

        def read(place):
            pairs[place] = kv.read(place, tokens(place))

        def attend(query):
            place = place_of(query)
            both = xq.read(query, tokens(place))
            streams[query], queries[query] = both[:width], both[width:]

            def score(place, largest):
                found = dot(both[width:], keys(place))
                scores[code.flat(place, queried, query)] = [found]
                return [largest[0].max(found)]

            def add(place, found):
                where = code.flat(place, queried, query)
                e = code.exp(scores[where][0] - largest)
                scores[where] = [e]
                return plus(found, [e, *(e * v for v in values(place))])

            (largest,) = code.loop(0, at.add(place, LONG(1)), score, [-3e38], seen / queried)
            weight, *found = code.loop(0, at.add(place, LONG(1)), add, [0] * (width + 1), seen / queried)
            scale = code.vector(1) / weight
            attended[query], inverse[query] = [value * scale for value in found], [scale]

        def answer(query):
            """From the attention's output to the loss, and back."""
            x = plus(streams[query], attended[query])
            middle = norm(x)
            linear = up(middle.out, query)
            if gates:
                curved, slope = zip(*(silu(code, g) for g in gates[0](middle.out, query)))
                hidden = [c * u for c, u in zip(curved, linear)]
            else:
                hidden, slope = zip(*(gelu(code, u) for u in linear))
            final = norm(plus(x, down(hidden, query)))
            logits = to_logits(final.out, query)
            highest = functools.reduce(Value.max, logits)
            e = [code.exp(z - highest) for z in logits]
            partition = total(e)

            target = tokens(at.add(place_of(query), LONG(1)))
            hits = [at.icmp_signed("==", target, INTS([token] * LANES)) for token in range(layout.vocabulary)]
            wanted = total(code.select(hit, z, 0) for hit, z in zip(hits, logits))
            totals[number] = [code.select(alive, totals[number][0] * partition, 1)]
            shift[number] = [code.select(alive, shift[number][0] + (highest - wanted), 0)]
            if not training:
                counted = at.icmp_signed("<", query, LONG(len(layout.sum)))
                # 1 where the wanted token alone is as large as itself; a NaN is never
                none_above = total(code.select(at.fcmp_ordered(">=", z.value, wanted.value), 1, 0) for z in logits)
                wrong = at.fcmp_unordered("!=", none_above.value, code.vector(1).value)
                wrong = at.and_(wrong, code.everywhere(counted, ir.VectorType(ir.IntType(1), LANES)))
                right[number] = [code.select(wrong, 0, right[number][0])]
                return
            part = code.select(alive, share, 0)
            scale = part / partition
            d_logits = [p * scale - code.select(hit, part, 0) for p, hit in zip(e, hits)]
            dx = final.back(to_logits.back(d_logits, query))
            d_hidden = down.back(dx, query)
            if gates:
                dh = up.back([d * c for d, c in zip(d_hidden, curved)], query)
                dh = plus(dh, gates[0].back([d * u * k for d, u, k in zip(d_hidden, linear, slope)], query))
            else:
                dh = up.back([d * k for d, k in zip(d_hidden, slope)], query)
            dx = plus(dx, middle.back(dh))
            d = [value * inverse[query][0] for value in dx]
            upstream[query], streams[query] = d, dx
            inverse[query] = [dot(d, attended[query])]

        def query_back(query):
            """The gradients of the query and of its scores."""
            d, along = upstream[query], inverse[query][0]

            def one(place, found):
                where = code.flat(place, queried, query)
                slope = scores[where][0] * dot(d, values(place)).minus(along)
                slopes[where] = [slope]
                return [a + slope * x for a, x in zip(found, keys(place))]

            d_queries[query] = code.loop(0, at.add(place_of(query), LONG(1)), one, [0] * head, seen / queried)

        def place_back(place):
            def one(query, found):
                where = code.flat(place, queried, query)
                d_k = [slopes[where][0] * x for x in queries[query]]
                d_v = [scores[where][0] * x for x in upstream[query]]
                return plus(found, d_k + d_v)

            behind = at.sub(place, LONG(layout.first))
            first = at.select(at.icmp_signed(">", behind, LONG(0)), behind, LONG(0))  # query that sees this place
            pairs[place] = code.loop(first, queried, one, [0] * columns, seen / layout.length)

        totals[number], shift[number], right[number] = [1], [0], [code.select(alive, 1, 0)]
        code.loop(0, layout.length, read)
        code.loop(0, queried, attend)
        code.loop(0, queried, answer)
        if training:
            for one in after:
                one.add_all()
            code.loop(0, queried, query_back)
            code.loop(0, layout.length, place_back)
            # Apart from what is computed: rows of equal tokens wait for each other
            code.loop(
                0, layout.length, lambda place: kv.add(place, functools.partial(tokens, place, LONG), pairs[place])
            )
            code.loop(
                0, queried, lambda n: xq.add(n, functools.partial(tokens, place_of(n), LONG), streams[n] + d_queries[n])
            )

    def stream(place):
        """Of every token at this place, one in each lane."""
        return plus(Rows(code, pointers["embedding"], width)[0], positions.row(place))

    def inputs(place, predicts):
        x = stream(place)
        h = norm(x).out
        kv.store(kv.pointer, place, to_attended(h, place))
        if predicts:
            query = at.sub(place, LONG(layout.first))
            xq.store(xq.pointer, query, x + to_query(h, query))

    def inputs_back(place, d_embedding, predicts):
        first, dx = norm(stream(place)), [code.vector(0)] * width
        dh = to_attended.back(kv[place], place)
        if predicts:
            query = at.sub(place, LONG(layout.first))
            both = xq[query]
            dx, dh = both[:width], plus(dh, to_query.back(both[width:], query))
        dx = plus(dx, first.back(dh))
        for i, value in enumerate(dx):
            code.store_total(value, pointers["d positions"], code.flat(place, width, i))
        return plus(d_embedding, dx)

    def everywhere(body, first=()):
        first = code.loop(0, layout.first, functools.partial(body, predicts=False), first)
        return code.loop(layout.first, layout.length, functools.partial(body, predicts=True), first)

    if not given:
        positions = matrix("positions", 0)
        matrices |= {"attended": matrix("attended", layout.length), "query": matrix("query", queried)}
        to_attended, to_query = matrices["attended"], matrices["query"]
        everywhere(inputs)
    code.loop(0, blocks, block, times=each)
    if training:
        kv.write()
        xq.write()
        if not given:
            Rows(code, pointers["d embedding"], width)[0] = everywhere(inputs_back, [0] * width)
            to_attended.add_all()
            to_query.add_all()
        for one in matrices.values():
            one.write()
    return code


@functools.cache
def machine():
    """The compiler for this machine."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    flags = ",".join(f"{'+' if on else '-'}{name}" for name, on in features.items())
    if features.get("avx512f"):
        flags += ",-prefer-256-bit"
    target, cpu = llvm.Target.from_default_triple(), llvm.get_host_cpu_name()
    target = target.create_target_machine(cpu=cpu, features=flags, opt=3, jit=True)
    return target, llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)


def assemble(code, numbers):
    """The written function as a ctypes function, which lets other threads run."""
    code.at.ret_void()
    target, engine = machine()
    module = llvm.parse_assembly(str(code.module))
    module.verify()
    builder = llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(speed_level=2))
    builder.getModulePassManager().run(module, builder)
    engine.add_module(module)
    engine.finalize_object()
    kinds = [ctypes.c_void_p] * (len(code.function.args) - numbers) + [ctypes.c_int64] * numbers
    return ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(code.function.name))


def shapes_of(tables):
    """Of one model's tables."""
    return tuple((name, tuple(t.shape[1:])) for name, t in tables.items())


@functools.cache
def compiled(*sizes):
    return assemble(write(*sizes), 2)


@functools.cache
def pool(threads):
    return ThreadPoolExecutor(threads, initializer=flush_denormals)


def flush_denormals():
    """Numbers below 1e-38 are 0 for this thread: attention weights get so small late in training, and a CPU needs
    several times as long for products of such numbers."""
    torch.set_flush_denormal(True)


def in_parallel(jobs):
    """The results of (function, *arguments) of all jobs."""
    threads = min(torch.get_num_threads(), os.cpu_count() or 1, len(jobs))
    if threads <= 1:
        return [function(*arguments) for function, *arguments in jobs]
    return [future.result() for future in [pool(threads).submit(*job) for job in jobs]]


def call(training, tables, rows, layout, eps):
    """Every model on its own rows [models, batch, length + 1]; models run in parallel.

    -> losses, counts of right rows, and in training the gradients of the tables
    """
    models, batch = rows.shape[:2]
    blocks = -(-batch // LANES)
    tokens = np.zeros((models, rows.shape[2], blocks * LANES), np.uint8)
    tokens[:, :, :batch] = rows.swapaxes(1, 2)
    arrays = {name: np.ascontiguousarray(t.detach().numpy(), dtype=np.float32) for name, t in tables.items()}
    totals, shift, right = (np.empty((models, blocks, LANES), np.float32) for _ in RESULTS)
    gradients = [np.empty_like(a) for a in arrays.values() if training]
    function = compiled(training, layout, eps, shapes_of(tables))
    stacks = (tokens, *arrays.values(), totals, shift, right, *gradients)
    places = [a.ctypes.data + np.arange(models) * a.strides[0] for a in stacks]
    in_parallel([(function, *places, batch, blocks) for places in np.stack(places, 1).tolist()])
    losses = (np.log(totals) + shift).sum((1, 2), dtype=np.float64) / (batch * (layout.length - layout.first))
    found = losses.astype(np.float32), right.sum((1, 2)).astype(np.int64)
    return *map(torch.from_numpy, found), [torch.from_numpy(g) for g in gradients]


class Loss(torch.autograd.Function):
    """The mean losses of stacked models, with gradients for their tables."""

    @staticmethod
    def forward(context, rows, layout, eps, names, *tables):
        loss, _, gradients = call(True, dict(zip(names, tables)), rows, layout, eps)
        context.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(context, upstream):
        found = (g * upstream.view(-1, *(1,) * (g.ndim - 1)) for g in context.saved_tensors)
        return None, None, None, None, *found
