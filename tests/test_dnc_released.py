"""Parameters of the released DNC: the loaded layer computes what the released layout says they mean."""

import pytest
import torch

from sysgen import nn

F64 = {"dtype": torch.float64}
X, Y, H, N, W, R = 5, 4, 7, 6, 3, 2
EPS = 1e-6
VARIANTS = ["dnc", "dnc-d", "dnc-m", "dnc-s", "dnc-md", "dnc-ms", "dnc-ds", "dnc-mds"]


def parameters(masked, sharpen, feedforward=False, seed=0):
    """Random ones under the released names. Interface: per write head, per read head, sharpness."""
    generator = torch.Generator().manual_seed(seed)
    interface = (4 if masked else 3) * W + R + 3 + R * ((2 if masked else 1) * W + 4) + 2 * R * sharpen
    shapes = {"controller.model.0.weight": (H, X + R * W), "controller.model.0.bias": (H,)}
    if not feedforward:
        shapes = {"controller.in_to_all_0.weight": (4 * H, X + R * W), "controller.in_to_all_0.bias": (4 * H,)}
        shapes |= {"controller.out_to_all_0.weight": (4 * H, H)}
    for name, (rows, columns) in {
        "controller_to_controls": (interface, H),
        "controller_to_out": (Y, H),
        "read_to_out": (Y, R * W),
    }.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return {name: torch.randn(shape, generator=generator, **F64) / 2 for name, shape in shapes.items()}


def lookup(memory, key, strength, mask):
    """Of one key: every cell's masked cosine, through a softmax."""
    key, memory = key * mask, memory * mask
    cosine = (memory @ key) / (memory.pow(2).sum(1).sqrt() * key.pow(2).sum().sqrt() + EPS)
    return (strength * cosine).exp() / (strength * cosine).exp().sum()


def followed(projection, strength):
    """The sharpened projection as a power."""
    scaled = (projection + EPS) / (projection + EPS).max()
    return scaled**strength / (scaled**strength).sum()


def released(p, x, masked, dealloc, sharpen, mask_min):
    """One sample x [T, X] through the released model -> [T, Y], cell by cell where that is plainer."""
    sigmoid, oneplus = torch.sigmoid, lambda t: 1 + torch.log1p(t.exp())
    memory, link = torch.zeros(N, W, **F64), torch.zeros(N, N, **F64)
    usage, precedence, written = (torch.zeros(N, **F64) for _ in range(3))
    reading, reads = torch.zeros(R, N, **F64), torch.zeros(R, W, **F64)
    h, c = torch.zeros(H, **F64), torch.zeros(H, **F64)
    ones, outputs = torch.ones(W, **F64), []
    for x_t in x:
        seen = torch.cat([x_t, reads.flatten()])
        if "controller.model.0.weight" in p:
            h = (p["controller.model.0.weight"] @ seen + p["controller.model.0.bias"]).relu()
        else:
            z = p["controller.in_to_all_0.weight"] @ seen + p["controller.in_to_all_0.bias"]
            z = z + p["controller.out_to_all_0.weight"] @ h
            forget, accept, emit = sigmoid(z[:H]), sigmoid(z[H : 2 * H]), sigmoid(z[2 * H : 3 * H])
            c = forget * c + accept * z[3 * H :].tanh()
            h = emit * c.tanh()
        entries = iter((p["controller_to_controls.weight"] @ h + p["controller_to_controls.bias"]).clamp(-20, 20))

        def take(*shape):
            count = torch.Size(shape).numel()
            return torch.stack([next(entries) for _ in range(count)]).view(shape)  # noqa: B023

        mask_w = sigmoid(take(W)) * (1 - mask_min) + mask_min if masked else ones
        key_w, erase, value = take(W), sigmoid(take(W)), take(W)
        free, strength_w, by_allocation, write = sigmoid(take(R)), oneplus(take(1)), sigmoid(take(1)), sigmoid(take(1))
        mask_r = sigmoid(take(R, W)) * (1 - mask_min) + mask_min if masked else torch.ones(R, W, **F64)
        key_r, strength_r, mode = take(R, W), oneplus(take(R)), take(R, 3).softmax(1)
        sharp = (oneplus(take(R)), oneplus(take(R))) if sharpen else None
        assert next(entries, None) is None

        kept = torch.ones(N, **F64)
        for head in range(R):
            kept = kept * (1 - free[head] * reading[head])
        usage = (usage + written - usage * written) * kept
        scaled, allocated, full = usage * (1 - EPS) + EPS, torch.zeros(N, **F64), 1.0
        for cell in sorted(range(N), key=lambda i: (scaled[i].item(), i)):
            allocated[cell] = (1 - scaled[cell]) * full
            full = full * scaled[cell]
        content = lookup(memory, key_w, strength_w, mask_w)
        written = write * (by_allocation * allocated + (1 - by_allocation) * content)
        memory = memory * (1 - torch.outer(written, erase)) * (kept[:, None] if dealloc else 1)
        memory = memory + torch.outer(written, value)
        link = (1 - written[:, None] - written) * link + torch.outer(written, precedence)
        link = link - link.diagonal().diag()
        precedence = (1 - written.sum()) * precedence + written
        previous, reading = reading, torch.zeros(R, N, **F64)
        for head in range(R):
            forward, backward = link @ previous[head], link.T @ previous[head]
            if sharpen:
                forward, backward = followed(forward, sharp[0][head]), followed(backward, sharp[1][head])
            content = lookup(memory, key_r[head], strength_r[head], mask_r[head])
            reading[head] = mode[head, 0] * backward + mode[head, 1] * content + mode[head, 2] * forward
        reads = reading @ memory
        y = p["controller_to_out.weight"] @ h + p["controller_to_out.bias"]
        outputs.append(y + p["read_to_out.weight"] @ reads.flatten() + p["read_to_out.bias"])
    return torch.stack(outputs)


