"""A small byte-level σ-MoE language model learns English text, and uses all its experts."""

import pydoc_data.topics

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sysgen.nn import SigmaMoE

CONTEXT, WIDTH, NUM_EXPERTS, K = 8, 128, 16, 4
STEPS, BATCH, LEARNING_RATE, GAMMA = 300, 1024, 3e-3, 0.1


class LanguageModel(nn.Module):
    """Predicts a byte from the 8 before it. All it knows of them passes through the σ-MoE: there is no residual."""

    def __init__(self, **kwargs):
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH // CONTEXT)
        self.norm = nn.LayerNorm(WIDTH)
        self.moe = SigmaMoE(WIDTH, NUM_EXPERTS, 32, K, **kwargs)
        self.output = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256))

    def embed(self, context):
        return self.norm(self.embedding(context).flatten(-2))

    def forward(self, context):
        y, aux = self.moe(self.embed(context), return_aux=True)
        return self.output(y), aux


def corpus():
    text = "".join(pydoc_data.topics.topics.values()).encode()
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    return data.split([len(data) * 9 // 10, len(data) - len(data) * 9 // 10])


def examples(data, start):
    return data[start[:, None] + torch.arange(CONTEXT)], data[start + CONTEXT]


def unigram_entropy(train, test):
    """Nats a byte on ``test`` of the best model of ``train`` that sees nothing; add-one smoothing."""
    p = torch.bincount(train, minlength=256).double() + 1
    return -(p / p.sum()).log()[test].mean()


def bigram_entropy(train, test):
    """The same for a model that sees one byte; a count of 5 smooths it towards the unigrams."""
    prior = torch.bincount(train, minlength=256).double() + 1
    counts = torch.bincount(train[:-1] * 256 + train[1:], minlength=1 << 16).double().view(256, 256)
    p = (counts + 5 * prior / prior.sum()) / (counts.sum(1, keepdim=True) + 5)
    return -p[test[:-1], test[1:]].log().mean()


@pytest.mark.parametrize("kwargs", [{}, {"bias": True, "dropout": 0.1, "expert_dropout": 0.1}], ids=str)
def test_language_model_learns_without_collapse(kwargs):
    train, test = corpus()
    torch.manual_seed(0)
    model = LanguageModel(**kwargs)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min(1, 2 - 2 * step / STEPS)
        context, target = examples(train, torch.randint(len(train) - CONTEXT, (BATCH,)))
        logits, aux = model(context)
        optimizer.zero_grad()
        (F.cross_entropy(logits, target) + GAMMA * aux).backward()
        optimizer.step()

    model.eval()
    with torch.no_grad():
        context, target = examples(test, torch.arange(0, len(test) - CONTEXT, 7))
        loss = F.cross_entropy(model(context)[0], target)
        experts = model.moe.select(model.embed(context))[0]
    # Without the context the loss stays above the unigram entropy (3.2 nats); below the bigram entropy (2.3), the
    # model has learnt from more than one byte of it.
    assert loss < bigram_entropy(train, test) < unigram_entropy(train, test)
    usage = torch.bincount(experts.flatten(), minlength=NUM_EXPERTS) / experts.numel()
    # The number of equally used experts with the same entropy: 4 if all tokens use the same, 16 if all are used
    # equally; 8 was measured with the sign of the regulariser flipped, when some experts serve almost no token.
    assert torch.special.entr(usage).sum().exp() > 12
    assert usage.min() > 0.25 / NUM_EXPERTS
