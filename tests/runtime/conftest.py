"""Bundles written by hand: what the generator emits, for models small enough to read."""

from __future__ import annotations

import hashlib
import importlib.util
import multiprocessing
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from dnic.runtime.bundle import load_bundle, structure_digest
from dnic.runtime.loss import own_loss
from dnic.runtime.record import Record, read_record
from dnic.runtime.reference import Reference

TRAIN = '''"""Train the model in stages:  torchrun --standalone --nproc-per-node=N train.py"""

import model
import stages

from dnic import runtime


@runtime.entry
def main(worker: runtime.Worker) -> None:
    stage = worker.build(stages, model.build_model)
    optimizer = worker.optimizer(stage)
    trainer = worker.trainer(stage, optimizer, loss=model.loss)
    train_batches = worker.batches(model.train_data, shuffle=True)
    test_batches = worker.batches(model.test_data)

    for _ in trainer.epochs():
        trainer.train(train_batches)
        trainer.evaluate(test_batches)
        trainer.checkpoint()


if __name__ == "__main__":
    main()
'''

DATA = """

def loss(output, target):
    return F.cross_entropy(output, target)


def _data(samples, seed):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(5, (samples,), generator=generator)
    inputs = torch.randn(samples, *SHAPE, generator=generator)
    return TensorDataset(inputs + target.float().view(-1, *[1] * len(SHAPE)), target)


def train_data():
    return _data(100, 1)


def test_data():
    return _data(40, 2)
"""

MLP = (
    """import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

SHAPE = (12,)


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(12))
        self.register_buffer("offset", torch.zeros(12))
        self.layers = nn.ModuleList([nn.Linear(12, 32)] + [nn.Linear(32, 32) for _ in range(2)])
        self.drop = nn.Dropout(0.1)
        self.last = nn.Linear(32, 5)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = x * self.scale + self.offset
        for layer in self.layers:
            x = self.drop(torch.relu(layer(x)))
        return self.last(x)


build_model = MLP
"""
    + DATA
)

CONV = (
    """import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

SHAPE = (3, 6, 6)


def block(fan_in, fan_out):
    conv = nn.Conv2d(fan_in, fan_out, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(fan_out), nn.ReLU())


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(block(3, 8), block(8, 8), block(8, 8))
        self.last = nn.Linear(8, 5)

    def forward(self, x):
        return self.last(self.blocks(x).mean((2, 3)))


build_model = Conv
"""
    + DATA
)

SKIP = (
    """import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

SHAPE = (12,)


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(12, 16)
        self.left = nn.Linear(16, 16)
        self.right = nn.Linear(16, 16)
        self.last = nn.Linear(16, 5)
        self.copy = self.last

    def forward(self, x):
        stem = torch.relu(self.stem(x))
        positive = x.sum(1, keepdim=True) > 0
        left = torch.relu(self.left(stem))
        right = torch.relu(self.right(stem)) + left
        return self.last(torch.where(positive, right, right * 0.5) + stem)


build_model = Skip
"""
    + DATA
)

STAGES_HEAD = """import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnic import runtime

PLAN = "{digest}"

"""

MLP_TWO = """
class Stage0(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "scale", "offset", "layers.0", "layers.1", "drop")

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale + self.offset
        x = self.drop(torch.relu(self.layers[0](x)))
        return self.drop(torch.relu(self.layers[1](x)))


class Stage1(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "layers.2", "drop", "last")

    def forward(self, hidden: Tensor) -> Tensor:
        return self.last(self.drop(torch.relu(self.layers[2](hidden))))


STAGES = (Stage0, Stage1)
"""

MLP_THREE = """
class Stage0(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "scale", "offset", "layers.0", "drop")

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(torch.relu(self.layers[0](x * self.scale + self.offset)))


class Stage1(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "layers.1", "drop")

    def forward(self, first: Tensor) -> Tensor:
        return self.drop(torch.relu(self.layers[1](first)))


class Stage2(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "layers.2", "drop", "last")

    def forward(self, second: Tensor) -> Tensor:
        return self.last(self.drop(torch.relu(self.layers[2](second))))


STAGES = (Stage0, Stage1, Stage2)
"""

MLP_FOUR = """
class Stage0(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "scale", "offset", "layers.0", "drop")

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(torch.relu(self.layers[0](x * self.scale + self.offset)))


class Stage1(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "layers.1", "drop")

    def forward(self, first: Tensor) -> Tensor:
        return self.drop(torch.relu(self.layers[1](first)))


class Stage2(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "layers.2", "drop")

    def forward(self, second: Tensor) -> Tensor:
        return self.drop(torch.relu(self.layers[2](second)))


class Stage3(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "last")

    def forward(self, third: Tensor) -> Tensor:
        return self.last(third)


STAGES = (Stage0, Stage1, Stage2, Stage3)
"""

