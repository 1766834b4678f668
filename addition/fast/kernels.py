"""Loss and gradients of one model on a batch, as machine code that is written for its sizes.

LANES examples are computed at a time, one in each lane of a vector register. All loops over widths are unrolled, so
that what follows from a query stays in registers. The tables of engine.py have a row for every token at every place:
LANES rows are read at once and transposed, and the gradients go back the same way. bench.py has the time of a step.
"""

import ctypes
import functools
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import llvmlite.binding as llvm
import numpy as np
import torch
from llvmlite import ir

LANES = 16
FLOAT, BYTE, INT, LONG = ir.FloatType(), ir.IntType(8), ir.IntType(32), ir.IntType(64)
VECTOR, INTS = ir.VectorType(FLOAT, LANES), ir.VectorType(INT, LANES)
FAST = ("reassoc", "contract", "arcp", "afn", "nsz")  # NaN and infinity stay what they are


class Tables(NamedTuple):
    """Of one model, or stacked: the inputs of attention and of everything after it."""

    kv: torch.Tensor  # [length, vocabulary, columns] keys and values
    xq: torch.Tensor  # [queries, vocabulary, columns] residual stream and queries, where something is predicted
    out: torch.Tensor  # [head, width]
    norm: torch.Tensor  # [2, width] weight and bias before the feed-forward
    up: torch.Tensor  # [width, hidden]
    gate: torch.Tensor  # [width, hidden] of SwiGLU; without it [width, 0]
    down: torch.Tensor  # [hidden, width]
    final: torch.Tensor  # [2, width]
    head: torch.Tensor  # [width, vocabulary]


def packed(*parts):
    """Side by side, in whole vectors."""
    joined = torch.cat(parts, -1)
    return torch.nn.functional.pad(joined, (0, -joined.shape[-1] % LANES))


class Sizes(NamedTuple):
    """What the machine code is written for."""

    training: bool
    layout: tuple
    kind: tuple
    width: int
    head: int
    hidden: int

    @property
    def queries(self):
        return self.layout.length - self.layout.first

    @property
    def weights(self):
        """Rows and columns of the matrices after the attention."""
        w, h = self.width, self.hidden
        return {"out": (self.head, w), "norm": (2, w), "up": (w, h), "gate": (w, h if self.kind.gated else 0),
                "down": (h, w), "final": (2, w), "head": (w, self.layout.vocabulary)}  # fmt: skip


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

    def __init__(self, name, pointers, numbers):
        self.module = ir.Module(name)
        kinds = [ir.PointerType()] * pointers + [LONG] * numbers
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), kinds), name)
        for argument in self.function.args[:pointers]:
            argument.add_attribute("noalias")
        self.at = ir.IRBuilder(self.function.append_basic_block())

    def vector(self, x):
        """A number in all lanes, or what is a vector already."""
        return x if isinstance(x, Value) else Value(self, ir.Constant(VECTOR, [float(x)] * LANES))

    def select(self, condition, one, other):
        return Value(self, self.at.select(condition, self.vector(one).value, self.vector(other).value))

    def flat(self, row, size, column):
        """Where [row, column] lies, in rows of this size."""
        return self.at.add(self.at.mul(row, LONG(size)), column if isinstance(column, ir.Value) else LONG(column))

    def place(self, pointer, kind, index):
        index = index if isinstance(index, ir.Value) else LONG(index)
        return self.at.gep(pointer, [index], source_etype=kind)

    def load(self, pointer, index):
        """The vector at pointer[index], pointer[index + 1], ..."""
        return Value(self, self.at.load(self.place(pointer, FLOAT, index), typ=VECTOR, align=4))

    def store(self, value, pointer, index):
        self.at.store(value.value, self.place(pointer, FLOAT, index), align=4)

    def add_to(self, value, pointer, index):
        self.store(self.load(pointer, index) + value, pointer, index)

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

    def loop(self, start, stop, body):
        """body(i) for i from start to stop, at least once."""
        before, inside, after = self.at.block, *(self.function.append_basic_block() for _ in range(2))
        start, stop = (n if isinstance(n, ir.Value) else LONG(n) for n in (start, stop))
        self.at.branch(inside)
        self.at.position_at_end(inside)
        i = self.at.phi(LONG)
        i.add_incoming(start, before)
        body(i)
        following = self.at.add(i, LONG(1))
        i.add_incoming(following, self.at.block)
        self.at.cbranch(self.at.icmp_signed("<", following, stop), inside, after)
        self.at.position_at_end(after)

    def call(self, name, x):
        """One of LLVM's functions: sqrt, fabs."""
        function = self.module.declare_intrinsic(f"llvm.{name}.v{LANES}f32", fnty=ir.FunctionType(VECTOR, [VECTOR]))
        return Value(self, self.at.call(function, [x.value], fastmath=FAST))

    def exp(self, x):
        """e^x for x <= 0, to float32."""
        z = (x * 1.4426950408889634).max(-126.0)
        n = self.at.fptosi((z - 0.5).value, INTS)
        r = z - Value(self, self.at.sitofp(n, VECTOR))
        p = self.vector(1.535336188319500e-4)
        for c in (1.339887440266574e-3, 9.618437357674640e-3, 5.550332471162809e-2, 2.402264791363012e-1,
                  6.931472028550421e-1, 1.0):  # fmt: skip
            p = p * r + c
        bits = self.at.shl(self.at.add(n, INTS([127] * LANES)), INTS([23] * LANES))
        return p * Value(self, self.at.bitcast(bits, VECTOR))

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

    def places(self, row, count):
        return [self.code.flat(self.code.flat(row, self.width, i), LANES, 0) for i in range(count)]

    def __getitem__(self, row):
        return [self.code.load(self.pointer, place) for place in self.places(row, self.width)]

    def __setitem__(self, row, values):
        for place, value in zip(self.places(row, len(values)), values):
            self.code.store(self.code.vector(value), self.pointer, place)


