"""How fast every way to train is, on this machine and over slow links: what `dnic bench` shows.

    python -m studies.benching [--rounds 5] [--only mlp] [--links loopback,20ms-1gbit] [--again]

Three models (eight linear layers of 1024, batch 256; eight encoder layers of 256 over 64 positions,
batch 16; eight blocks of 64 channels at 32 x 32, batch 32) are compiled for each link, as a user
would, and every way is measured in turns, one core for each rank. Writes docs/bench.json,
docs/bench.md and docs/bench.svg after every case; what is there already is not measured again but
with --again. Needs root for the links, two cores, and a machine that does nothing else.
"""

from __future__ import annotations

import json
import os
import platform
from argparse import ArgumentParser
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from dnic import __version__
from dnic.bench.linkspec import parse_link
from dnic.bench.rounds import bench
from dnic.compiler import compile_model
from dnic.report import bench_table
from dnic.spec import spec_from_mapping
from studies.benching_page import page
from studies.benching_plot import plot
from studies.process import ROOT

# Of the prediction study the models of its size 2, which are those described above; its mlp has a
# first layer of a quarter, which no cut divides evenly.
MODELS: Mapping[str, str] = {
    "mlp": "benched/mlp.py",
    "transformer": "predicted/transformer.py",
    "conv": "predicted/conv.py",
}
FAMILIES = tuple(MODELS)
SIZE = "2"
# As `dnic bench --link` has them, and as a spec has them.
LINKS: Mapping[str, tuple[str | None, dict[str, str] | None]] = {
    "loopback": (None, None),
    "5ms-1gbit": ("delay=5ms,rate=1gbit", {"latency": "5ms", "bandwidth": "1Gbit/s"}),
    "20ms-1gbit": ("delay=20ms,rate=1gbit", {"latency": "20ms", "bandwidth": "1Gbit/s"}),
    "5ms-100mbit": ("delay=5ms,rate=100mbit", {"latency": "5ms", "bandwidth": "100Mbit/s"}),
}
FEWEST_ROUNDS = 5


def spec_of(family: str, link: str) -> Any:
    """The spec of one case: two decoupled stages with synthetic heads; else as it comes."""
    devices: dict[str, Any] = {"count": 2}
    _, default = LINKS[link]
    if default is not None:
        devices["links"] = {"default": default}
    return spec_from_mapping(
        {
            "model": {"file": str(ROOT / "studies" / MODELS[family])},
            "train": {"optimizer": {"name": "SGD", "lr": 0.01}, "epochs": 1},
            "devices": devices,
            "partition": {"schedule": "decoupled"},
            "interfaces": {"default": {"sources": ["synthetic"]}},
        },
        "studies.benching",
    )


def case(family: str, link: str, rounds: int, console: Console) -> dict[str, Any]:
    """Compile a model for a link and measure it."""
    os.environ["DNIC_SIZE"] = SIZE
    typed, _ = LINKS[link]
    with (
        TemporaryDirectory(prefix="dnic-study-") as folder,
        console.status(f"{family}, {link}: compiling") as status,
    ):
        planned, _ = compile_model(spec_of(family, link), Path(folder) / "bundle")
        result = bench(
            Path(folder) / "bundle",
            link=None if typed is None else parse_link(typed),
            rounds=rounds,
            progress=lambda what: status.update(f"{family}, {link}: {what}"),
        )
    console.print(bench_table(result))
    cut = planned.plan.interfaces[0]
    return {
        "family": family,
        "link_name": link,
        "date": datetime.now(UTC).date().isoformat(),
        "load_after": round(os.getloadavg()[0], 2),
        "window": cut.window,
        "head_width": cut.head.width if cut.head is not None else None,
        "predicted": [
            {"mode": a.mode, "name": a.name, "microbatches": a.microbatches, "step_us": a.step_us}
            for a in planned.plan.prediction.alternatives
            if not a.unfit
        ],
        **result,
    }


def main() -> None:
    """Run what is missing and write the files."""
    parser = ArgumentParser(prog="python -m studies.benching")
    parser.add_argument("--rounds", type=int, default=FEWEST_ROUNDS)
    parser.add_argument("--only", default=",".join(FAMILIES))
    parser.add_argument("--links", default=",".join(LINKS))
    parser.add_argument("--again", action="store_true", help="measure what is there again")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="default: docs")
    asked = parser.parse_args()
    console = Console()
    cases = {} if not (asked.out / "bench.json").exists() else earlier(asked.out)
    for link in asked.links.split(","):
        for family in asked.only.split(","):
            if (family, link) in cases and not asked.again:
                continue
            cases[family, link] = case(family, link, asked.rounds, console)
            write(asked.out, cases)
    write(asked.out, cases)


def earlier(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The cases of the last study."""
    content = json.loads((folder / "bench.json").read_text())
    return {(entry["family"], entry["link_name"]): entry for entry in content["cases"]}


def write(folder: Path, cases: Mapping[tuple[str, str], dict[str, Any]]) -> None:
    """All files, with what there is so far."""
    ordered = [cases[f, link] for link in LINKS for f in FAMILIES if (f, link) in cases]
    content = {
        "command": "python -m studies.benching",
        "dnic": __version__,
        "torch": version("torch"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "cases": ordered,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "bench.md").write_text(page(content))
    (folder / "bench.svg").write_text(plot(content))


if __name__ == "__main__":
    main()
