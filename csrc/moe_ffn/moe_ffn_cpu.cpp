// The forward takes a block of tokens at a time through all three steps (product, activation, product), so
// that its hidden rows are in cache between them; each thread takes the next block. A block has a routing of
// its own, so that its products are those of cvmm_fwd, to the bit: no result depends on the number of blocks
// or threads. Every block reads the weights of all experts again. Where the blocks would have too few rows of
// an expert to pay for that, there is one block, whose products all threads share.
//
// The backward leaves no hidden rows out, since the gradients of the weights need them: it takes the sorted
// routes piece by piece to dz, with the activation and its slope while a piece is in cache, then all of dz to
// dx.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "moe_ffn/moe_ffn.h"

namespace sysgen {
namespace {

constexpr int64_t kRowsOfExpert = 256;  // of a block of tokens, on average
constexpr int64_t kPieceRows = 512;     // most routes of a piece
// Activations, and products, below which a second thread costs more than it brings.
constexpr int64_t kSerialElements = 1 << 15, kSerialProducts = 300000;

int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

struct Tokens {
  int64_t first, count;
};

// How the tokens are divided among workers; each has one part of the scratch.
struct Division {
  int64_t num_tokens, blocks;
  int workers;           // that take blocks
  int threads_of_block;  // that share the work of one