CONV_TWO = """
class Stage0(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "blocks.0", "blocks.1")

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[1](self.blocks[0](x))


class Stage1(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "blocks.2", "last")

    def forward(self, hidden: Tensor) -> Tensor:
        return self.last(self.blocks[2](hidden).mean((2, 3)))


STAGES = (Stage0, Stage1)
"""

SKIP_THREE = """
class Stage0(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "stem")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(self.stem(x)), x.sum(1, keepdim=True) > 0


class Stage1(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "left", "right")

    def forward(self, stem: Tensor) -> Tensor:
        left = torch.relu(self.left(stem))
        return torch.relu(self.right(stem)) + left


class Stage2(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "last")

    def forward(self, right: Tensor, positive: Tensor, stem: Tensor) -> Tensor:
        return self.last(torch.where(positive, right, right * 0.5) + stem)


STAGES = (Stage0, Stage1, Stage2)
"""


def tensor(name: str, *shape: Any, dtype: str = "float32", grad: bool = True) -> dict[str, Any]:
    return {"name": name, "shape": ["B", *shape], "dtype": dtype, "differentiable": grad}


def stage(index: int, inputs: list[str], outputs: list[str], *modules: str) -> dict[str, Any]:
    return {
        "name": f"stage{index}",
        "inputs": inputs,
        "outputs": outputs,
        "modules": list(modules),
        "operations": [{"name": name.replace(".", "_")} for name in modules],
    }


def interface(source: int, to: int, *tensors: dict[str, Any], **keys: Any) -> dict[str, Any]:
    head = {"hidden_layers": 1, "width": 8, "context": "target", "lr": 1e-3}
    return {
        "name": f"cut{source}{to}",
        "from": source,
        "to": to,
        "tensors": list(tensors),
        "gradient": "synthetic",
        "head": head,
        "window": 2,
        "warmup_steps": 0,
        "guard": False,  # else hardly a run here would be long enough for a head to be used
    } | keys


MLP4_NAMES = ("x", "first", "second", "third", "output")
MLP4_PARTS = ("layers.0", "layers.1", "layers.2", "last")

KINDS: dict[str, tuple[str, str, list[dict[str, Any]], list[dict[str, Any]]]] = {
    "mlp2": (
        MLP,
        MLP_TWO,
        [stage(0, ["x"], ["hidden"], "layers.0"), stage(1, ["hidden"], ["output"], "last")],
        [interface(0, 1, tensor("hidden", 32))],
    ),
    "mlp3": (
        MLP,
        MLP_THREE,
        [
            stage(0, ["x"], ["first"], "layers.0"),
            stage(1, ["first"], ["second"], "layers.1"),
            stage(2, ["second"], ["output"], "last"),
        ],
        [interface(0, 1, tensor("first", 32)), interface(1, 2, tensor("second", 32))],
    ),
    "mlp4": (
        MLP,
        MLP_FOUR,
        [stage(k, [MLP4_NAMES[k]], [MLP4_NAMES[k + 1]], part) for k, part in enumerate(MLP4_PARTS)],
        [interface(k, k + 1, tensor(MLP4_NAMES[k + 1], 32)) for k in range(3)],
    ),
    "conv2": (
        CONV,
        CONV_TWO,
        [stage(0, ["x"], ["hidden"], "blocks.0"), stage(1, ["hidden"], ["output"], "last")],
        [interface(0, 1, tensor("hidden", 8, 6, 6))],
    ),
    "skip3": (
        SKIP,
        SKIP_THREE,
        [
            stage(0, ["x"], ["stem", "positive"], "stem"),
            stage(1, ["stem"], ["right"], "left", "right"),
            stage(2, ["right", "positive", "stem"], ["output"], "last"),
        ],
        [
            interface(0, 1, tensor("stem", 16)),
            interface(0, 2, tensor("positive", 1, dtype="bool", grad=False), tensor("stem", 16)),
            interface(1, 2, tensor("right", 16)),
        ],
    ),
}


def load_module(path: Path) -> Any:
    """Imports a file of a bundle under a name of its own."""
    name = f"bundle_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def write_plan(folder: Path, plan: dict[str, Any]) -> None:
    files = ("stages.py", "model.py", "init.safetensors")
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan | {"files": sums}, sort_keys=False))


