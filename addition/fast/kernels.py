"""Loss and gradients of one model on a batch, as machine code that is written for its sizes.

LANES examples are computed at a time, one in each lane of a vector register. All loops over widths are unrolled, so
that what follows from a query stays in registers. The tables of engine.py have a row for every token at every place:
LANES rows are read at once and transposed, and the gradients go back the same way. bench.py has the time of a step.
"""

import ctypes
import functools
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
    length: int
    first: int  # the place of the first query
    answer: int  # how many predicted tokens count as the answer
    vocabulary: int
    width: int
    head: int
    hidden: int
    centered: bool  # LayerNorm; else RMSNorm
    gated: bool  # SwiGLU; else exact GELU
    eps: float

    @property
    def queries(self):
        return self.length - self.first

    @property
    def columns(self):
        """Of a row of the tables: keys and values, the residual stream and queries; whole vectors."""
        return tuple(-(-n // LANES) * LANES for n in (2 * self.head, self.width + self.head))

    @property
    def weights(self):
        """Rows and columns of the matrices after the attention."""
        w, h = self.width, self.hidden
        return {"out": (self.head, w), "norm": (2, w), "up": (w, h), "gate": (w, h if self.gated else 0),
                "down": (h, w), "final": (2, w), "head": (w, self.vocabulary)}  # fmt: skip


class Value:
    """A vector of LANES numbers; arithmetic on it writes instructions."""

    def __init__(self, code, value):
        self.code, self.value = code, value

    def combined(self, other, operation):
        other = other if isinstance(other, Value) else self.code.constant(other)
        return Value(self.code, getattr(self.code.at, operation)(self.value, other.value, flags=FAST))

    def __add__(self, other):
        return self.combined(other, "fadd")

    def __sub__(self, other):
        return self.combined(other, "fsub")

    def __mul__(self, other):
        return self.combined(other, "fmul")

    def __truediv__(self, other):
        return self.combined(other, "fdiv")

    def __neg__(self):
        return self * -1.0

    def below(self, other):
        """1 in the lanes where it is less, else 0."""
        other = other if isinstance(other, Value) else self.code.constant(other)
        return self.code.at.fcmp_ordered("<", self.value, other.value)

    def max(self, other):
        other = other if isinstance(other, Value) else self.code.constant(other)
        return self.code.select(self.below(other), other, self)


class Code:
    """The function that is being written."""

    def __init__(self, name, pointers, numbers):
        self.module = ir.Module(name)
        kinds = [ir.PointerType()] * pointers + [LONG] * numbers
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), kinds), name)
        for argument in self.function.args[:pointers]:
            argument.add_attribute("noalias")
        self.at = ir.IRBuilder(self.function.append_basic_block())

    def constant(self, number):
        return Value(self, ir.Constant(VECTOR, [float(number)] * LANES))

    def select(self, condition, one, other):
        return Value(self, self.at.select(condition, one.value, other.value))

    def place(self, pointer, kind, index):
        index = index if isinstance(index, ir.Value) else LONG(index)
        return self.at.gep(pointer, [index], source_etype=kind)

    def load(self, pointer, index):
        """The vector at pointer[index], pointer[index + 1], ..."""
        return Value(self, self.at.load(self.place(pointer, FLOAT, index), typ=VECTOR, align=4))

    def store(self, value, pointer, index):
        self.at.store(value.value, self.place(pointer, FLOAT, index), align=4)

    def splat(self, pointer, index):
        """The number at pointer[index] in all lanes."""
        return self.everywhere(self.at.load(self.place(pointer, FLOAT, index), typ=FLOAT), VECTOR)

    def everywhere(self, number, kind):
        start = self.at.insert_element(ir.Constant(kind, ir.Undefined), number, INT(0))
        filled = self.at.shuffle_vector(start, start, ir.Constant(INTS, [0] * LANES))
        return Value(self, filled) if kind is VECTOR else filled

    def scratch(self, *sizes):
        """Room for vectors, on the stack."""
        block = self.at.alloca(ir.ArrayType(VECTOR, int(np.prod(sizes))))
        block.align, block.type = 64, ir.PointerType()
        return block

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

    def call(self, name, *values):
        function = self.module.globals.get(name) or ir.Function(
            self.module, ir.FunctionType(VECTOR, [VECTOR] * len(values)), name
        )
        return Value(self, self.at.call(function, [value.value for value in values], fastmath=FAST))

    def sqrt(self, x):
        return self.call("llvm.sqrt.v16f32", x)

    def size(self, x):
        return self.call("llvm.fabs.v16f32", x)

    def exp(self, x):
        """e^x for x <= 0, to float32."""
        z = (x * 1.4426950408889634).max(-126.0)
        n = self.at.fptosi((z - 0.5).value, INTS)
        r = z - Value(self, self.at.sitofp(n, VECTOR))
        p = self.constant(1.535336188319500e-4)
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