  Division(const Routing& q, int threads) : num_tokens(q.num_tokens) {
    const int64_t experts = std::max<int64_t>(q.num_experts, 1);
    blocks =
        std::clamp<int64_t>(q.num_routes() / (kRowsOfExpert * experts), 1, std::max<int64_t>(num_tokens, 1));
    blocks = blocks < threads ? 1 : blocks / threads * threads;  // as many for each
    workers = blocks > 1 ? threads : 1;
    threads_of_block = blocks > 1 ? 1 : threads;
  }
  int64_t most_tokens() const { return (num_tokens + blocks - 1) / blocks; }
  Tokens block(int64_t i) const {
    const int64_t first = i * num_tokens / blocks;
    return {first, (i + 1) * num_tokens / blocks - first};
  }
};

// Memory of one worker: the routing of a block, if there are several, then its hidden rows, if they are not
// kept.
struct Workspace {
  int64_t routing, hidden;
  int64_t bytes() const { return routing + hidden; }
};

Workspace workspace(const Division& division, const CvmmFwdArgs& up, bool hidden) {
  const int64_t routes = division.most_tokens() * up.route.k;
  return {division.blocks > 1 ? round_up((2 * routes + up.route.num_experts + 1) * 4) : 0,
          hidden ? round_up(routes * up.h * size_of(up.dtype)) : 0};
}

// The routing of some tokens as if there were no others, written to `memory`.
Routing routing_of(const Routing& q, Tokens tokens, int32_t* memory) {
  const int64_t first = tokens.first * q.k, routes = tokens.count * q.k;
  int32_t *const order = memory, *const inverse = order + routes, *const offsets = inverse + routes;
  int32_t* end = order;
  const auto take = [&](const int32_t* from, const int32_t* to) {  // of one expert, or dropped: ascending
    for (from = std::lower_bound(from, to, first); from < to && *from < first + routes; ++from)
      *end++ = static_cast<int32_t>(*from - first);
  };
  for (int64_t e = 0; e < q.num_experts; ++e) {
    offsets[e] = static_cast<int32_t>(end - order);
    take(q.order + q.offsets[e], q.order + q.offsets[e + 1]);
  }
  const int64_t routed = end - order;
  offsets[q.num_experts] = static_cast<int32_t>(routed);
  take(q.order + q.offsets[q.num_experts], q.order + q.num_routes());
  for (int64_t p = 0; p < routes; ++p) inverse[order[p]] = p < routed ? static_cast<int32_t>(p) : -1;
  return {order, inverse, offsets, tokens.count, q.k, q.num_experts};
}

template <class P>
void advance(P*& pointer, int64_t bytes) {
  if (pointer)
    pointer = static_cast<std::conditional_t<std::is_const_v<P>, const char, char>*>(pointer) + bytes;
}

// A product as described, of the tokens from `first` on.
CvmmFwdArgs from_token(CvmmFwdArgs a, const Routing& block, int64_t first) {
  const int64_t route = first * a.route.k, size = size_of(a.dtype),
                accumulator = a.dtype == DType::f64 ? 8 : 4;
  a.whole_offsets = a.route.offsets;
  a.route = block;
  advance(a.x.data, (a.x.routed ? route : first) * a.x.stride * size);
  advance(a.other.data, (a.other.routed ? route : first) * a.other.stride * size);
  advance(a.gate, route * accumulator);
  advance(a.dot, route * accumulator);
  advance(a.out, (a.reduce ? first : route) * a.h * size);
  return a;
}

Rows hidden_rows(const void* data, int64_t width) { return {data, width, true}; }

// In the product itself, or nothing to do.
bool activated_by_product(Activation activation) {
  return activation == Activation::relu || activation == Activation::identity;
}

void activate(const MoeFfnFwdArgs& a, const void* z, void* h, int64_t rows, int threads) {
  if (activated_by_product(a.activation)) return;
  const int64_t width = a.up.h, parts = std::clamp<int64_t>(rows * width / kSerialElements, 1, threads);
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static) if (parts > 1)
  for (int64_t i = 0; i < parts; ++i) {
    const int64_t first = rows * i / parts, at = first * width * size_of(a.up.dtype);
    activation_fwd_cpu(a.activation, a.up.dtype, static_cast<const char*>(z) + at, static_cast<char*>(h) + at,
                       {nullptr, rows * (i + 1) / parts - first, width});
  }
}

// f(block, its routing, memory for hidden rows, threads) for every block of tokens.
template <class F>
void each_block(const Routing& q, const Division& division, const Workspace& space, void* scratch,
                const F& f) {
  char* const memory = static_cast<char*>(scratch);
  if (division.blocks == 1) return f(Tokens{0, q.num_tokens}, q, memory, division.threads_of_block);
  std::atomic<int64_t> next{0};
#pragma omp parallel for num_threads(division.workers) schedule(static, 1) if (division.workers > 1)
  for (int worker = 0; worker < division.workers; ++worker) {
    char* const own = memory + worker * space.bytes();
    for (int64_t i; (i = next.fetch_add(1)) < division.blocks;) {
      const Tokens tokens = division.block(i);
      f(tokens, routing_of(q, tokens, reinterpret_cast<int32_t*>(own)), own + space.routing, 1);
    }
  }
}

bool hidden_in_scratch(const MoeFfnFwdArgs& a) { return !a.up.out || !derivative_from_output(a.activation); }
bool inputs_in_scratch(const MoeFfnBwdArgs& a) { return !a.up.out && !derivative_from_output(a.activation); }

// Routes that lie behind each other in `order`.
struct Piece {
  int64_t begin, end;
  int64_t first_expert, last_expert;  // last: past the end
};

// Whole experts as far as they are small, else even parts of one.
std::vector<Piece> pieces_of(const Routing& q, int threads) {
  const int64_t routed = q.offsets[q.num_experts],
                most = std::clamp<int64_t>(routed / (4 * threads), 64, kPieceRows);
  std::vector<Piece> pieces;
  for (int64_t e = 0; e < q.num_experts; ++e) {
    const int64_t begin = q.offsets[e], rows = q.offsets[e + 1] - begin, parts = (rows + most - 1) / most;
    if (rows == 0) continue;
    if (!pieces.empty() && q.offsets[e + 1] - pieces.back().begin <= most) {
      pieces.back().end = q.offsets[e + 1];
      pieces.back().last_expert = e + 1;
      continue;
    }
    for (int64_t i = 0; i < parts; ++i)
      pieces.push_back({begin + rows * i / parts, begin + rows * (i + 1) / parts, e, e + 1});
  }
  return pieces;
}

// A product as described, of the routes of a piece. Its rows keep their places; the number of tokens only
// says where routes that are dropped would lie, of which a piece has none.
CvmmFwdArgs of_piece(CvmmFwdArgs a, const Piece& piece, const int32_t* offsets) {
  const Routing& q = a.route;
  advance(a.w, piece.first_expert * a.w_stride_e * size_of(a.w_dtype));
  advance(a.bias, piece.first_expert * a.h * (a.dtype == DType::f64 ? 8 : 4));
  a.whole_offsets = q.offsets + piece.first_expert;
  a.route = {q.order + piece.begin,           q.inverse, offsets,
             (piece.end - piece.begin) / q.k, q.k,       piece.last_expert - piece.first_expert};
  return a;
}

// The steps of the backward before dx, of one piece.
void hidden_gradients(const MoeFfnBwdArgs& a, const Piece& piece) {
  const Routing& q = a.up.route;
  std::vector<int32_t> offsets;
  for (int64_t e = piece.first_expert; e <= piece.last_expert; ++e)
    offsets.push_back(
        static_cast<int32_t>(std::clamp<int64_t>(q.offsets[e], piece.begin, piece.end) - piece.begin));
  const HiddenRows rows{q.order + piece.begin, piece.end - piece.begin, a.up.h};
  const DType dtype = a.up.dtype;
  const bool from_output = derivative_from_output(a.activation), recompute = !a.up.out;
  void* const kept = !recompute ? a.up.out : from_output ? a.h : a.scratch;
  if (recompute) {
    CvmmFwdArgs up = of_piece(a.up, piece, offsets.data());
    up.out = kept;
    cvmm_fwd_cpu(up, 1);
  }
  if (a.h && (recompute || !from_output) && !activated_by_product(a.activation))
    activation_fwd_cpu(a.activation, dtype, kept, a.h, rows);
  CvmmFwdArgs down = of_piece(a.down, piece, offsets.data());
  if (down.dot) down.other = hidden_rows(from_output ? kept : a.h, a.up.h);
  if (down.out || down.dot) cvmm_fwd_cpu(down, 1);
  if (down.out) activation_bwd_cpu(a.activation, dtype, kept, down.out, rows);
}

// Zeros for the routes that are dropped, or for all if there are no hidden columns: no product writes those.
void clear_unused(const MoeFfnBwdArgs& a) {
  const Routing& q = a.up.route;
  const int64_t row = a.up.h * size_of(a.up.dtype), accumulator = a.up.dtype == DType::f64 ? 8 : 4;
  for (int64_t p = a.up.h > 0 ? q.offsets[q.num_experts] : 0; p < q.num_routes(); ++p) {
    for (void* rows : {a.h, a.down.out})
      if (rows) std::memset(static_cast<char*>(rows) + q.order[p] * row, 0, row);
    if (a.down.dot) std::memset(static_cast<char*>(a.down.dot) + q.order[p] * accumulator, 0, accumulator);
  }
}

}  // namespace

