"""Does a branch of the model depend on data? A second opinion on the capture, by other means.

Our capture records one run, and a recording cannot show what another batch would do. Here the model
runs on tensors without values: `torch.export` gives it fake ones, and a branch that needs a value
fails there and is named. Where export does not know what the model does, `torch.fx` runs it on
proxies, which refuse every branch.

What this cannot see: numbers from `random` or numpy; a branch that the model takes only outside of
export (`torch.compiler.is_exporting()`, which Hugging Face asks before it looks into a mask); with
fx, one behind `isinstance(x, Tensor)`. Only the first branch is found. Takes seconds for real
models, so it belongs to `dnic verify`, not to compiling.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import linecache
import logging
import sys
import sysconfig
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from dnic.trace import fresh, grown, seeded, untouched
from dnic.trace.frames import is_users
from dnic.trace.functions import READS_DATA
from dnic.trace.inputs import batch_size_of, mapped, tensors_by_path

# Asked of a tensor whose size depends on data, these two do as well.
_READS = READS_DATA | {"__len__", "__iter__"}
_LONGEST_REASON = 160
_PLAIN_CONTAINERS = (list, dict, set, OrderedDict)


@dataclass(frozen=True)
class CrossCheck:
    """What the second opinion is.

    Attributes:
        method: `torch.export` or `torch.fx`; both where neither could say anything.
        agrees: True when the model ran to its end so that no branch depends on data, False when
            one does, None when the model could not be run this way.
        detail: one line for people.
        branches: the lines that ask for data, as `file:line: code`; files relative to `sys.path`.
    """

    method: str
    agrees: bool | None
    detail: str
    branches: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "method": self.method,
            "agrees": self.agrees,
            "detail": self.detail,
            "branches": list(self.branches),
        }


def cross_check(
    model: nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
) -> CrossCheck:
    """Run a model without data, in train mode, the batch size left open.

    Nothing is printed, nothing is raised, and the model is left as it was.

    Args:
        model: any module.
        args: positional arguments of its forward, one batch along the first axis.
        kwargs: keyword arguments of its forward.
    """
    given = (tuple(args), dict(kwargs or {}))
    with _silent(), seeded(), torch.enable_grad(), untouched(model), _same_entries(model):
        model.train()
        exported = _by_export(model, *fresh(given))
        if exported.agrees is not None:
            return exported
        refusal = _by_fx(model, *fresh(given))
    if refusal is None:
        return CrossCheck(
            "torch.fx",
            True,
            f"torch.fx traces it; no branch outside of torch.nn depends on data "
            f"({exported.detail})",
        )
    return CrossCheck("torch.export, torch.fx", None, f"{exported.detail}; torch.fx: {refusal}")


class _Tensors(nn.Module):
    """The model, its output stripped to tensors: export refuses others, such as a cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        output = self.model(*args, **kwargs)
        return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _by_export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> CrossCheck:
    try:
        from torch.export import export

        given = _two_samples(args, kwargs)
        sizes = mapped(given, _free_batch)
        program = export(_Tensors(model), given, dynamic_shapes=sizes, strict=False)
    except Exception as error:  # noqa: BLE001 (whatever export cannot do, it is no verdict)
        return _verdict(error)
    nodes = len(program.graph.nodes)
    open_batch = any(
        isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None
        for node in program.graph.nodes
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor)
        for size in node.meta["val"].shape
    )
    batch = "any batch size" if open_batch else "this batch size only"
    return CrossCheck(
        "torch.export",
        True,
        f"torch.export follows it, no branch depends on data: {nodes} nodes, {batch}",
    )


def _two_samples(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs, of two samples at least: export takes a size of 1 for a constant."""
    batch = batch_size_of([args, kwargs])
    return grown((args, kwargs), batch) if batch < 2 else (args, kwargs)


def _free_batch(value: Any) -> Any:
    """What export is to think of an input's sizes: axis 0 may vary."""
    from torch.export import Dim

    return {0: Dim.AUTO} if isinstance(value, Tensor) and value.dim() else None


def _by_fx(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why torch.fx cannot trace the model; None when it can."""
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        constants = {
            name: value
            for name, value in bound.arguments.items()
            if not any(True for _ in tensors_by_path(value))
        }
        fx.Tracer().trace(model, concrete_args=constants)
    except Exception as error:  # noqa: BLE001 (whatever fx cannot do, it is no verdict)
        return _one_line(error)
    return None


def _verdict(error: Exception) -> CrossCheck:
    """What export's failure says."""
    for cause in _causes(error):
        if not _asks_for_data(cause):
            continue
        where = _asking_line(cause.__traceback__)
        if where is not None:
            return CrossCheck(
                "torch.export", False, f"control flow depends on data at {where}", (where,)
            )
    return CrossCheck("torch.export", None, f"torch.export: {_one_line(error)}")


def _asks_for_data(error: BaseException) -> bool:
    from torch._subclasses.fake_tensor import DataDependentOutputException
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return isinstance(error, DataDependentOutputException | GuardOnDataDependentSymNode)


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _asking_line(trace: TracebackType | None) -> str | None:
    """The innermost line of the model's code, if what it asks for is a value.

    None where a torch function asks on its own account: a size that follows the data is no branch.
    """
    found: TracebackType | None = None
    while trace is not None:
        if _is_models(trace.tb_frame.f_code.co_filename):
            found = trace
        trace = trace.tb_next
    if found is None or not _reads_value(found.tb_next):
        return None
    file = found.tb_frame.f_code.co_filename
    code = linecache.getline(file, found.tb_lineno).strip()
    return f"{_relative(file)}:{found.tb_lineno}: {code}"


def _is_models(file: str) -> bool:
    """Whether a file is the user's, or of a library that the model is made of."""
    standard = file.startswith(sysconfig.get_path("stdlib")) and "site-packages" not in file
    return is_users(file) and not standard and "sympy" not in Path(file).parts


def _reads_value(entered: TracebackType | None) -> bool:
    """Whether torch was entered by what hands a value to Python: `item`, `bool`, an iteration."""
    if entered is None:
        return False
    frame = entered.tb_frame
    called = getattr(frame.f_locals.get("func"), "__name__", "")
    return called in _READS or frame.f_code.co_name in _READS


def _relative(file: str) -> str:
    """A file as imports see it: the same on every machine."""
    path = Path(file).resolve()
    roots = [Path(entry).resolve() for entry in sys.path if entry and Path(entry).is_dir()]
    inside = [root for root in roots if path.is_relative_to(root)]
    if not inside:
        return file
    return path.relative_to(max(inside, key=lambda root: len(root.parts))).as_posix()


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """No warning, no log line and no print reaches the terminal: export is talkative."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _same_entries(model: nn.Module) -> Iterator[None]:
    """Lists, dictionaries and sets that modules hold get their old entries again.

    A fake tensor that is stored would stay; deeper structures are not looked into.
    """
    held = [
        (value, value.copy())
        for module in model.modules()
        for value in vars(module).values()
        if type(value) in _PLAIN_CONTAINERS
    ]
    try:
        yield
    finally:
        for value, entries in held:
            value.clear()
            value.extend(entries) if isinstance(value, list) else value.update(entries)
