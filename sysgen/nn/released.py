"""Parameters of the models that Róbert Csordás released with the thesis and its follow-ups."""

import torch

_STATISTICS = ("kv_sel_counts", "kv_sel_counts_100")  # saved next to the parameters, without influence on the output


@torch.no_grad()
def load_released_state_dict(layer, state, prefix=None):
    """Copies the parameters of one released MoE layer into a :class:`SigmaMoE`.

    Args:
        layer: the layer to fill; sizes and ``bias`` must be those of the released one.
        state: state dict of the layer, or of a model that contains it.
        prefix: what precedes ``keys``, ``values`` and ``expert_sel`` in the names, such as
            ``"model.layers.3.pkm."``. None finds it, if the state holds one such layer.

    ``keys`` [E · d_model, G] and ``values`` [E · G, d_out], as older checkpoints have them, are accepted.

    Raises:
        ValueError: no or several layers in ``state``, a shape that does not fit, a missing parameter, or one that
            :class:`SigmaMoE` has no counterpart for.
    """
    op = "load_released_state_dict"
    if prefix is None:
        found = [n[: -len("expert_sel")] for n in state if n == "expert_sel" or n.endswith(".expert_sel")]
        if len(found) != 1:
            raise ValueError(f"{op}: state holds {len(found)} MoE layers; give prefix, one of {found}")
        prefix = found[0]
    given = {n[len(prefix) :]: v for n, v in state.items() if n.startswith(prefix)}
    wanted = dict(layer.named_parameters())
    missing = sorted(wanted.keys() - given.keys())
    extra = sorted(given.keys() - wanted.keys() - set(_STATISTICS))
    if missing or extra:
        raise ValueError(f"{op}: under {prefix!r}, missing: {missing}; without counterpart in the layer: {extra}")
    for name, parameter in wanted.items():
        value = given[name]
        flat = parameter.flatten(0, 1).shape if name in ("keys", "values") else None
        if value.shape not in (parameter.shape, flat):
            raise ValueError(f"{op}: {prefix}{name} must have shape {list(parameter.shape)}, got {list(value.shape)}")
    for name, parameter in wanted.items():
        parameter.copy_(given[name].reshape(parameter.shape))
