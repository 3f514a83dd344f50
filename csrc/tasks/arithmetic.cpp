#include "tasks/arithmetic.h"

namespace sysgen::tasks {
namespace {

constexpr uint8_t kOpen = 0, kClose = 1, kPlus = 2, kFirstDigit = 4;

struct Node {
  int value, depth;
};

Node apply(int op, Node left, Node right) {
  const int value = op == 0 ? left.value + right.value : left.value * right.value;
  return {value % 10, std::max(left.depth, right.depth) + 1};
}

class Generator {
 public:
  explicit Generator(const ArithmeticArgs& args) : args_(args) {}

  bool operator()(Stream& stream, Expression& e) const {
    Text text{e.tokens, 0};
    Node node = subtree(stream, text, args_.max_depth);
    while (node.depth < args_.min_depth && text.n <= args_.max_length) {
      uint8_t inner[kMaxTokens];
      const int num_inner = text.n;
      std::memcpy(inner, text.tokens, num_inner);
      text.n = 0;
      const bool stays_left = stream.uniform() < args_.left_probability;
      const int op = stream.below(2);
      const auto put_inner = [&] {
        for (int t = 0; t < num_inner; ++t) text.push(inner[t]);
      };
      text.push(kOpen);
      if (stays_left) {
        put_inner();
        text.push(kPlus + op);
        node = apply(op, node, subtree(stream, text, args_.max_depth - 1));
      } else {
        const Node other = subtree(stream, text, args_.max_depth - 1);
        text.push(kPlus + op);
        put_inner();
        node = apply(op, other, node);
      }
      text.push(kClose);
    }
    e.num_tokens = text.n;
    e.target = static_cast<uint8_t>(node.value);
    e.depth = e.tree_depth = static_cast<uint8_t>(node.depth);
    return text.n <= args_.max_length;
  }

 private:
  struct Text {
    uint8_t* tokens;
    int n;
    void push(int token) {
      if (n < kMaxTokens) tokens[n] = static_cast<uint8_t>(token);
      ++n;
    }
  };

  Node subtree(Stream& stream, Text& text, int max_depth) const {
    if (text.n > args_.max_length) return {0, 1};  // of no use any more
    if (max_depth == 1 || stream.uniform() >= args_.op_probability) {
      const int digit = stream.below(10);
      text.push(kFirstDigit + digit);
      return {digit, 1};
    }
    const int op = stream.below(2);
    text.push(kOpen);
    const Node left = subtree(stream, text, max_depth - 1);
    text.push(kPlus + op);
    const Node right = subtree(stream, text, max_depth - 1);
    text.push(kClose);
    return apply(op, left, right);
  }

  ArithmeticArgs args_;
};

}  // namespace

int64_t arithmetic_generate(const CollectArgs& collect_args, const ArithmeticArgs& args) {
  return collect(collect_args, "arithmetic_generate", Generator(args));
}

}  // namespace sysgen::tasks