class Matrix:
    """A matrix behind a pointer, with its gradient in training: one sum a lane. Called with x, it is x times it."""

    def __init__(self, code, shape, pointer, gradient):
        self.code, (self.rows, self.columns), self.pointer, self.gradient = code, shape, pointer, gradient

    def row(self, i):
        return [self.code.splat(self.pointer, i * self.columns + o) for o in range(self.columns)]

    def add(self, i, values):
        """To the gradient of row i."""
        for o, value in enumerate(values):
            self.code.add_to(value, self.gradient, (i * self.columns + o) * LANES)

    def __call__(self, x):
        self.x = x
        return [total(self.code.splat(self.pointer, i * self.columns + o) * v for i, v in enumerate(x))
                for o in range(self.columns)]  # fmt: skip

    def back(self, dy):
        """-> the gradient of the last x."""
        dx = []
        for i, x in enumerate(self.x):
            dx.append(dot(self.row(i), dy))
            self.add(i, [x * d for d in dy])
        return dx


class Norm:
    """LayerNorm or RMSNorm; its matrix has a row of weights and a row of biases."""

    def __init__(self, matrix, kind):
        self.matrix, self.kind, self.width = matrix, kind, matrix.columns

    def __call__(self, x):
        code = self.matrix.code
        if self.kind.centered:
            mean = total(x) * (1 / self.width)
            x = [value - mean for value in x]
        self.scale = code.vector(1) / code.call("sqrt", dot(x, x) * (1 / self.width) + self.kind.eps)
        self.normal = [value * self.scale for value in x]
        weights, biases = self.matrix.row(0), self.matrix.row(1)
        return [n * weight + bias for n, weight, bias in zip(self.normal, weights, biases)]

    def back(self, dy):
        self.matrix.add(0, [d * n for d, n in zip(dy, self.normal)])
        if self.kind.centered:  # an RMSNorm has no bias
            self.matrix.add(1, dy)
        dy = [d * weight for d, weight in zip(dy, self.matrix.row(0))]
        along = dot(dy, self.normal) * (1 / self.width)
        if self.kind.centered:
            mean = total(dy) * (1 / self.width)
            dy = [d - mean for d in dy]
        return [(d - n * along) * self.scale for d, n in zip(dy, self.normal)]


