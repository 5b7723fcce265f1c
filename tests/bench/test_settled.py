"""The copy that is measured: no warm-up, the same files otherwise."""

from __future__ import annotations

from pathlib import Path

import yaml

from dnic.bench.settled import settled
from dnic.runtime.bundle import load_bundle
from tests.runtime.conftest import write_bundle


def test_the_copy_does_not_warm_up(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", "mlp3", warmup_steps=200)
    (bundle / "runs").mkdir()
    (bundle / "data.bin").write_bytes(b"data")
    copy = settled(bundle, tmp_path / "copy")
    assert [i.warmup_steps for i in load_bundle(copy).plan.interfaces] == [0, 0]
    assert [i.guard for i in load_bundle(copy).plan.interfaces] == [None, None]
    assert [i.warmup_steps for i in load_bundle(bundle).plan.interfaces] == [200, 200]
    assert (copy / "init.safetensors").is_symlink() and not (copy / "train.py").is_symlink()
    assert (copy / "data.bin").read_bytes() == b"data"
    assert not (copy / "runs").exists()
    before, after = (yaml.safe_load((f / "plan.yaml").read_text()) for f in (bundle, copy))
    for interface in before["interfaces"]:
        interface["warmup_steps"] = 0
        interface["guard"] = False
    assert after == before
