// ListOps with bins of equal size by dependency depth (Csordas 2023, Sec. 5.4.3; Nangia & Bowman 2018).
#pragma once
#include "tasks/collect.h"

namespace sysgen::tasks {

struct ListOpsArgs {
  static constexpr int kMaxArgs = 32;
  int min_depth, max_depth;  // of the tree, a digit has 1; max_depth is also that of the dependencies
  int max_length;            // of an expression, where an operator counts 3 and a digit 1
  int max_args;              // of an operator, in [3, kMaxArgs - 1]
  double op_probability;     // of a node above max_depth
};

// Tokens: 0 "]", 1 "[MIN", 2 "[MAX", 3 "[MED", 4 "[SM", 5 + digit. Expression.depth is the dependency depth.
int64_t listops_generate(const CollectArgs& collect, const ListOpsArgs& args);

}  // namespace sysgen::tasks