int64_t moe_ffn_fwd_cpu_scratch_bytes(const MoeFfnFwdArgs& a, int num_threads) {
  const Division division(a.up.route, num_threads);
  return division.workers * workspace(division, a.up, hidden_in_scratch(a)).bytes();
}

int64_t moe_ffn_bwd_cpu_scratch_bytes(const MoeFfnBwdArgs& a, int) {
  return inputs_in_scratch(a) ? a.up.route.num_routes() * a.up.h * size_of(a.up.dtype) : 0;
}

void moe_ffn_fwd_cpu(const MoeFfnFwdArgs& a, int num_threads) {
  const Division division(a.up.route, num_threads);
  const Workspace space = workspace(division, a.up, hidden_in_scratch(a));
  each_block(a.up.route, division, space, a.scratch,
             [&](Tokens tokens, const Routing& route, void* memory, int threads) {
               CvmmFwdArgs up = from_token(a.up, route, tokens.first),
                           down = from_token(a.down, route, tokens.first);
               void* const h = hidden_in_scratch(a) ? memory : up.out;
               if (!up.out) up.out = h;
               cvmm_fwd_cpu(up, threads);
               activate(a, up.out, h, route.num_routes(), threads);
               down.x = hidden_rows(h, up.h);
               cvmm_fwd_cpu(down, threads);
             });
}

void moe_ffn_bwd_cpu(const MoeFfnBwdArgs& a, int num_threads) {
  const Routing& q = a.up.route;
  clear_unused(a);
  const int64_t products = q.offsets[q.num_experts] * a.up.h * (a.down.d + (a.up.out ? 0 : a.up.d));
  const int threads = static_cast<int>(std::clamp<int64_t>(products / kSerialProducts, 1, num_threads));
  const std::vector<Piece> pieces = a.up.h > 0 ? pieces_of(q, threads) : std::vector<Piece>();
  const int64_t count = static_cast<int64_t>(pieces.size());
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1) if (threads > 1)
  for (int64_t i = 0; i < count; ++i) hidden_gradients(a, pieces[i]);
  if (!a.dx.out) return;
  CvmmFwdArgs dx = a.dx;
  dx.x = hidden_rows(a.down.out, a.up.h);
  cvmm_fwd_cpu(dx, num_threads);
}

}  // namespace sysgen
