"""Two hosts behind a slow link, torchrun's own rendezvous: the same bits as on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dnic.bench.hosts import hosts_behind
from dnic.bench.linkspec import LinkSpec
from dnic.bench.namespaces import unavailable
from dnic.runtime.launch import RankFault
from dnic.runtime.record import read_record
from tests.runtime.conftest import run_ranks, same, write_bundle

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]

LINK = LinkSpec(delay_us=5_000.0, rate_bytes_per_s=12.5e6)


def test_two_hosts_train_to_the_same_bits_as_loopback(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", "conv2", warmup_steps=2)
    run_ranks(folder, 2, f"--record={tmp_path / 'here'}", f"--out={tmp_path / 'run'}")
    with hosts_behind(LINK, 2) as hosts:
        hosts.launch(
            folder,
            mode="decoupled",
            out=tmp_path / "far",
            extra=[f"--record={tmp_path / 'there'}", "--timeout=60"],
        )
        moved = hosts.relay_figures()
    here, there = read_record(tmp_path / "here"), read_record(tmp_path / "there")
    assert len(there.losses) == 14
    assert same(there, here)
    # The tensors did go through the relay: 100 samples of 8 x 6 x 6 float32 there and back, twice.
    sent = json.loads((tmp_path / "far" / "result.json").read_text())["sent_bytes"]
    assert min(sent) >= 100 * 8 * 6 * 6 * 4
    assert moved["bytes"] >= 2 * sum(sent)


def test_a_rank_that_fails_far_away_is_reported(tmp_path: Path) -> None:
    def edit(name: str, text: str) -> str:
        failing = "        raise ValueError('far away')\n"
        signature = "def forward(self, hidden: Tensor) -> Tensor:\n"
        return text.replace(signature, signature + failing) if name == "stages.py" else text

    folder = write_bundle(tmp_path / "bundle", "mlp2", edit=edit)
    with hosts_behind(LINK, 2) as hosts, pytest.raises(RankFault) as caught:
        hosts.launch(folder, mode="decoupled", out=tmp_path / "far", extra=["--timeout=60"])
    assert caught.value.rank == 1
    assert "ValueError: far away" in caught.value.report
