"""σ-MoE on two gloo processes, which have different numbers of tokens, against one process with all of them."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support import regulariser
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from sysgen.nn import SigmaMoE

WORLD = 2
COUNTS = (5, 8)  # tokens of each process
GAMMA = 0.7  # large, so that a wrong gradient of the regulariser shows
WEIGHTS = (1.0, 3.0)  # of the regulariser in the losses of test_gradient_is_that_of_the_sum_of_losses

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")


def make_layer():
    torch.manual_seed(0)
    return SigmaMoE(6, 8, 4, 2, bias=True, dtype=torch.float64)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def share(t, rank):
    return t.split(COUNTS)[rank]


def train(model, x, scale):
    """Two steps of SGD; the loss is the sum over tokens times ``scale``, plus the regulariser."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        y, aux = model(x, return_aux=True)
        (y.square().sum() * scale + GAMMA * aux).backward()
        optimizer.step()
        losses.append(aux.item())
    return losses


def regularise(rank):
    logits = share(random(sum(COUNTS), 8), rank).requires_grad_()
    value = regulariser(logits)
    gradient = torch.autograd.grad(WEIGHTS[rank] * value, logits, create_graph=True)[0]
    direction = share(random(sum(COUNTS), 8, seed=1), rank)
    second = torch.autograd.grad((gradient * direction).sum(), logits)[0]
    return {"value": value.detach(), "gradient": gradient.detach(), "second": second}


def regularise_some(rank, rows):
    logits = random(rows, 8).requires_grad_()
    value = regulariser(logits)
    return {"value": value.detach(), "gradient": torch.autograd.grad(value, logits)[0]}


class Checkpointed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = make_layer()

    def forward(self, x, return_aux):
        return checkpoint(self.layer, x, return_aux, use_reentrant=False)


def distributed_data_parallel(rank, checkpointed):
    model = Checkpointed() if checkpointed else make_layer()
    layer = model.layer if checkpointed else model
    losses = train(DistributedDataParallel(model), share(random(sum(COUNTS), 6), rank), WORLD / sum(COUNTS))
    return {"losses": losses, "state": dict(layer.state_dict())}


def fully_sharded(rank):
    from torch.distributed.fsdp import fully_shard

    layer = make_layer()
    fully_shard(layer, mesh=init_device_mesh("cpu", (WORLD,)))
    losses = train(layer, share(random(sum(COUNTS), 6), rank), WORLD / sum(COUNTS))
    return {"losses": losses, "state": {n: p.full_tensor() for n, p in layer.state_dict().items()}}


def fully_sharded_from_meta(rank):
    from torch.distributed.fsdp import fully_shard

    layer = SigmaMoE(6, 8, 4, 2, device="meta", dtype=torch.float64)
    fully_shard(layer, mesh=init_device_mesh("cpu", (WORLD,)))
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    return {n: p.full_tensor() for n, p in layer.state_dict().items()}


def compiled(rank):
    layer = torch.compile(make_layer(), fullgraph=True, backend="aot_eager")
    y, aux = layer(share(random(sum(COUNTS), 6), rank), return_aux=True)
    (y.square().sum() + GAMMA * aux).backward()
    return {"aux": aux.detach(), "gradient": layer.expert_sel.grad}


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    results = {
        "regularise": regularise(rank),
        "one empty": regularise_some(rank, (0, 3)[rank]),
        "all empty": regularise_some(rank, 0),
        "ddp": distributed_data_parallel(rank, checkpointed=False),
        "ddp checkpointed": distributed_data_parallel(rank, checkpointed=True),
        "fsdp": fully_sharded(rank),
        "fsdp meta": fully_sharded_from_meta(rank),
        "compiled": compiled(rank),
    }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(work, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def test_regulariser_is_that_of_all_tokens(results):
    expected = regulariser(random(sum(COUNTS), 8))
    for rank in range(WORLD):
        torch.testing.assert_close(results[rank]["regularise"]["value"], expected)


def test_gradient_is_that_of_the_sum_of_losses(results):
    logits = random(sum(COUNTS), 8).requires_grad_()
    loss = sum(WEIGHTS) * regulariser(logits)
    gradient = torch.autograd.grad(loss, logits, create_graph=True)[0]
    second = torch.autograd.grad((gradient * random(sum(COUNTS), 8, seed=1)).sum(), logits)[0]
    for rank in range(WORLD):
        torch.testing.assert_close(results[rank]["regularise"]["gradient"], share(gradient, rank).detach())
        torch.testing.assert_close(results[rank]["regularise"]["second"], share(second, rank))


def test_process_without_tokens(results):
    logits = random(3, 8).requires_grad_()
    value = regulariser(logits)
    for rank in range(WORLD):
        torch.testing.assert_close(results[rank]["one empty"]["value"], value)
    gradient = WORLD * torch.autograd.grad(value, logits)[0]
    torch.testing.assert_close(results[1]["one empty"]["gradient"], gradient)
    assert results[0]["one empty"]["gradient"].shape == (0, 8)


def test_no_tokens_at_all(results):
    for rank in range(WORLD):
        assert results[rank]["all empty"]["value"] == 0


@pytest.mark.parametrize("kind", ["ddp", "ddp checkpointed", "fsdp"])
def test_training_equals_one_process(results, kind):
    layer = make_layer()
    losses = train(layer, random(sum(COUNTS), 6), 1 / sum(COUNTS))
    for rank in range(WORLD):
        torch.testing.assert_close(results[rank][kind]["losses"], losses)
        torch.testing.assert_close(results[rank][kind]["state"], dict(layer.state_dict()))


def test_sharded_layer_initialises_from_meta(results):
    for rank in range(WORLD):
        state = results[rank]["fsdp meta"]
        norms = state["expert_sel"].norm(dim=1)
        torch.testing.assert_close(norms, torch.full_like(norms, 2**0.5))
        assert state["keys"].std() > 0 and state["values"].isfinite().all()
        for name, p in results[0]["fsdp meta"].items():
            assert torch.equal(p, state[name])


def test_compiled(results):
    x = random(sum(COUNTS), 6)
    layer = make_layer()
    value = layer(x, return_aux=True)[1]
    for rank in range(WORLD):
        torch.testing.assert_close(results[rank]["compiled"]["aux"], value.detach())
        local = torch.autograd.grad(layer(share(x, rank)).square().sum(), layer.expert_sel)[0]
        logits = (x @ layer.expert_sel.detach().T).requires_grad_()
        gradient = torch.autograd.grad(regulariser(logits), logits)[0]
        through = WORLD * GAMMA * share(gradient, rank).T @ share(x, rank)
        torch.testing.assert_close(results[rank]["compiled"]["gradient"], local + through)
