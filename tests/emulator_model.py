"""What conformance.cpp must print, computed a second time in NumPy: from the PTX manual's formulas for fragments (row
and column of element i of lane l), from float64 for roundings, and from plain Python for the rest."""

import numpy as np
import torch

LANES = np.arange(32)
ALL = 0xFFFFFFFF


def mix(x):
    x = np.asarray(x, np.uint64) & ALL
    x ^= x >> np.uint64(16)
    x = x * np.uint64(0x7FEB352D) & np.uint64(ALL)
    x ^= x >> np.uint64(15)
    x = x * np.uint64(0x846CA68B) & np.uint64(ALL)
    return (x ^ x >> np.uint64(16)).astype(np.int64)


def bits(values):
    return np.asarray(values, np.float32).view(np.uint32).astype(np.int64)


def floats(words):
    return np.asarray(words, np.uint32).view(np.float32)


def small_integer(seed, limit):
    return (mix(seed) % (2 * limit + 1) - limit).astype(np.float64)


# ---- matrices: (lane, i) -> (row, column), as in "Matrix Fragments" of the PTX manual -------------------------------


def layout(count, row, column):
    """row and column as functions of groupID, threadID_in_group and the number of the element."""
    return np.array([[(row(g, t, i), column(g, t, i)) for i in range(count)] for g, t in zip(LANES // 4, LANES % 4)])


A16 = layout(
    8,
    lambda g, t, i: g if 0 <= i < 2 or 4 <= i < 6 else g + 8,
    lambda g, t, i: t * 2 + (i & 1) if i < 4 else t * 2 + (i & 1) + 8,
)
B16 = layout(4, lambda g, t, i: t * 2 + (i & 1) if i < 2 else t * 2 + (i & 1) + 8, lambda g, t, i: g)
C = layout(4, lambda g, t, i: g if i < 2 else g + 8, lambda g, t, i: t * 2 + (i & 1))
A8 = layout(4, lambda g, t, i: g if i in (0, 2) else g + 8, lambda g, t, i: t if i < 2 else t + 4)
B8 = layout(2, lambda g, t, i: t if i == 0 else t + 4, lambda g, t, i: g)


def gather(fragment, values, shape):
    matrix = np.full(shape, np.nan)
    matrix[fragment[..., 0], fragment[..., 1]] = values
    assert not np.isnan(matrix).any()  # every element is held by one lane
    return matrix


def product(a_layout, b_layout, a, b, c):
    k = a_layout[..., 1].max() + 1
    d = gather(a_layout, a, (16, k)) @ gather(b_layout, b, (k, 8)) + gather(C, c, (16, 8))
    return d[C[..., 0], C[..., 1]]


def seeds(first, each):
    return first + LANES[:, None] * each + np.arange(each)


def mma_half():
    a, b = small_integer(seeds(0, 8), 8), small_integer(seeds(5000, 4), 8)
    d = product(A16, B16, a, b, small_integer(seeds(9000, 4), 100))
    return [*bits(d).T, *bits(product(A16, B16, a, b, d)).T]


def mma_tf32():
    a, b = small_integer(seeds(0, 4), 32), small_integer(seeds(5000, 2), 32)
    return [*bits(product(A8, B8, a, b, small_integer(seeds(9000, 4), 100))).T]


def load_matrices():
    def load(row_of_lane, transposed):
        rows = []
        for i in range(4):  # lanes 8 i to 8 i + 7 name the rows of matrix i
            matrix = np.array([row_of_lane[8 * i + r] * 8 + np.arange(8) for r in range(8)])
            matrix = matrix.T if transposed else matrix
            rows.append([matrix[lane // 4, lane % 4 * 2] | matrix[lane // 4, lane % 4 * 2 + 1] << 16 for lane in LANES])
        return rows

    return [*load(LANES, False), *load(LANES, True), *load(mix(LANES) % 32, False)]


# ---- conversions --------------------------------------------------------------------------------------------------


def special(row):
    b = mix(row * 32 + LANES)
    sign = b & 0x80000000
    words = {
        0: sign | 0x3F800000 + (b & 0x7FFFFF),
        1: sign | 0x38000000 + (b & 0x0FFF0000) | 0x8000,
        2: sign | 0x3A000000 + (b & 0x07FFE000) | 0x1000,
        3: sign | 0x33000000 + (b & 0x05FFFFFF),
    }
    if row in words:
        return floats(words[row])
    values = [0, 0x7F7FFFFF, 0x7F800000, 0x477FEFFF, 0x477FF000, 0x33000000, 0x33000001, 0x00FFFFFF]
    return floats([values[lane % 8] | (0 if lane % 16 < 8 else 0x80000000) for lane in LANES])


def tf32(values):
    """11 significant bits, to nearest, ties away from zero."""
    v = values.astype(np.float64)
    ulp = np.ldexp(1.0, np.frexp(np.where(np.isfinite(v) & (v != 0), v, 1.0))[1] - 11)
    rounded = np.copysign(np.floor(np.abs(v) / ulp + 0.5) * ulp, v)
    with np.errstate(over="ignore"):
        return np.where(np.isfinite(v), rounded, v).astype(np.float32)


def half(dtype):
    def rounded(values):
        t = torch.from_numpy(values.copy()).to(dtype)
        return t.float().numpy(), t.view(torch.int16).numpy().astype(np.int64) & 0xFFFF

    rows = []
    for row in range(5):
        v, w = special(row), special(row)[::-1]
        (v_float, v_word), (w_float, w_word) = rounded(v), rounded(w)
        rows += [bits(v_float), v_word | w_word << 16, bits(w_float), bits(v_float)]
    return rows


def pairs():
    rows = []
    for row in range(5):
        v, w = torch.from_numpy(special(row)), torch.from_numpy(special(row)[::-1].copy())
        rows += [bits(x.to(t).float().numpy()) for t in (torch.bfloat16, torch.float16) for x in (v, w)]
        rows += [bits(x.to(t).float().numpy()) for x in (v, w) for t in (torch.bfloat16, torch.float16)]
    return rows


def limits():
    def alternate(even, odd):
        return bits(np.where(LANES % 2, odd, even))

    infinity = np.inf
    rows = [(1, 0), (1, infinity), (-infinity, infinity), (infinity, 0), (0, 0), (1, 0), (0, -1), (0, -infinity)]
    return [alternate(even, odd) for even, odd in rows]


# ---- warps and blocks ---------------------------------------------------------------------------------------------


def full(value):
    return np.full(32, int(value) & ALL)


def shuffles():
    v, rows = mix(LANES), []
    for width in (4, 8, 16, 32):
        first, last = LANES // width * width, LANES // width * width + width - 1
        rows.append(v[first + (LANES * 3 + 5) % width])
        up, down, xor = LANES - 3, LANES + 5, LANES ^ 6
        for source, valid in ((up, up >= first), (down, down <= last), (xor, xor <= last)):
            rows.append(v[np.where(valid, source, LANES)])  # a lane without a valid source reads itself
    rows += [(v & 0x3FFFFFFF)[LANES ^ 17], v[LANES ^ 9], np.where(LANES < 12, v[3], v[20])]
    return rows


def word_of(flags):
    return sum(int(f) << lane for lane, f in enumerate(flags))


def votes():
    v = mix(LANES)

    def match(keys):
        return [word_of(keys == k) for k in keys]

    low, high = word_of((v & 1) * (LANES < 12)), word_of((v & 2 > 0) * (LANES >= 12))
    ballots = [full(word_of(v & 1)), np.where(LANES < 12, low, high)]
    return [*ballots, full(1), full(0), full(1), full(0), match(v % 5), match(v % 3)]


def signed(v):
    return np.where(v >= 2**31, v - 2**32, v)


def reductions():
    v = mix(LANES)
    return [
        *(full(r) for r in (v.sum(), v.min(), v.max(), v.sum(), signed(v).min(), signed(v).max())),
        full(np.bitwise_and.reduce(v | 0x10)),
        full(np.bitwise_or.reduce(v & 0x11111111 & 1 << LANES)),
        full(np.bitwise_xor.reduce(v)),
        np.where(LANES % 2, 256, 240),
    ]


def atomics():
    t = np.arange(64)
    v = mix(t)
    wide = sum(int(x) << 16 for x in v)
    values = [64, 1, v.sum(), -v.sum(), v.max(), np.bitwise_or.reduce(v & 1 << t % 32), np.bitwise_xor.reduce(v)]
    values += [np.bitwise_and.reduce(v | 1 << t % 32), signed(v).min(), bits([t.sum()])[0], wide, wide >> 32]
    return [full(x) for x in (*values, 64 * 65 // 2, 5, 1)]


def barriers():
    t = np.arange(64)
    count = full((mix(t) % 3 == 0).sum())
    later = mix(t + 2000)
    return [
        *(mix(LANES ^ 32), mix((LANES ^ 31) + 1000), count, full(1), full(0), full(1), full(0)),
        *(later[(LANES + 5) % 32], later[LANES]),
    ]


def copies():
    data = mix(np.arange(128)).reshape(32, 4)
    tiles = np.full((3, 32, 4), 7)
    tiles[0] = data * (LANES % 3 != 0)[:, None]
    tiles[1, :, 2:] = data[:, :2] * (LANES % 5 != 0)[:, None]
    tiles[2, :, 1] = data[:, 1] * (LANES % 7 != 0)
    return [row for tile in tiles for row in tile[::-1].T]


def scalars():
    v = mix(LANES)
    words = [int(x) for x in v]
    return [
        [bin(x).count("1") for x in words],
        [bin(x).count("1") for x in words],
        [32 - (x >> lane).bit_length() for lane, x in enumerate(words)],
        [((x & ~15) & -(x & ~15)).bit_length() for x in words],
        [int(f"{x:032b}"[::-1], 2) for x in words],
        v & 0x3FFFFFFF,
        v.clip(None, 1 << 30),
        signed(v).clip(5) & ALL,
        *(mix(LANES + i) for i in (0, 32, 64)),
        *(v[LANES ^ 1], v[LANES ^ 1] + 1),
        bits(LANES * 3 - 7),
        bits(1 / np.exp2(LANES % 16)),
        bits(LANES + 7),
    ]


def threads():
    position = LANES % 8 | LANES // 8 << 8 | 1 << 16
    return [LANES, LANES, full(0), LANES + 32, full(1), position, full(8 | 4 << 8 | 2 << 16), full(1)]


# ---- conformance_hopper.cpp: TMA's boxes from the tensor, wgmma's products from whole matrices -----------------------


def phases():
    return [mix((LANES ^ 255) + 1000 * round_) for round_ in range(3)]


def arriving_copies():
    data = mix(np.arange(1024)).reshape(256, 4)
    thread = 64 + (LANES + 32) * 7 % 192  # warp 1 reads
    return [*data[thread].T, *(data * (np.arange(256) % 3 == 0)[:, None])[thread].T]


def tensor_boxes():
    """Boxes of 8 rows of 64, 16-byte chunk c of row r in place c ^ r; zeros beyond 3 matrices of 21 rows of 100."""
    tensor = np.zeros((5, 60, 300), np.int64)  # begins at -1, -10, -50
    tensor[1:4, 10:31, 50:150] = (mix(np.arange(3 * 21 * 104)) & 0xFFFF).reshape(3, 21, 104)[:, :, :100]
    rows = []
    for column, row, matrix in ((8, 5, 1), (64, 17, 2), (-8, -2, 0), (0, 0, 3)):
        box = tensor[matrix + 1, row + 10 : row + 18, column + 50 : column + 114].reshape(8, 8, 8)
        swizzled = np.stack([box[r][np.arange(8) ^ r] for r in range(8)]).reshape(-1, 2)
        rows += list((swizzled[:, 0] | swizzled[:, 1] << 16).reshape(8, 32))
    return rows


def wgmma(columns):
    a = small_integer(np.arange(64 * 64), 4).reshape(64, 64)
    b = small_integer(10000 + np.arange(columns * 64), 4).reshape(columns, 64)
    thread, i = np.arange(256)[:, None], np.arange(columns // 2)
    row = thread % 128 // 32 * 16 + thread % 32 // 4 + i // 2 % 2 * 8
    d = (a @ b.T)[row, i // 4 * 8 + thread % 4 * 2 + i % 2]
    weights = i * i % 31 + 1
    before = small_integer(20000 + thread * 64 + i, 100)
    return [*bits(((before + d) * weights).sum(1)).reshape(8, 32), *bits((d * weights).sum(1)).reshape(8, 32)]


def named(cases):
    return {f"{name}.{i}": [int(x) & ALL for x in row] for name, rows in cases.items() for i, row in enumerate(rows)}


def expected_hopper_rows():
    """Row name -> its 32 words, of conformance_hopper.cpp."""
    cases = {
        "phases": phases(),
        "arriving_copies": arriving_copies(),
        "tensor_boxes": tensor_boxes(),
        "wgmma_kk_64": wgmma(64),
        "wgmma_kn_128": wgmma(128),
        "wgmma_mk_128": wgmma(128),
        "wgmma_mn_64": wgmma(64),
        "wgmma_rk_128": wgmma(128),
        "wgmma_rn_64": wgmma(64),
        "register_budgets": [LANES],
    }
    return named(cases)


def expected_rows():
    """Row name -> its 32 words, of conformance.cpp."""
    last = np.arange(63, 31, -1)
    cases = {
        "threads": threads(),
        "shared_arrays": [*(mix(last + i) for i in (0, 100, 200, 300)), full(1)],
        "barriers": barriers(),
        "ordered_access": [full(7), mix(LANES), full(1), full(2016)],
        "copies": copies(),
        "wide_stores": mix(np.arange(128)).reshape(4, 32),
        "load_matrices": load_matrices(),
        "mma_bf16": mma_half(),
        "mma_f16": mma_half(),
        "mma_tf32": mma_tf32(),
        "convert_tf32": [bits(tf32(special(row))) for row in range(5)],
        "convert_bf16": half(torch.bfloat16),
        "convert_f16": half(torch.float16),
        "convert_f32": [bits(special(0))],
        "convert_pairs": pairs(),
        "shuffles": shuffles(),
        "votes": votes(),
        "reductions": reductions(),
        "atomics": atomics(),
        "scalars": scalars(),
        "limits": limits(),
    }
    return named(cases)