def product(code, pointer, shape, x):
    """x times the matrix at pointer."""
    rows, columns = shape
    found = []
    for o in range(columns):
        total = code.splat(pointer, o) * x[0]
        for i in range(1, rows):
            total = total + code.splat(pointer, i * columns + o) * x[i]
        found.append(total)
    return found


def dot(xs, ys):
    total = xs[0] * ys[0]
    for x, y in zip(xs[1:], ys[1:]):
        total = total + x * y
    return total


def add_to(code, value, pointer, index):
    code.store(code.load(pointer, index) + value, pointer, index)


def product_back(code, pointer, gradient, shape, x, dy):
    """-> the gradient of x; that of the matrix is added to what is there, one sum a lane."""
    rows, columns = shape
    dx = []
    for i in range(rows):
        dx.append(dot([code.splat(pointer, i * columns + o) for o in range(columns)], dy))
        for o in range(columns):
            add_to(code, x[i] * dy[o], gradient, (i * columns + o) * LANES)
    return dx


def normalise(code, pointer, x, centered, eps):
    """-> (y, x normalised, 1 / deviation)"""
    width = len(x)
    if centered:
        mean = functools.reduce(Value.__add__, x) * (1 / width)
        x = [value - mean for value in x]
    scale = code.constant(1.0) / code.sqrt(dot(x, x) * (1 / width) + eps)
    normal = [value * scale for value in x]
    y = [n * code.splat(pointer, i) + code.splat(pointer, width + i) for i, n in enumerate(normal)]
    return y, normal, scale


def normalise_back(code, pointer, gradient, dy, normal, scale, centered):
    width = len(dy)
    for i, (d, n) in enumerate(zip(dy, normal)):
        add_to(code, d * n, gradient, i * LANES)
        if centered:  # an RMSNorm has no bias
            add_to(code, d, gradient, (width + i) * LANES)
    dy = [d * code.splat(pointer, i) for i, d in enumerate(dy)]
    along = dot(dy, normal) * (1 / width)
    if centered:
        mean = functools.reduce(Value.__add__, dy) * (1 / width)
        dy = [d - mean for d in dy]
    return [(d - n * along) * scale for d, n in zip(dy, normal)]


def gelu(code, x):
    """Exact GELU and its slope: the error function by Abramowitz and Stegun 7.1.26, 1.5e-7 at most."""
    size = code.size(x) * 0.7071067811865476
    bell = code.exp(-(size * size))
    t = code.constant(1.0) / (size * 0.3275911 + 1.0)
    p = code.constant(1.061405429)
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = p * t + c
    tail = p * t * bell * 0.5
    below = code.select(x.below(0.0), tail, -tail + 1.0)
    return x * below, below + x * bell * 0.3989422804014327


def silu(code, x):
    """SiLU and its slope."""
    e = code.exp(-code.size(x))
    large = code.constant(1.0) / (e + 1.0)
    sigmoid = code.select(x.below(0.0), e * large, large)
    return x * sigmoid, sigmoid * ((-sigmoid + 1.0) * x + 1.0)


POINTERS = ("rows", "kv", "xq", *Sizes(*[1] * 11).weights, "totals", "shift", "right")


def name_of(sizes):
    return "batch_" + "_".join(str(float(size)).replace(".", "_") for size in sizes)