@pytest.mark.parametrize("mask_min", [0.0, 0.1])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_loaded_layer_computes_what_the_released_one_does(name, mask_min):
    """float64: as the layer against the reference, a thousand roundings a step and slopes of some hundreds."""
    dnc = nn.DNC.variant(name, X, Y, H, N, W, R, released=True, mask_min=mask_min, **F64)
    p = parameters(dnc.masked, dnc.sharpen)
    state = {f"model.{n}": t for n, t in p.items()} | {"optimizer.step": torch.zeros(())}
    nn.load_released_state_dict(dnc, state, prefix=None if mask_min else "model.")
    x = torch.randn(9, 2, X, generator=torch.Generator().manual_seed(1), **F64)
    flags = dnc.masked, dnc.dealloc, dnc.sharpen
    expected = torch.stack([released(p, x[:, b], *flags, mask_min) for b in range(2)], 1)
    torch.testing.assert_close(dnc(x)[0], expected, rtol=0, atol=1e-10)


def test_a_feed_forward_controller():
    controller = torch.nn.Sequential(torch.nn.Linear(X + R * W, H, **F64), torch.nn.ReLU())
    cell = nn.DNCCell.variant("dnc-mds", X, Y, H, N, W, R, released=True, controller=controller, **F64)
    p = parameters(True, True, feedforward=True)
    nn.load_released_state_dict(cell, p)
    x, state, outputs = torch.randn(5, X, **F64), None, []
    for x_t in x:
        y, state = cell(x_t, state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs), released(p, x, True, True, True, 0.0), rtol=0, atol=1e-10)


def test_parameters_that_do_not_fit():
    dnc = nn.DNC.variant("dnc-d", X, Y, H, N, W, R, **F64)
    p = parameters(False, False)
    before = dnc(torch.ones(2, X, **F64))[0]
    without = {n: t for n, t in p.items() if n != "read_to_out.bias"}
    for state, words in (
        (without, r"missing: \['read_to_out.bias'\]"),
        (p | {"controller.prev_to_all_0.weight": torch.zeros(4 * H, H)}, "without counterpart.*prev_to_all_0"),
        (parameters(True, False), "controller_to_controls.weight must have shape"),
        ({}, "state holds 0 DNCs"),
    ):
        with pytest.raises(ValueError, match=words):
            nn.load_released_state_dict(dnc, state)
    assert torch.equal(dnc(torch.ones(2, X, **F64))[0], before)
