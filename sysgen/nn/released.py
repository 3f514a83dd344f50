"""Parameters of the models that Róbert Csordás released with the thesis and its follow-ups."""

import torch

from . import _released_models
from .sigma_moe import SigmaMoE

_STATISTICS = ("kv_sel_counts", "kv_sel_counts_100")  # saved next to the parameters, without influence on the output


@torch.no_grad()
def load_released_state_dict(layer, state, prefix=None):
    """Copies the parameters of a released layer or model into the one here.

    Args:
        layer: what to fill, with the sizes and options of the released one: :class:`SigmaMoE`; the attention layers,
            :class:`NDREncoderLayer`, :class:`TransformerEncoderLayer`, the encoders, :class:`SequenceClassifier` and
            :class:`RNNClassifier` (ndr and ctlpp); :class:`Seq2SeqTransformer` (transformer_generalization);
            :class:`DNC` and :class:`DNCCell` (dnc) with an LSTM of one layer, or with the released feed-forward
            controller, ``controller=nn.Sequential(nn.Linear(…), nn.ReLU(), …)``.
        state: state dict of it, or of a model that contains it.
        prefix: what precedes the names of its parameters, such as ``"model.layers.3.pkm."`` before ``keys``, or
            ``"trafo.layer."`` before ``att.data_to_q.weight``. None finds it, if the state holds one such layer.

    ``keys`` [E · d_model, G] and ``values`` [E · G, d_out], as older checkpoints of the MoE have them, are accepted.

    Raises:
        TypeError: no such layer has been released.
        ValueError: no or several layers in ``state``, a shape that does not fit, a missing parameter, or one that
            ``layer`` has no counterpart for.
    """
    moe = isinstance(layer, SigmaMoE)
    anchor = "expert_sel" if moe else _released_models.anchor(layer)
    if anchor is None:
        raise TypeError(f"load_released_state_dict: layer must be a released one, got {type(layer).__name__}")
    if prefix is None:
        found = [n[: -len(anchor)] for n in state if n == anchor or n.endswith("." + anchor)]
        if len(found) != 1:
            kind = "MoE layers" if moe else f"{type(layer).__name__}s"
            raise ValueError(f"load_released_state_dict: state holds {len(found)} {kind}; give prefix, one of {found}")
        prefix = found[0]
    given = {n[len(prefix) :]: v for n, v in state.items() if n.startswith(prefix)}
    (_load_moe if moe else _load_model)(layer, given, prefix)


def _load_moe(layer, given, prefix):
    wanted = dict(layer.named_parameters())
    _check_names(wanted.keys() - given.keys(), given.keys() - wanted.keys() - set(_STATISTICS), prefix)
    for name, parameter in wanted.items():
        flat = parameter.flatten(0, 1).shape if name in ("keys", "values") else parameter.shape
        _check_shape(prefix + name, given[name], parameter.shape, flat)
    for name, parameter in wanted.items():
        parameter.copy_(given[name].reshape(parameter.shape))


def _load_model(layer, given, prefix):
    missing, rest = [], dict(given)

    def take(name, shape, nested=False):
        if nested and name not in rest:  # the embedding of ctlpp is a module that has one
            name = name.replace("weight", "embedding.weight")
        value = rest.pop(name, None)
        if value is None:
            missing.append(name)
            return torch.zeros(shape)
        _check_shape(prefix + name, value, shape)
        return value

    state = _released_models.converted(layer, take)
    _check_names(missing, [n for n in rest if not _released_models.unused(n)], prefix)
    layer.load_state_dict(state)


def _check_names(missing, extra, prefix):
    if missing or extra:
        raise ValueError(
            f"load_released_state_dict: under {prefix!r}, missing: {sorted(missing)}; "
            f"without counterpart in the layer: {sorted(extra)}"
        )


def _check_shape(name, value, *allowed):
    if value.shape not in allowed:
        wanted = list(allowed[0])
        raise ValueError(f"load_released_state_dict: {name} must have shape {wanted}, got {list(value.shape)}")