def write_bundle(
    folder: Path,
    kind: str | tuple[str, str, list[dict[str, Any]], list[dict[str, Any]]],
    *,
    window: int = 2,
    edit: Callable[[str, str], str] = lambda name, text: text,
    model_keys: dict[str, Any] | None = None,
    plan_keys: dict[str, Any] | None = None,
    **interface_keys: Any,
) -> Path:
    """Writes a bundle; `edit(name, text)` may change `model.py`, `stages.py` and `train.py`.

    `kind` is one of the above, or the texts and plan rows of another; further keys of the plan, of
    its model and of all interfaces may be given.
    """
    model_text, stages_text, stages, interfaces = KINDS[kind] if isinstance(kind, str) else kind
    plan: dict[str, Any] = {
        "dnic": "0",
        "model": {"name": kind if isinstance(kind, str) else "own", **(model_keys or {})},
        "train": {
            "batch_size": 16,
            "epochs": 2,
            "optimizer": {"name": "AdamW", "options": {"lr": 3e-3}},
            "seed": 3,
        },
        "target": {"shape": ["B"], "dtype": "int64", "classes": 5},
        "stages": stages,
        "interfaces": [row | {"window": window} | interface_keys for row in interfaces],
    } | (plan_keys or {})
    folder.mkdir(parents=True, exist_ok=True)
    head = STAGES_HEAD.format(digest=structure_digest(plan))
    (folder / "model.py").write_text(edit("model.py", model_text))
    (folder / "stages.py").write_text(edit("stages.py", head + stages_text))
    (folder / "train.py").write_text(edit("train.py", TRAIN))
    torch.manual_seed(11)
    model = load_module(folder / "model.py").build_model()
    tensors = {id(t): name for name, t in reversed(model.state_dict(keep_vars=True).items())}
    state = model.state_dict()
    save_file({name: state[name] for name in tensors.values()}, folder / "init.safetensors")
    write_plan(folder, plan)
    return folder


RANK_CODE = """
import os, runpy, sys
os.environ.update(environment)
sys.argv = [script, *arguments]
sys.path.insert(0, os.path.dirname(script))
runpy.run_path(script, run_name="__main__")
"""


def run_ranks(
    folder: Path,
    processes: int,
    *arguments: str,
    fails: bool = False,
    timeout_s: float = 120,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> list[int]:
    """Runs a bundle's train.py in real processes that are forked from one that has torch loaded.

    What torchrun does, without the seconds that every start of Python and torch takes. Returns
    the exit statuses; without `fails` all must be 0. `variables` are put into the environment.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["dnic.runtime", "dnic.runtime.backprop", "torch._dynamo", "torch.distributed.checkpoint"]
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(processes):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "DNIC_PROGRESS": "none",
            **variables,
        }
        names = {
            "environment": environment,
            "script": str(folder / "train.py"),
            "arguments": ["--timeout=60", *arguments],
        }
        ranks.append(context.Process(target=exec, args=(RANK_CODE, names)))
        ranks[-1].start()
    deadline = time.monotonic() + timeout_s
    try:
        for process in ranks:
            process.join(max(0.1, deadline - time.monotonic()))
        statuses = [process.exitcode for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.join()
    assert fails or statuses == [0] * processes
    return statuses


def reference(folder: Path, **options: Any) -> Reference:
    """The same bundle in this process."""
    model, stages = load_module(folder / "model.py"), load_module(folder / "stages.py")
    loss = getattr(model, "loss", own_loss)
    return Reference(
        load_bundle(folder), stages, model.build_model, loss, model.train_data, **options
    )


def same(run: Record, other: Record) -> bool:
    """Whether two runs computed the same bits."""
    assert run.losses and run.parameters.keys() == other.parameters.keys()
    return (
        run.losses == other.losses
        and all(torch.equal(run.parameters[n], other.parameters[n]) for n in run.parameters)
        and run.heads.keys() == other.heads.keys()
        and all(torch.equal(run.heads[n], other.heads[n]) for n in run.heads)
    )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums over several threads round differently; the ranks have one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


@pytest.fixture
def bundle(tmp_path: Path) -> Callable[..., Path]:
    """Writes a bundle of a kind into a folder of its own."""

    def make(kind: str, **options: Any) -> Path:
        return write_bundle(tmp_path / "bundle", kind, **options)

    return make


@pytest.fixture(name="run_ranks")
def _run_ranks() -> Callable[..., list[int]]:
    return run_ranks


@pytest.fixture
def rows() -> SimpleNamespace:
    """What the rows of a plan are made with."""
    return SimpleNamespace(tensor=tensor, stage=stage, interface=interface)


@pytest.fixture
def kinds() -> dict[str, Any]:
    """The texts and plan rows of the bundles that `bundle` writes, by kind."""
    return dict(KINDS)


@pytest.fixture(name="reference")
def _reference() -> Callable[..., Reference]:
    return reference


@pytest.fixture
def as_reference(tmp_path: Path) -> Callable[[Path, int], Record]:
    """What so many processes and the reference both compute of a bundle: the same bits."""

    def run(folder: Path, processes: int) -> Record:
        run_ranks(folder, processes, f"--record={tmp_path / 'record'}")
        record = read_record(tmp_path / "record")
        assert same(record, reference(folder).run())
        return record

    return run


@pytest.fixture(name="load_module")
def _load_module() -> Callable[[Path], Any]:
    return load_module


@pytest.fixture(name="same")
def _same() -> Callable[[Record, Record], bool]:
    return same


@pytest.fixture
def recorded() -> Any:
    """The module `recorded_cuda`: a GPU that exists only in what is ordered."""
    return load_module(Path(__file__).with_name("recorded_cuda.py"))