def gelu(code, x):
    """Exact GELU and its slope: the error function by Abramowitz and Stegun 7.1.26, 1.5e-7 at most."""
    size = code.call("fabs", x) * 0.7071067811865476
    bell = code.exp(-(size * size))
    t = code.vector(1) / (size * 0.3275911 + 1.0)
    p = code.vector(1.061405429)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = p * t + c
    tail = p * t * bell * 0.5
    below = code.select(x.below(0.0), tail, -tail + 1.0)
    return x * below, below + x * bell * 0.3989422804014327


def silu(code, x):
    """SiLU and its slope."""
    e = code.exp(-code.call("fabs", x))
    large = code.vector(1) / (e + 1.0)
    sigmoid = code.select(x.below(0.0), e * large, large)
    return x * sigmoid, sigmoid * ((-sigmoid + 1.0) * x + 1.0)


POINTERS = ("rows", *Tables._fields, "totals", "shift", "right")
numbered = itertools.count()  # of the functions


def write(s):
    """The function for these sizes; its arguments are POINTERS, in training those of the gradients, then the number of
    examples."""
    code = Code(f"batch_{next(numbered)}", len(POINTERS) + len(Tables._fields) * s.training, 1)
    at, layout = code.at, s.layout
    *arguments, count = code.function.args
    pointers, gradients = dict(zip(POINTERS, arguments)), dict(zip(Tables._fields, arguments[len(POINTERS) :]))
    out, norm, up, gate, down, final, head = (
        Matrix(code, shape, pointers[name], gradients.get(name)) for name, shape in s.weights.items()
    )
    norm, final = Norm(norm, s.kind), Norm(final, s.kind)
    values, scores = code.scratch(layout.length, s.head), code.scratch(layout.length * s.queries)
    queries, streams, most = code.scratch(s.queries, s.head), code.scratch(s.queries, s.width), code.scratch(s.queries)
    upstream, d_queries = code.scratch(s.queries, s.head), code.scratch(s.queries, s.head)
    d_streams, along = code.scratch(s.queries, s.width), code.scratch(s.queries)
    sums = code.scratch(1, 2 * s.head)  # for what a loop adds up
    totals, shift, right = (Rows(code, pointers[name], 1) for name in ("totals", "shift", "right"))
    here = LONG(0)  # the only row of `sums`

    def block(number):
        start = code.flat(number, LANES, 0)
        live = at.sub(count, start)
        lanes = ir.Constant(INTS, list(range(LANES)))
        alive = at.icmp_signed("<", lanes, code.everywhere(at.trunc(live, INT), INTS))
        last = at.sub(count, LONG(1))
        offsets = []  # of each lane's row; behind the last example, that one again
        for lane in range(LANES):
            row = at.add(start, LONG(lane))
            row = at.select(at.icmp_signed("<", row, last), row, last)
            offsets.append(at.mul(row, LONG(layout.length + 1)))
        share = at.fdiv(FLOAT(1.0), at.sitofp(at.mul(count, LONG(s.queries)), FLOAT))
        share = code.select(alive, code.everywhere(share, VECTOR), 0)

        def tokens(place):
            return [at.zext(at.load(code.place(pointers["rows"], BYTE, at.add(offset, place)), typ=BYTE), LONG)
                    for offset in offsets]  # fmt: skip

        def chunks(place, found, width):
            """Where the table's rows of these tokens at this place lie, LANES columns at a time."""
            columns = -(-width // LANES) * LANES
            for chunk in range(0, columns, LANES):
                yield [code.flat(code.flat(place, layout.vocabulary, token), columns, chunk) for token in found]

        def gather(name, place, found, width):
            """The table's rows of these tokens at this place, by columns."""
            cut = []
            for starts in chunks(place, found, width):
                cut += code.transposed([code.load(pointers[name], start) for start in starts])
            return cut[:width]

        def scatter(name, place, found, columns):
            columns = columns + [code.vector(0)] * (-len(columns) % LANES)
            for i, starts in enumerate(chunks(place, found, len(columns))):
                for start, row in zip(starts, code.transposed(columns[i * LANES : (i + 1) * LANES])):
                    code.add_to(row, gradients[name], start)

        def read_query(query):
            both = gather("xq", query, tokens(at.add(query, LONG(layout.first))), s.width + s.head)
            streams[query], queries[query], most[query] = both[: s.width], both[s.width :], [-3e38]

        def first_query(place):
            """The first query that sees this place."""
            behind = at.sub(place, LONG(layout.first))
            return at.select(at.icmp_signed(">", behind, LONG(0)), behind, LONG(0))

        def score(place):
            both = gather("kv", place, tokens(place), 2 * s.head)
            values[place] = both[s.head :]

            def one(query):
                found = dot(queries[query], both[: s.head])
                scores[code.flat(place, s.queries, query)] = [found]
                most[query] = [most[query][0].max(found)]

            code.loop(first_query(place), s.queries, one)

        def answer(query):
            """From the scores of a query to its loss, and back to the attention's output."""
            (largest,), place = most[query], at.add(query, LONG(layout.first))
            sums[here] = [0] * (s.head + 1)

            def attend(place):
                where = code.flat(place, s.queries, query)
                e = code.exp(scores[where][0] - largest)
                scores[where] = [e]
                sums[here] = plus(sums[here], [e, *(e * v for v in values[place])])

            code.loop(0, at.add(place, LONG(1)), attend)
            weight, *attended = sums[here][: s.head + 1]
            scale = code.vector(1) / weight
            attended = [value * scale for value in attended]
            x = plus(streams[query], out(attended))
            h = norm(x)
            linear = up(h)
            if s.kind.gated:
                curved, slope = zip(*(silu(code, g) for g in gate(h)))
                hidden = [c * u for c, u in zip(curved, linear)]
            else:
                hidden, slope = zip(*(gelu(code, u) for u in linear))
            logits = head(final(plus(x, down(hidden))))
            highest = functools.reduce(Value.max, logits)
            e = [code.exp(z - highest) for z in logits]
            partition = total(e)

            target = ir.Constant(INTS, ir.Undefined)
            for lane, token in enumerate(tokens(at.add(place, LONG(1)))):
                target = at.insert_element(target, at.trunc(token, INT), INT(lane))
            hits = [at.icmp_signed("==", target, INTS([token] * LANES)) for token in range(layout.vocabulary)]
            wanted = total(code.select(hit, z, 0) for hit, z in zip(hits, logits))
            row = code.flat(number, s.queries, query)
            totals[row], shift[row] = [code.select(alive, partition, 1)], [code.select(alive, highest - wanted, 0)]
            if not s.training:
                counted = at.icmp_signed("<", query, LONG(len(layout.sum)))
                # 1 where the wanted token alone is as large as itself; a NaN is never
                none_above = total(code.select(at.fcmp_ordered(">=", z.value, wanted.value), 1, 0) for z in logits)
                wrong = at.fcmp_unordered("!=", none_above.value, code.vector(1).value)
                wrong = at.and_(wrong, code.everywhere(counted, ir.VectorType(ir.IntType(1), LANES)))
                right[number] = [code.select(wrong, 0, right[number][0])]
                return
            one_over = code.vector(1) / partition
            dx = final.back(head.back([(p * one_over - code.select(hit, 1, 0)) * share for p, hit in zip(e, hits)]))
            d_hidden = down.back(dx)
            if s.kind.gated:
                dh = up.back([d * c for d, c in zip(d_hidden, curved)])
                dh = plus(dh, gate.back([d * u * k for d, u, k in zip(d_hidden, linear, slope)]))
            else:
                dh = up.back([d * k for d, k in zip(d_hidden, slope)])
            dx = plus(dx, norm.back(dh))
            d_attended = out.back(dx)
            d_streams[query], upstream[query] = dx, [d * scale for d in d_attended]
            along[query], d_queries[query] = [dot(d_attended, attended) * scale], [0] * s.head

        def attend_back(place):
            found = tokens(place)
            both = gather("kv", place, found, 2 * s.head)
            k, v = both[: s.head], both[s.head :]
            sums[here] = [0] * (2 * s.head)

            def one(query):
                (e,), d, q = scores[code.flat(place, s.queries, query)], upstream[query], queries[query]
                slope = e * (dot(d, v) - along[query][0])
                sums[here] = plus(sums[here], [*(slope * x for x in q), *(e * x for x in d)])
                d_queries[query] = [a + slope * x for a, x in zip(d_queries[query], k)]

            code.loop(first_query(place), s.queries, one)
            scatter("kv", place, found, sums[here])

        def write_query(query):
            scatter("xq", query, tokens(at.add(query, LONG(layout.first))), d_streams[query] + d_queries[query])

        if not s.training:
            right[number] = [code.select(alive, 1, 0)]
        code.loop(0, s.queries, read_query)
        code.loop(0, layout.length, score)
        code.loop(0, s.queries, answer)
        if s.training:
            code.loop(0, layout.length, attend_back)
            code.loop(0, s.queries, write_query)

    code.loop(0, at.sdiv(at.add(count, LONG(LANES - 1)), LONG(LANES)), block)
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


@functools.cache
def compiled(sizes):
    return assemble(write(sizes), 1)


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


def call(training, tables, rows, layout, kind):
    """Every model on its own rows [models, batch, length + 1]; models run in parallel.

    -> losses, counts of right rows, and in training the gradients of the tables
    """
    models, batch = rows.shape[:2]
    head, width = tables.out.shape[-2:]
    sizes = Sizes(training, layout, kind, width, head, tables.up.shape[-1])
    blocks = -(-batch // LANES)
    rows = np.ascontiguousarray(rows)
    arrays = [np.ascontiguousarray(t.detach().numpy(), dtype=np.float32) for t in tables]
    totals = np.ones((models, blocks, sizes.queries, LANES), np.float32)
    shift, right = np.zeros_like(totals), np.zeros((models, blocks, LANES), np.float32)
    gradients = [np.zeros((*a.shape, *([LANES] if i > 1 else [])), np.float32)
                 for i, a in enumerate(arrays if training else ())]  # fmt: skip
    function, stacks = compiled(sizes), (rows, *arrays, totals, shift, right, *gradients)
    in_parallel([(function, *(a.ctypes.data + model * a.strides[0] for a in stacks), batch) for model in range(models)])
    losses = (np.log(totals) + shift).sum((1, 2, 3), dtype=np.float64) / (batch * sizes.queries)
    return (
        torch.from_numpy(losses.astype(np.float32)),
        torch.from_numpy(right.sum((1, 2)).astype(np.int64)),
        [torch.from_numpy(g.sum(-1) if i > 1 else g) for i, g in enumerate(gradients)],
    )


class Loss(torch.autograd.Function):
    """The mean losses of stacked models, with gradients for their tables."""

    @staticmethod
    def forward(context, rows, layout, kind, *tables):
        loss, _, gradients = call(True, Tables(*tables), rows, layout, kind)
        context.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(context, upstream):
        found = (g * upstream.view(-1, *(1,) * (g.ndim - 1)) for g in context.saved_tensors)
        return None, None, None, *found
