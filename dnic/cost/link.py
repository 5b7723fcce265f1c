"""What sending a tensor costs: the link's time, and the time that the two devices lose to it."""

from __future__ import annotations

from dnic.cost.profile import DeviceProfile, Link


def occupancy_us(nbytes: int, link: Link) -> float:
    """Microseconds for which `nbytes` keep the link busy, one way."""
    return nbytes / link.bandwidth_bytes_per_s * 1e6


def transfer_us(nbytes: int, link: Link) -> float:
    """Microseconds from sending to having received `nbytes`: latency and occupancy."""
    return link.latency_us + occupancy_us(nbytes, link)


def message_us(nbytes: int, profile: DeviceProfile) -> float:
    """Microseconds that a device spends on sending or receiving `nbytes`, lost to computing."""
    if nbytes == 0:
        return 0.0
    return profile.overhead_us + nbytes / profile.message_bytes_per_s * 1e6
