"""The DNC as a layer: conventions of nn.LSTM, its state and its trace."""

import copy
import itertools

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from sysgen import nn

SIZES = {"input_size": 5, "output_size": 4, "hidden_size": 8, "num_cells": 6, "word_size": 3, "num_reads": 2}


def layer(seed=0, **options):
    torch.manual_seed(seed)
    return nn.DNC(**{**SIZES, **options})


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)  # float32: products of other sizes sum in other orders


def test_batch_first_and_unbatched():
    x = torch.randn(7, 3, 5)
    y, state = layer()(x)
    assert y.shape == (7, 3, 4) and state.link.shape == (3, 6, 6)
    first, _ = layer(batch_first=True)(x.transpose(0, 1))
    close(first.transpose(0, 1), y)
    alone, last = layer()(x[:, 1])
    close(alone, y[:, 1])
    close(last.memory, state.memory[1])
    again, _ = layer()(x[:, 1], last)
    assert again.shape == (7, 4)


def test_state_is_carried_and_can_be_detached():
    x = torch.randn(8, 2, 5)
    dnc = layer()
    y, last = dnc(x)
    first, state = dnc(x[:3])
    second, end = dnc(x[3:], state)
    close(torch.cat([first, second]), y)
    close(end.memory, last.memory)
    (gradient,) = torch.autograd.grad(second.sum(), dnc.interface.weight, retain_graph=True)
    (cut,) = torch.autograd.grad(dnc(x[3:], state.detach())[0].sum(), dnc.interface.weight)
    assert not torch.allclose(gradient, cut)
    assert all(not t.requires_grad for t in state.detach())


def test_lengths_and_packed_sequences():
    dnc = layer()
    samples = [torch.randn(n, 5) for n in (3, 7, 5)]
    padded = torch.nn.utils.rnn.pad_sequence(samples)
    lengths = torch.tensor([3, 7, 5])
    y, last = dnc(padded, lengths=lengths)
    packed, end = dnc(pack_sequence(samples, enforce_sorted=False))
    unpacked, _ = pad_packed_sequence(packed)
    close(unpacked, y)
    for b, sample in enumerate(samples):
        alone, state = dnc(sample)
        close(y[: len(sample), b], alone)
        assert (y[len(sample) :, b] == 0).all()
        close(last.memory[b], state.memory)
        close(end.memory[b], state.memory)


def test_more_cells_than_in_training():
    dnc = layer()
    y, state = dnc(torch.randn(4, 2, 5), dnc.initial_state(2, num_cells=19))
    assert state.memory.shape == (2, 19, 3) and y.isfinite().all()


@pytest.mark.parametrize("variant", list(itertools.product([False, True], repeat=3)))
def test_trace_tells_what_happened(variant):
    options = dict(zip(("masked", "dealloc", "sharpen"), variant))
    dnc = layer(**options)
    x = torch.randn(6, 2, 5)
    plain, expected = dnc(x)
    y, state, trace = dnc(x, return_trace=True)
    close(y, plain)
    for name in ("usage", "write_weights", "read_weights", "memory"):
        close(trace[name][-1], getattr(expected, name))
    assert ("write_mask" in trace) == variant[0] and ("sharp_forward" in trace) == variant[2]
    assert trace["read_mode"].shape == (6, 2, 2, 3) and not trace["usage"].requires_grad
    close(trace["read_mode"].sum(-1), torch.ones(6, 2, 2))
    assert state.link.shape == (2, 6, 6)


def test_bfloat16_keeps_its_state_in_float32():
    dnc = layer().to(torch.bfloat16)
    y, state = dnc(torch.randn(5, 2, 5, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16 and state.link.dtype == torch.float32
    y.sum().backward()
    assert dnc.interface.weight.grad.dtype == torch.bfloat16
    expected, _ = layer().to(torch.bfloat16).float()(torch.zeros(1, 1, 5))
    assert expected.dtype == torch.float32


def test_parameters_device_and_dtype():
    dnc = layer(dtype=torch.float64)
    assert all(p.dtype == torch.float64 for p in dnc.parameters())
    assert layer(device="meta").weight_input.is_meta
    other = layer(seed=1)
    other.load_state_dict(layer().state_dict())
    x = torch.randn(3, 2, 5)
    assert torch.equal(other(x)[0], layer()(x)[0])
    again = copy.deepcopy(other)
    again.reset_parameters()
    assert not torch.equal(again.weight_input, other.weight_input)
    assert (layer().bias[8:16] == 1).all() and (layer().interface.bias[:3] == 1).all()
    assert "num_cells=6" in repr(dnc)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: layer(num_cells=0), "num_cells"),
        (lambda: layer(word_size=2.5), "word_size"),
        (lambda: layer(masked=2), "DNC: masked must be a bool, got 2"),
        (lambda: layer(mask_bias=float("nan")), "mask_bias must be finite"),
        (lambda: layer(checkpoint_every=0), "DNC: checkpoint_every must be at least 1"),
        (lambda: layer(batch_first="no"), "batch_first must be a bool"),
        (lambda: layer().initial_state(-1), "initial_state: batch must be at least 0"),
        (lambda: layer()(torch.randn(3, 2, 5).bfloat16()), "DNC: input must be float32 as .* parameters, .* bfloat16"),
        (lambda: layer(dtype=torch.float64)(torch.randn(3, 5)), "DNC: input must be float64"),
        (lambda: layer(batch_first=True)(torch.randn(3, 2, 6)), r"shape \[B, T, 5\] or \[T, 5\], got \[3, 2, 6\]"),
        (lambda: layer()(torch.randn(3, 2, 6)), "input"),
        (lambda: layer()(torch.randn(3, 5), lengths=torch.tensor([3])), "lengths"),
        (lambda: layer()(torch.randn(3, 2, 5), layer().initial_state(4)), "state"),
        (
            lambda: layer()(torch.randn(3, 2, 5), layer(hidden_size=9).initial_state(2)),
            r"DNC: state.hidden must have shape \[2, 8\], got \[2, 9\]",
        ),
        (lambda: layer()(torch.randn(3, 2, 5), lengths=torch.tensor([1, 4])), "lengths"),
    ],
)
def test_errors_name_the_argument(call, name):
    with pytest.raises((TypeError, ValueError), match=name):
        call()


def classifier(**options):
    torch.manual_seed(0)
    return nn.DNCClassifier(7, 3, 8, 4, num_cells=5, num_reads=2, **options)


@pytest.mark.parametrize("released_readout", [False, True])
def test_classifier_reads_each_sequence_as_if_alone(released_readout):
    model = classifier(released_readout=released_readout)
    tokens = torch.randint(7, (4, 6))
    lengths = torch.tensor([6, 1, 0, 4])
    logits = model(tokens, lengths)
    for b, n in enumerate(lengths.tolist()):
        close(model(tokens[b : b + 1, :n])[0], logits[b])
    tokens[1, 1:] = 6  # behind the end
    close(model(tokens, lengths), logits)


def test_classifier_reads_the_end_token_unless_as_released():
    tokens = torch.randint(7, (4, 6))
    for released, reads in ((False, True), (True, False)):
        model = classifier(released_readout=released)
        model(tokens).sum().backward()
        assert (model.embedding.weight.grad[7] != 0).any() == reads


def test_classifier_learns_the_last_token():
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        tokens = torch.randint(7, (32, 4))
        loss = torch.nn.functional.cross_entropy(model(tokens), tokens[:, -1] % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1  # chance: ln 3
