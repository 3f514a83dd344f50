"""One training step: eager, through ``torch.compile``, or with forward and backward replayed as a CUDA graph."""

import torch
from torch import nn

from .optimizer import learning_rate

AUTOCAST = {"amp": torch.float16, "bf16": torch.bfloat16}


def autocast(settings, device):
    """The context in which a model of these settings computes."""
    dtype = AUTOCAST.get(settings["precision"])
    # A shared layer's weights are cast once a batch, but not in a graph: it may not hold casts made outside of it.
    cached = settings["execution"] != "graph"
    return torch.autocast(device.type, dtype, enabled=dtype is not None, cache_enabled=cached)


class Step:
    """Trains on one batch at a time. Nothing here waits for the device.

    ``totals`` [4] float64 on the device, since it was zeroed: sum of the loss over sequences, sequences that were right
    throughout, sequences, wrong outputs.

    Args:
        objective: ``objective(model, batch) -> (loss, wrong outputs [B], outputs [B])``.
    """

    def __init__(self, model, objective, optimizer, settings, device):
        self.model, self.optimizer, self.settings, self.device = model, optimizer, settings, device
        self.objective = objective
        if settings["execution"] == "compile":
            self.objective = torch.compile(objective, dynamic=True)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings["precision"] == "amp")
        self.totals = torch.zeros(4, dtype=torch.float64, device=device)

    def __call__(self, batch, step):
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, step)
        self.gradients(batch)
        self.scaler.unscale_(self.optimizer)
        for group in self.optimizer.param_groups:
            nn.utils.clip_grad_norm_(group["params"], self.settings["clip"])
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def gradients(self, batch):
        self.optimizer.zero_grad(set_to_none=True)
        self.forward_backward(batch)

    def forward_backward(self, batch):
        """Adds to the gradients and to ``totals``."""
        with autocast(self.settings, self.device):
            loss, wrong, _ = self.objective(self.model, batch)
        self.scaler.scale(loss).backward()
        count = wrong.numel()
        with torch.no_grad():
            self.totals[0] += loss.detach() * count
            self.totals[1] += (wrong == 0).sum()
            self.totals[2] += count
            self.totals[3] += wrong.sum()

    def state_dict(self):
        return {"scaler": self.scaler.state_dict(), "totals": self.totals.cpu()}

    def load_state_dict(self, state):
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        self.totals.copy_(state["totals"])


class GraphStep(Step):
    """Forward and backward of every full batch are one CUDA graph a padded length; other batches run eagerly.

    Clipping and the optimiser stay outside: they are a few fused kernels. The gradients keep their storage, which all
    graphs write. Not measured yet.
    """

    def __init__(self, *args):
        super().__init__(*args)
        self.graphs = {}
        self.pool = None

    def gradients(self, batch):
        shapes = tuple(None if t is None else t.shape for t in batch)
        if batch.tokens.shape[0] != self.settings["batch_size"]:
            self.zero_gradients()
            self.forward_backward(batch)
            return
        if shapes not in self.graphs:
            self.graphs[shapes] = self.capture(batch)
        graph, buffers = self.graphs[shapes]
        for buffer, value in zip(buffers, batch):
            if buffer is not None:
                buffer.copy_(value, non_blocking=True)
        graph.replay()

    def zero_gradients(self):
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        torch._foreach_zero_([p.grad for p in self.parameters])

    def capture(self, batch):
        """Records a graph for the shape of ``batch``. Leaves the generator and ``totals`` as they were: a continued run
        captures at other steps than an uninterrupted one and must compute the same.
        """
        buffers = type(batch)(*(None if t is None else t.clone() for t in batch))
        rng, totals = torch.cuda.get_rng_state(self.device), self.totals.clone()
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(3):  # libraries choose and allocate what a capture may not
                self.zero_gradients()
                self.forward_backward(buffers)
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            self.zero_gradients()
            self.forward_backward(buffers)
        self.pool = graph.pool()
        self.totals.copy_(totals)
        torch.cuda.set_rng_state(rng, self.device)
        return graph, buffers
