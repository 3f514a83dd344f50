"""Sizes at which mixtures of experts are used and measured, and how long their two-pass computation must take."""

from typing import NamedTuple


class Projection(NamedTuple):
    """One selected product: x [T, d] -> [T, k, h]; or ``weighted``, the gated sum of a routed x [T, k, d] -> [T, h]."""

    name: str
    tokens: int
    d: int
    h: int
    k: int
    num_experts: int
    weighted: bool = False

    @property
    def routes(self):
        return self.tokens * self.k

    @property
    def flops(self):
        return 2 * self.routes * self.d * self.h

    def traffic(self, passes):
        """Elements that kernels which write every route's row must move, kernel after kernel:
        [(multiplies?, from and to memory, gathered rows beyond the first reading of each)]."""
        t, r, d, h, w = self.tokens, self.routes, self.d, self.h, self.num_experts * self.d * self.h
        if passes == "dW":  # of a weighted product each row of dy serves k routes
            few, many, gathered = (t * h, r * d, (r - t) * h) if self.weighted else (t * d, r * h, (r - t) * d)
            return [(True, few + many + w, gathered)]
        up = self.weighted == (passes == "dX")  # shared rows in, one row a route out
        narrow, wide = (h, d) if passes == "dX" else (d, h)
        if up:
            return [(True, t * narrow + w + r * wide, (r - t) * narrow)]
        return [(True, r * narrow + w + r * wide, 0), (False, r * wide + t * wide, 0)]


class Stack(NamedTuple):
    """A mixture-of-experts layer: router, up projection, activation, gated down projection."""

    name: str
    tokens: int
    d: int
    h: int
    k: int
    num_experts: int
    activation: str = "relu"
    selection: str = "sigmoid"

    def projections(self):
        glu = 2 if self.activation == "swiglu" else 1
        up = Projection(self.name, self.tokens, self.d, glu * self.h, self.k, self.num_experts)
        return up, Projection(self.name, self.tokens, self.h, self.d, self.k, self.num_experts, True)

    @property
    def flops(self):
        return sum(p.flops for p in self.projections())


SCALE, MOST_FLOPS, MOST_WEIGHTS = 16, 2e10, 2**25  # of a layer's forward pass; elements of one projection


def scaled(shape):
    """For a CPU: tokens and experts divided by SCALE, so that an expert keeps its rows; but 2k experts or more, 16
    tokens or more, and an odd number of experts where that is what the shape is about (MoEUT). Then both widths are
    halved until a forward pass has at most MOST_FLOPS and the weights of a projection at most MOST_WEIGHTS elements."""
    experts = min(max(shape.num_experts // SCALE, 2 * shape.k), shape.num_experts)
    if shape.name.startswith("moeut"):
        experts |= 1
    shape = shape._replace(tokens=max(shape.tokens // SCALE, 16), num_experts=experts)
    while shape.flops > MOST_FLOPS or shape.num_experts * shape.d * shape.h > MOST_WEIGHTS:
        shape = shape._replace(d=shape.d // 2, h=shape.h // 2)
    return shape


def tiny(shape):
    """To see that a shape runs."""
    return shape._replace(tokens=16, num_experts=2 * shape.k, d=shape.d // 16, h=shape.h // 16)


def describe(shape):
    return f"{shape.name}: T={shape.tokens} d={shape.d} h={shape.h} E={shape.num_experts} k={shape.k}"


# The projections of language models with σ-MoE feedforward blocks (ff) and SwitchHead attention (switch) that the
# author's own kernels are benchmarked with, d_model in the name; the weighted ones return to d_model.
PROJECTIONS = []
for _d, _tokens in ((1024, 16384), (2048, 8192)):
    for _h, _suffix in ((128, ""), (256, "_h256"), (512, "_h512")):
        PROJECTIONS.append(Projection(f"ff_up_{_d}{_suffix}", _tokens, _d, _h, 8, 512))
        PROJECTIONS.append(Projection(f"ff_down_{_d}{_suffix}_w", _tokens, _h, _d, 8, 512, True))
PROJECTIONS += [
    Projection("switch_v_1024", 16384, 1024, 64, 32, 512),
    Projection("switch_o_1024_w", 16384, 64, 1024, 32, 512, True),
    Projection("switch_v_2048_h32", 8192, 2048, 64, 64, 1024),
    Projection("switch_o_2048_h32_w", 8192, 64, 2048, 64, 1024, True),
    Projection("ff_up_768", 8192, 768, 128, 8, 256),
    Projection("switch_o_768_w", 8192, 64, 768, 24, 384, True),
]
for _h, _suffix in ((128, "stress"), (256, "h256_s"), (512, "h512_s")):
    PROJECTIONS.append(Projection(f"ff_up_4096_{_suffix}", 2048, 4096, _h, 8, 512))
    PROJECTIONS.append(Projection(f"ff_down_4096_w_{_suffix}", 2048, _h, 4096, 8, 512, True))

FFN_STACKS = [
    Stack(f"ffn_{d}" + (f"_h{h}" if h > 128 else ""), tokens, d, h, 8, experts, "gelu", "softmax")
    for d, tokens, experts, widths in (
        (1024, 16384, 512, (128, 256, 512)),
        (2048, 8192, 512, (128, 256, 512)),
        (768, 8192, 256, (128,)),
        (4096, 2048, 512, (128, 256, 512)),
    )
    for h in widths
]

SONIC = [
    Stack(f"sonic_{d}_{h}_{experts}_{k}", tokens, d, h, k, experts, "swiglu")
    for tokens, d, h, experts, k in (
        (40960, 768, 256, 128, 8), (40960, 768, 512, 64, 4), (40960, 768, 1024, 32, 2),
        (24576, 1536, 256, 128, 8), (24576, 1536, 512, 64, 4), (24576, 1536, 1024, 32, 2),
        (32768, 4096, 256, 256, 16), (32768, 4096, 512, 128, 8), (32768, 4096, 1024, 64, 4),
        (32768, 4096, 512, 256, 16), (32768, 4096, 1024, 128, 8), (32768, 4096, 2048, 64, 4),
    )
]  # fmt: skip

MOEUT = [
    Stack(f"moeut_{d}_{experts}", 8192, d, 128, k, experts)
    for d, experts, k in (
        (412, 155, 12),
        (768, 254, 12),
        (1024, 387, 16),
        (1024, 338, 16),
        (1024, 467, 20),
        (1536, 565, 24),
    )
]

THESIS = [Stack("thesis", 32768, 512, 128, 4, 32)]


class Ceilings(NamedTuple):
    """What the machine can do, measured in the same run: FLOP/s of a matrix product, bytes/s of a copy (read and
    written), bytes/s of rows gathered from a cache."""

    flops: float
    bytes: float
    gathered: float

    def two_pass(self, projection, passes, itemsize):
        """Seconds below which no design that writes every route's row to memory can stay: its kernels one after the
        other, each bound by arithmetic, memory or gathers."""
        seconds = 0
        for multiplies, moved, gathered in projection.traffic(passes):
            arithmetic = projection.flops / self.flops if multiplies else 0
            seconds += max(arithmetic, moved * itemsize / self.bytes, gathered * itemsize / self.gathered)
        return seconds