def write(s):
    """The function for these sizes; its arguments are POINTERS, in training those of the gradients, then the number of
    examples."""
    names = ("kv", "xq", *s.weights)
    code = Code(name_of(s), len(POINTERS) + len(names) * s.training, 1)
    at, weights = code.at, s.weights
    pointers = dict(zip(POINTERS, code.function.args))
    gradients = dict(zip(names, code.function.args[len(POINTERS) :])) if s.training else {}
    count = code.function.args[-1]
    kv_columns, xq_columns = s.columns
    values, scores = code.scratch(s.length, s.head), code.scratch(s.length, s.queries)
    queries, streams, most = code.scratch(s.queries, s.head), code.scratch(s.queries, s.width), code.scratch(s.queries)
    upstream, d_queries = code.scratch(s.queries, s.head), code.scratch(s.queries, s.head)
    d_streams, along = code.scratch(s.queries, s.width), code.scratch(s.queries)
    sums = code.scratch(2 * s.head + 1)

    def vectors(pointer, first, number):
        return [code.load(pointer, at.mul(at.add(first, LONG(i)), LONG(LANES))) for i in range(number)]

    def keep(found, pointer, first):
        for i, value in enumerate(found):
            code.store(value, pointer, at.mul(at.add(first, LONG(i)), LONG(LANES)))

    def index(i, size):
        return at.mul(i, LONG(size))

    def block(number):
        start = at.mul(number, LONG(LANES))
        live = at.sub(count, start)
        lanes = ir.Constant(INTS, list(range(LANES)))
        alive = at.icmp_signed("<", lanes, code.everywhere(at.trunc(live, INT), INTS))
        last = at.sub(count, LONG(1))
        offsets = []  # of each lane's row; behind the last example, that one again
        for lane in range(LANES):
            row = at.add(start, LONG(lane))
            row = at.select(at.icmp_signed("<", row, last), row, last)
            offsets.append(at.mul(row, LONG(s.length + 1)))
        share = at.fdiv(FLOAT(1.0), at.sitofp(at.mul(count, LONG(s.queries)), FLOAT))
        share = code.select(alive, code.everywhere(share, VECTOR), code.constant(0.0))

        def tokens(place):
            return [at.zext(at.load(code.place(pointers["rows"], BYTE, at.add(offset, place)), typ=BYTE), LONG)
                    for offset in offsets]  # fmt: skip

        def gather(name, place, found, columns):
            """The table's rows of these tokens at this place, by columns."""
            base, cut = index(place, s.vocabulary), []
            for chunk in range(0, columns, LANES):
                starts = [at.add(at.mul(at.add(base, token), LONG(columns)), LONG(chunk)) for token in found]
                cut += code.transposed([code.load(pointers[name], start) for start in starts])
            return cut

        def scatter(name, place, found, columns, values):
            base = index(place, s.vocabulary)
            values = values + [code.constant(0.0)] * (columns - len(values))
            for chunk in range(0, columns, LANES):
                for token, row in zip(found, code.transposed(values[chunk : chunk + LANES])):
                    start = at.add(at.mul(at.add(base, token), LONG(columns)), LONG(chunk))
                    add_to(code, row, gradients[name], start)

        def read_query(query):
            found = tokens(at.add(query, LONG(s.first)))
            both = gather("xq", query, found, xq_columns)
            keep(both[: s.width], streams, index(query, s.width))
            keep(both[s.width : s.width + s.head], queries, index(query, s.head))
            keep([code.constant(-3e38)], most, query)

        def first_query(place):
            """The first query that sees this place."""
            behind = at.sub(place, LONG(s.first))
            return at.select(at.icmp_signed(">", behind, LONG(0)), behind, LONG(0))

        def score(place):
            both = gather("kv", place, tokens(place), kv_columns)
            keep(both[s.head : 2 * s.head], values, index(place, s.head))

            def one(query):
                found = dot(vectors(queries, index(query, s.head), s.head), both[: s.head])
                keep([found], scores, at.add(index(place, s.queries), query))
                keep([vectors(most, query, 1)[0].max(found)], most, query)

            code.loop(first_query(place), s.queries, one)

        def answer(query):
            """From the scores of a query to its loss, and back to the attention's output."""
            largest, here = vectors(most, query, 1)[0], at.add(query, LONG(s.first))
            keep([code.constant(0.0)] * (s.head + 1), sums, LONG(0))

            def attend(place):
                where = at.add(index(place, s.queries), query)
                e = code.exp(vectors(scores, where, 1)[0] - largest)
                keep([e], scores, where)
                terms = [e, *(e * v for v in vectors(values, index(place, s.head), s.head))]
                keep([old + new for old, new in zip(vectors(sums, LONG(0), s.head + 1), terms)], sums, LONG(0))

            code.loop(0, at.add(here, LONG(1)), attend)
            total, *attended = vectors(sums, LONG(0), s.head + 1)
            scale = code.constant(1.0) / total
            attended = [value * scale for value in attended]
            x = vectors(streams, index(query, s.width), s.width)
            x = [a + b for a, b in zip(x, product(code, pointers["out"], weights["out"], attended))]
            h, normal, deviation = normalise(code, pointers["norm"], x, s.centered, s.eps)
            up = product(code, pointers["up"], weights["up"], h)
            if s.gated:
                gate, slope = zip(*(silu(code, g) for g in product(code, pointers["gate"], weights["gate"], h)))
                hidden = [g * u for g, u in zip(gate, up)]
            else:
                hidden, slope = zip(*(gelu(code, u) for u in up))
            x = [a + b for a, b in zip(x, product(code, pointers["down"], weights["down"], list(hidden)))]
            y, last_normal, last_deviation = normalise(code, pointers["final"], x, s.centered, s.eps)
            logits = product(code, pointers["head"], weights["head"], y)
            highest = functools.reduce(Value.max, logits)
            e = [code.exp(z - highest) for z in logits]
            partition = functools.reduce(Value.__add__, e)

            target = ir.Constant(INTS, ir.Undefined)
            for lane, token in enumerate(tokens(at.add(here, LONG(1)))):
                target = at.insert_element(target, at.trunc(token, INT), INT(lane))
            hits = [at.icmp_signed("==", target, INTS([token] * LANES)) for token in range(s.vocabulary)]
            none, one = code.constant(0.0), code.constant(1.0)
            wanted = functools.reduce(Value.__add__, (code.select(hit, z, none) for hit, z in zip(hits, logits)))
            row = at.mul(at.add(index(number, s.queries), query), LONG(LANES))
            code.store(code.select(alive, partition, code.constant(1.0)), pointers["totals"], row)
            code.store(code.select(alive, highest - wanted, none), pointers["shift"], row)
            if not s.training:
                counted = at.icmp_signed("<", query, LONG(s.answer))
                none_above = functools.reduce(
                    Value.__add__,
                    (code.select(at.fcmp_ordered(">=", z.value, wanted.value), one, none) for z in logits),
                )  # 1 where the wanted token alone is as large as itself; a NaN is never
                wrong = at.fcmp_unordered("!=", none_above.value, one.value)
                wrong = at.and_(wrong, code.everywhere(counted, ir.VectorType(ir.IntType(1), LANES)))
                lane = index(number, LANES)
                code.store(code.select(wrong, none, code.load(pointers["right"], lane)), pointers["right"], lane)
                return
            one_over = code.constant(1.0) / partition
            d_logits = [(p * one_over - code.select(hit, code.constant(1.0), none)) * share for p, hit in zip(e, hits)]
            dy = product_back(code, pointers["head"], gradients["head"], weights["head"], y, d_logits)
            dx = normalise_back(
                code, pointers["final"], gradients["final"], dy, last_normal, last_deviation, s.centered
            )
            d_hidden = product_back(code, pointers["down"], gradients["down"], weights["down"], hidden, dx)
            if s.gated:
                d_up = [d * g for d, g in zip(d_hidden, gate)]
                d_gate = [d * u * k for d, u, k in zip(d_hidden, up, slope)]
                dh = product_back(code, pointers["up"], gradients["up"], weights["up"], h, d_up)
                more = product_back(code, pointers["gate"], gradients["gate"], weights["gate"], h, d_gate)
                dh = [a + b for a, b in zip(dh, more)]
            else:
                d_up = [d * k for d, k in zip(d_hidden, slope)]
                dh = product_back(code, pointers["up"], gradients["up"], weights["up"], h, d_up)
            more = normalise_back(code, pointers["norm"], gradients["norm"], dh, normal, deviation, s.centered)
            dx = [a + b for a, b in zip(dx, more)]
            d_attended = product_back(code, pointers["out"], gradients["out"], weights["out"], attended, dx)
            keep(dx, d_streams, index(query, s.width))
            keep([d * scale for d in d_attended], upstream, index(query, s.head))
            keep([dot(d_attended, attended) * scale], along, query)
            keep([none] * s.head, d_queries, index(query, s.head))

        def attend_back(place):
            found = tokens(place)
            both = gather("kv", place, found, kv_columns)
            k, v = both[: s.head], both[s.head : 2 * s.head]
            keep([code.constant(0.0)] * (2 * s.head), sums, LONG(0))

            def one(query):
                at_query = index(query, s.head)
                e = vectors(scores, at.add(index(place, s.queries), query), 1)[0]
                d = vectors(upstream, at_query, s.head)
                slope = e * (dot(d, v) - vectors(along, query, 1)[0])
                q = vectors(queries, at_query, s.head)
                terms = [*(slope * x for x in q), *(e * x for x in d)]
                keep([old + new for old, new in zip(vectors(sums, LONG(0), 2 * s.head), terms)], sums, LONG(0))
                old = vectors(d_queries, at_query, s.head)
                keep([a + slope * x for a, x in zip(old, k)], d_queries, at_query)

            code.loop(first_query(place), s.queries, one)
            scatter("kv", place, found, kv_columns, vectors(sums, LONG(0), 2 * s.head))

        def write_query(query):
            both = vectors(d_streams, index(query, s.width), s.width) + vectors(d_queries, index(query, s.head), s.head)
            scatter("xq", query, tokens(at.add(query, LONG(s.first))), xq_columns, both)

        if not s.training:
            code.store(code.select(alive, code.constant(1.0), code.constant(0.0)), pointers["right"], start)
        code.loop(0, s.queries, read_query)
        code.loop(0, s.length, score)
        code.loop(0, s.queries, answer)
        if s.training:
            code.loop(0, s.length, attend_back)
            code.loop(0, s.queries, write_query)

    blocks = at.sdiv(at.add(count, LONG(LANES - 1)), LONG(LANES))
    code.loop(0, blocks, block)
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
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=flags, opt=3, jit=True
    )
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
    sizes = Sizes(training, layout.length, layout.first, len(layout.sum), layout.vocabulary, tables.out.shape[-1],
                  tables.out.shape[-2], tables.up.shape[-1], kind.centered, kind.gated, kind.eps)  # fmt: skip
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
