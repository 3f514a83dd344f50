// Arithmetic modulo 10 with + and * in parentheses (Csordas 2023, Sec. 5.4.2).
#pragma once
#include "tasks/collect.h"

namespace sysgen::tasks {

struct ArithmeticArgs {
  int min_depth, max_depth;  // of the tree, a digit has 1
  int max_length;            // tokens
  double op_probability;     // of a node above max_depth
  double left_probability;   // that a tree that is too shallow becomes the left operand of the next operation
};

// Tokens: 0 "(", 1 ")", 2 "+", 3 "*", 4 + digit. Expression.depth is the depth of the tree.
int64_t arithmetic_generate(const CollectArgs& collect, const ArithmeticArgs& args);

}  // namespace sysgen::tasks
