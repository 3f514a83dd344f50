"""Registered operations of dynamic allocation and of the temporal links. Arguments as in csrc/links/links.h.

B batch, N cells, R read heads. All tensors of a call have one dtype, float32 or float64. Projections exist for the
directions that have a sharpness only.
"""

from ._core_call import define_core_op


def _like(*tensors):
    return tuple(None if t is None else t.shape for t in tensors)


retention_fwd = define_core_op(
    "retention_fwd",
    ("read_weights", "free_gate"),
    (),
    ("retention",),
    lambda read_weights, free_gate: ((read_weights.shape[0], read_weights.shape[2]),),
)
retention_bwd = define_core_op(
    "retention_bwd",
    ("read_weights", "free_gate", "dretention"),
    (),
    ("dread_weights", "dfree_gate"),
    lambda read_weights, free_gate, dretention: _like(read_weights, free_gate),
)
usage_update_fwd = define_core_op(
    "usage_update_fwd",
    ("usage", "write_weights", "retention"),
    (),
    ("updated",),
    lambda usage, write_weights, retention: _like(usage),
)
usage_update_bwd = define_core_op(
    "usage_update_bwd",
    ("usage", "write_weights", "retention", "dupdated"),
    (),
    ("dusage", "dwrite_weights", "dretention"),
    lambda usage, write_weights, retention, dupdated: _like(usage, write_weights, retention),
)
allocation_fwd = define_core_op("allocation_fwd", ("usage",), ("float eps",), ("allocation",), _like)
allocation_bwd = define_core_op(
    "allocation_bwd", ("usage", "dallocation"), ("float eps",), ("dusage",), lambda usage, dallocation: _like(usage)
)
link_update_fwd = define_core_op(
    "link_update_fwd",
    ("link", "precedence", "write_weights"),
    (),
    ("updated_link", "updated_precedence"),
    lambda link, precedence, write_weights: _like(link, precedence),
)
link_update_bwd = define_core_op(
    "link_update_bwd",
    ("link", "precedence", "write_weights", "dupdated_link?", "dupdated_precedence?"),
    (),
    ("dlink", "dprecedence", "dwrite_weights"),
    lambda link, precedence, write_weights, *incoming: _like(link, precedence, write_weights),
)


def _read_shapes(link, read_weights, sharp_forward, sharp_backward):
    shape = read_weights.shape
    return shape, shape, *(None if s is None else shape for s in (sharp_forward, sharp_backward))


link_read_fwd = define_core_op(
    "link_read_fwd",
    ("link", "read_weights", "sharp_forward?", "sharp_backward?"),
    ("float eps",),
    ("forward", "backward", "projection_forward", "projection_backward"),
    _read_shapes,
)
link_read_bwd = define_core_op(
    "link_read_bwd",
    (
        *("link", "read_weights", "sharp_forward?", "sharp_backward?"),
        *("projection_forward?", "projection_backward?", "dforward?", "dbackward?"),
    ),
    ("float eps",),
    ("dlink", "dread_weights", "dsharp_forward", "dsharp_backward"),
    lambda link, read_weights, sharp_forward, sharp_backward, *others: _like(
        link, read_weights, sharp_forward, sharp_backward
    ),
)
