#include "tasks/listops.h"

namespace sysgen::tasks {
namespace {

enum Operator { kMin, kMax, kMed, kSum };
constexpr int kMaxArgs = ListOpsArgs::kMaxArgs;
constexpr uint8_t kClose = 0, kFirstOperator = 1, kFirstDigit = 5;

struct Node {
  int value, dependency_depth, tree_depth;
};

Node apply(Operator op, const Node* args, int n) {
  int depth = 0, deepest = 0;
  for (int i = 0; i < n; ++i) {
    depth = std::max(depth, args[i].tree_depth);
    deepest = std::max(deepest, args[i].dependency_depth);
  }
  const auto less = [](const Node& a, const Node& b) { return a.value < b.value; };
  if (op == kMin || op == kMax) {  // the first of equal arguments
    const Node& chosen =
        op == kMin ? *std::min_element(args, args + n, less) : *std::max_element(args, args + n, less);
    return {chosen.value, chosen.dependency_depth + 1, depth + 1};
  }
  if (op == kSum) {
    int sum = 0;
    for (int i = 0; i < n; ++i) sum += args[i].value;
    return {sum % 10, deepest + 1, depth + 1};
  }
  Node sorted[kMaxArgs];
  for (int i = 0; i < n; ++i) {  // a stable insertion sort
    int at = i;
    for (; at > 0 && less(args[i], sorted[at - 1]); --at) sorted[at] = sorted[at - 1];
    sorted[at] = args[i];
  }
  const Node &upper = sorted[n / 2], &lower = sorted[(n - 1) / 2];
  return {(lower.value + upper.value) / 2, std::max(lower.dependency_depth, upper.dependency_depth) + 1,
          depth + 1};
}

class Generator {
 public:
  explicit Generator(const ListOpsArgs& args) : args_(args) {}

  bool operator()(Stream& stream, Expression& e) const {
    Text text{e.tokens, 0, 0};
    Node node = subtree(stream, text, args_.max_depth);
    // A tree that is too shallow becomes an argument of a new operator, never the last one.
    while (node.tree_depth < args_.min_depth && counted(text) <= args_.max_length) {
      uint8_t inner[kMaxTokens];
      const int num_inner = text.n;
      std::memcpy(inner, text.tokens, num_inner);
      text.n = 0;
      const auto op = static_cast<Operator>(stream.below(4));
      const int n = 2 + stream.below(args_.max_args - 2);
      const int place = stream.below(n);
      Node nodes[kMaxArgs];
      ++text.num_operators;
      text.push(kFirstOperator + op);
      for (int i = 0; i <= n; ++i) {
        if (i != place) {
          nodes[i] = subtree(stream, text, args_.max_depth - 1);
          continue;
        }
        nodes[i] = node;
        for (int t = 0; t < num_inner; ++t) text.push(inner[t]);
      }
      text.push(kClose);
      node = apply(op, nodes, n + 1);
    }
    e.num_tokens = text.n;
    e.target = static_cast<uint8_t>(node.value);
    e.depth = static_cast<uint8_t>(node.dependency_depth);
    e.tree_depth = static_cast<uint8_t>(node.tree_depth);
    return counted(text) <= args_.max_length;
  }

 private:
  struct Text {
    uint8_t* tokens;
    int n, num_operators;
    void push(int token) {
      if (n < kMaxTokens) tokens[n] = static_cast<uint8_t>(token);
      ++n;
    }
  };

  static int counted(const Text& text) { return text.n + text.num_operators; }

  Node subtree(Stream& stream, Text& text, int max_depth) const {
    if (counted(text) > args_.max_length) return {0, 1, 1};  // of no use any more
    if (max_depth == 1 || stream.uniform() >= args_.op_probability) {
      const int digit = stream.below(10);
      text.push(kFirstDigit + digit);
      return {digit, 1, 1};
    }
    const auto op = static_cast<Operator>(stream.below(4));
    const int n = 2 + stream.below(args_.max_args - 1);
    ++text.num_operators;
    text.push(kFirstOperator + op);
    Node nodes[kMaxArgs];
    for (int i = 0; i < n; ++i) nodes[i] = subtree(stream, text, max_depth - 1);
    text.push(kClose);
    return apply(op, nodes, n);
  }

  ListOpsArgs args_;
};

}  // namespace

int64_t listops_generate(const CollectArgs& collect_args, const ListOpsArgs& args) {
  return collect(collect_args, "listops_generate", Generator(args));
}

}  // namespace sysgen::tasks
