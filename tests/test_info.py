"""``python -m sysgen.info``: what it prints is what the core and torch say."""

import json

import torch
from support import python

from sysgen import ops
from sysgen._load import core


def info(*arguments, **environment):
    return python("-m", "sysgen.info", *arguments, **environment).stdout


def test_json():
    printed = json.loads(info("--json", SYSGEN_CPU_ISA="base"))
    assert printed["sysgen"] == core.version
    assert printed["cpu instruction sets"] == core.cpu_isas()
    assert printed["cpu instruction set in use"] == "base"
    assert printed["torch"] == torch.__version__
    assert printed["environment"]["SYSGEN_CPU_ISA"] == "base"
    assert len(printed["gpus"]) == torch.cuda.device_count()
    functions = {name for name in ops.__all__ if not isinstance(getattr(ops, name), type)}
    assert set(printed["operations"]) == functions
    for backends in printed["operations"].values():
        assert set(backends) == {"cpu", "cuda", "reference"}
        assert backends["cpu"] == "yes (base)"
        if not torch.cuda.is_available():
            assert backends["cuda"].startswith("no: ") and len(backends["cuda"]) > 10


def test_text_names_every_operation_and_its_backends():
    text = info()
    for expected in (core.version, core.__file__, torch.__version__, core.cpu_isas()[-1], "moe_ffn", "reference"):
        assert expected in text
    assert sum(line.split()[-2:] == ["reference", "yes"] for line in text.splitlines()) == 3
