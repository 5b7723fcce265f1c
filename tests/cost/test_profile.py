"""Profiles: stock figures, the user's own files, and every mistake in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnic.cost import Crowded, DeviceProfile, load_link, load_profile
from dnic.cost.profile_file import profile_text, write_profile
from dnic.errors import SpecError

OWN = """
flops_per_s: 1.0e+12
bytes_per_s: 2.0e+11
overhead_us: 3
message_bytes_per_s: 1.0e+9
memory_bytes: 1073741824
link: {name: cable, bandwidth_bytes_per_s: 5.0e+8, latency_us: 7}
"""


DEVICES = ["cpu-core", "V100-32GB", "A100-40GB", "A100-80GB", "H100", "H100-PCIe", "H200", "T4"]
DEVICES += ["A10", "A10G", "L4", "L40S", "RTX-3090", "RTX-4090", "MI250X", "MI300X"]


@pytest.mark.parametrize("name", DEVICES)
def test_stock_profiles_load_and_say_where_they_come_from(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.source
    assert profile.link.source
    # Each does between 4 and 110 operations for a byte of memory traffic.
    assert 4 < profile.flops_per_s / profile.bytes_per_s < 110
    assert (profile.memory_bytes is None) == (name == "cpu-core")
    assert profile.crowded == Crowded()
    if profile.bf16_flops_per_s is not None:
        assert profile.bf16_flops_per_s > profile.flops_per_s


def test_published_figures() -> None:
    a100 = load_profile("A100-80GB")
    assert (a100.flops_per_s, a100.bytes_per_s) == (19.5e12, 2039e9)
    assert a100.memory_bytes == 80 * 2**30


def test_links_are_in_order_of_speed() -> None:
    names = ["wan-200ms", "wan-20ms", "1gbe", "10gbe", "loopback", "25gbe", "100gbe", "pcie3"]
    names += ["ib-hdr", "pcie4", "ib-ndr", "pcie5", "infinity-fabric", "nvlink2", "nvlink3"]
    names += ["nvlink4"]
    assert all(load_link(name).source for name in names)
    speeds = [load_link(name).bandwidth_bytes_per_s for name in names]
    assert speeds == sorted(speeds)
    assert load_link("1gbe").bandwidth_bytes_per_s == 125e6


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(OWN)
    profile = load_profile(str(path))
    assert (profile.name, profile.flops_per_s, profile.link.name) == ("mine", 1e12, "cable")
    assert profile.memory_bytes == 2**30
    path.write_text(OWN.replace("{name: cable,", "1gbe #"))
    assert load_profile(str(path)).link == load_link("1gbe")


def test_an_older_file_has_the_new_fields_at_their_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(OWN)
    profile = load_profile(str(path))
    assert profile.efficiency.conv == profile.crowded.memory == 1
    assert (profile.reduce_bytes_per_s, profile.reduce_latency_us) == (None, None)
    assert (profile.microbatch_us, profile.step_us) == (300, 30)


def test_a_written_profile_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    profile = load_profile("A100-80GB").model_copy(
        update={
            "source": "measured: here & now, 2 # 3",
            "crowded": Crowded(memory=1.3),
            "reduce_bytes_per_s": 7e8,
        }
    )
    write_profile(profile, path)
    assert load_profile(str(path)) == profile
    first, second, *_ = path.read_text().splitlines()
    assert "profile: mine.yaml" in first
    assert "measured: here & now" in second
    assert "threads" not in path.read_text(), "what is not known is left out"


def test_a_profile_that_cannot_be_written(tmp_path: Path) -> None:
    profile = load_profile("T4")
    with pytest.raises(SpecError, match=r"cannot be written to .*mine\.txt") as caught:
        write_profile(profile, tmp_path / "mine.txt")
    assert caught.value.expected == "a name in .yaml"
    with pytest.raises(SpecError, match="cannot be written"):
        write_profile(profile, tmp_path / "nowhere" / "mine.yaml")
    assert profile_text(profile, "T4").count("memory_bytes") == 1


@pytest.mark.parametrize(
    ("name", "hint"), [("a100-80", "A100-80GB"), ("CPU-core", "cpu-core"), ("quantum", None)]
)
def test_an_unknown_profile_names_the_nearest(name: str, hint: str | None) -> None:
    with pytest.raises(SpecError, match=f"no device profile is called '{name}'") as caught:
        load_profile(name)
    assert caught.value.hint == hint


def test_an_unknown_link_names_the_nearest() -> None:
    with pytest.raises(SpecError) as caught:
        load_link("10gb")
    assert caught.value.hint == "10gbe"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("overhead_us", "overhead_ms", "no key is called 'overhead_ms'"),
        ("flops_per_s: 1.0e+12", "flops_per_s: -1", "flops_per_s: Input should be greater than 0"),
        ("flops_per_s: 1.0e+12", "flops_per_s: .inf", "flops_per_s: Input should be a finite"),
        ("latency_us: 7", "latency: 7", "no key is called 'latency'"),
        ("memory_bytes: 1073741824", "memory_bytes: 0", "memory_bytes: Input should be greater"),
        ("bytes_per_s: 2.0e+11\n", "\n", "bytes_per_s: Field required"),
        ("link: {name: cable,", "link: nowhere #", "no link is called 'nowhere'"),
        ("overhead_us: 3", "overhead_us: 3\ncrowded: {memory: 0}", "crowded.memory: Input should"),
        ("overhead_us: 3", "overhead_us: 3\nefficiency: {con: 1}", "no key is called 'con'"),
        ("flops_per_s: 1.0e+12", "flops_per_s: [", "the profile is not valid YAML"),
        (OWN, "- 1\n- 2\n", "the profile is not a mapping"),
        (OWN, "", "the profile is not a mapping"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(OWN.replace(old, new, 1))
    with pytest.raises(SpecError, match=message):
        load_profile(str(path))


def test_a_mistyped_key_names_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(OWN.replace("overhead_us", "overhead_ms"))
    with pytest.raises(SpecError) as caught:
        load_profile(str(path))
    assert (caught.value.where, caught.value.hint) == (str(path), "overhead_us")


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(SpecError, match="the profile cannot be read"):
        load_profile("no/such/profile.yaml")


def test_the_roofline_takes_the_longer_of_both() -> None:
    profile = DeviceProfile(
        name="d",
        flops_per_s=1e9,
        bytes_per_s=1e6,
        overhead_us=2,
        message_bytes_per_s=1,
        link=load_link("1gbe"),
    )
    assert profile.busy_us(5000, 1) == 5
    assert profile.busy_us(5000, 10) == 10
    assert profile.operation_us(5000, 10) == 12
