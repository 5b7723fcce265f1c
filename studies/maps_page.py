"""The words of docs/maps.md, with numbers taken from what was computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Rows and columns of the tables: stages of these times, links of these delays.
TIMES = ((1e3, "1 ms"), (1e4, "10 ms"), (1e5, "100 ms"), (1e6, "1 s"))
DELAYS = ((10.0, "10 us"), (1e3, "1 ms"), (1e4, "10 ms"), (1e5, "100 ms"))
COUNTS = (2, 8, 64, 512, 4096)


def page(content: dict[str, Any]) -> str:
    """The text of docs/maps.md."""
    parts = [_head(content), _rules(content), _stage_map(content), _depth_map(content)]
    return "\n\n".join([*parts, _links(content), _limits()]) + "\n"


def _head(content: dict[str, Any]) -> str:
    return (
        "# Where decoupling pays: maps\n\n"
        f"`{content['command']}`, {content['date'][:10]}: dnic {content['dnic']}, Python "
        f"{content['python']}. All of it is computed by the schedule model (`dnic.schedule`); "
        "nothing here was run. Every point, with the way that won, is in `maps.json`."
    )


def _rules(content: dict[str, Any]) -> str:
    windows = ", ".join(map(str, content["windows"]))
    samples = content["samples"]
    return f"""## How to read them

The colour is the samples per second of decoupled training divided by those of the best exact
way, at the same batch of {samples} samples and on at most the same number of devices. Blue:
decoupling is faster. Orange: it is slower. Grey-white: within 5%. The black line is 1. The lower
row says which exact way was the best one.

- **Exact ways**: one device, data parallel, naive model parallel, GPipe, 1F1B, interleaved 1F1B
  with two chunks, and pipelines with data parallel replicas; with any power of two of devices
  (fewer than all are allowed), replicas and microbatches; where memory is limited also with
  activations recomputed. No sample is divided.
- **Decoupled**: any power of two of stages and replicas; a synthetic gradient at every cut; the
  smallest window of {windows} that is within 1% of the largest. The head's cost is in the step.
- In favour of exact training: receives are posted ahead, sending waits for nobody, an all-reduce
  hides behind the whole backward pass, and 1F1B and large interleaved pipelines are taken at a
  lower bound.
- Not among the exact ways: splitting single operations (tensor parallel), zero-bubble
  schedules."""


def _stage_map(content: dict[str, Any]) -> str:
    a = content["abstract"]
    tables = []
    for name, rows in content["stage_map"]["panels"].items():
        head = f"| {name} stages, each | " + " | ".join(label for _, label in DELAYS) + " |"
        lines = [head, "|---" * (len(DELAYS) + 1) + "|"]
        for time, label in TIMES:
            row = rows[_nearest(content["stage_map"]["stage_us"], time)]
            cells = [_cell(row[_nearest(content["stage_map"]["delays_us"], d)]) for d, _ in DELAYS]
            lines.append(f"| {label} | " + " | ".join(cells) + " |")
        tables.append("\n".join(lines))
    return (
        "## By stage time and link delay\n\n"
        "![speedup by stage time and delay](maps-stage.svg)\n\n"
        f"A stage's time is a third forward, two thirds back, {a['update_share']:.0%} update. At "
        f"{a['bandwidth_bytes_per_s'] / 1e9:g} GB/s a transfer of the activation takes "
        f"{a['transfer_share']:.0%} of it, and moving the stage's gradients once "
        f"{a['gradient_share']:.0%}: what a transformer block of width 4,096 has with 8,192 tokens "
        f"where it takes a second. **A head costs {a['head_share']:.0%} of the stage's time and "
        f"{a['fixed_us']:g} us.** A step of the loop and each pass of a microbatch cost "
        f"{a['fixed_us']:g} us more, each end of a message 10 us. Memory is not limited.\n\n"
        + "\n\n".join(tables)
        + "\n\nDecoupling wins in a band from the bottom left to the top right, and how much it "
        "wins there grows with the number of stages. "
        "**Top left** (long stages, short delays): pipelines fill their devices with microbatches; "
        "what is left to gain is their bubble, less the heads. "
        "**Left, further down**: what each microbatch costs by itself keeps pipelines from filling "
        "their devices. "
        "**Along the diagonal**: a pipeline pays the delay many times in each step, a decoupled "
        "stage not at all while the window covers the round trip. "
        "**Bottom right** (stages much shorter than the delay): the largest window does not cover "
        "the link, and one device is best. The line between lies about where a round trip takes "
        "`stages x (window + 1)` stage times."
    )


def _depth_map(content: dict[str, Any]) -> str:
    block, head = content["transformer"]["block"], content["transformer"]["head_us"]
    device = content["device"]
    step_us = block["forward_us"] + block["backward_us"] + block["update_us"]
    head_us = head["predict"] + head["learn"]
    return (
        "## By number of stages and link delay\n\n"
        "![speedup by number of stages and delay](maps-depth.svg)\n\n"
        f"A model of as many transformer blocks as devices: GPT-2 medium's block (width 1,024), "
        f"{content['samples']} sequences of 1,024 tokens, float32, on {device['name']} at its "
        f"published peak ({device['flops_per_s'] / 1e12:g} TFLOP/s without tensor cores, "
        f"{device['bytes_per_s'] / 1e12:.3g} TB/s, {device['overhead_us']:g} us to launch an "
        f"operation). One block takes {step_us / 1e3:.1f} ms a step and keeps "
        f"{block['activation_bytes'] / 2**30:.1f} GiB of activations; 134 MB cross each cut each "
        f"way. **A head (low rank, width 64) takes {head_us / 1e3:.2f} ms, "
        f"{head_us / step_us:.1%} of that.** What does not fit into "
        f"{device['memory_bytes'] / 2**30:.0f} GiB is left out.\n\n"
        "Over fast links and on fewer devices than samples, data parallel is as fast as "
        "decoupling: within 5%. Over 1 Gb/s a transfer takes seven times as long as a block: a few "
        "blocks are best trained on one device, and decoupling only keeps the link busy. "
        "Upwards the number of stages decides more than the delay, because the batch is fixed and "
        f"no sample is divided: with {content['samples']} samples exact training has at most "
        f"{content['samples']} devices at work at any time, whatever the link. Whether the batch "
        "may grow instead is a question of learning; the next picture shows both answers."
    )


def _links(content: dict[str, Any]) -> str:
    stages, tables = content["links"]["stages"], []
    titles = {
        "same_batch": f"both with {content['samples']} samples",
        "larger_batch": f"exact with up to {content['free_samples_per_device']} a device",
    }
    for key, title in titles.items():
        lines = [
            f"| {title} | " + " | ".join(f"{n:,} stages" for n in COUNTS) + " |",
            "|---" * (len(COUNTS) + 1) + "|",
        ]
        for name, row in content["links"][key].items():
            cells = " | ".join(_cell(row[stages.index(n)]) for n in COUNTS)
            lines.append(f"| {name} | {cells} |")
        tables.append("\n".join(lines))
    return (
        "## On links that exist\n\n"
        "![speedup by number of stages](maps-links.svg)\n\n"
        "The same blocks. On the left both sides train with "
        f"{content['samples']} samples; on the right exact training may take "
        f"up to {content['free_samples_per_device']} samples a device in each batch, decoupled "
        f"training keeps its {content['samples']}, and samples per second are compared.\n\n"
        + "\n\n".join(tables)
        + "\n\nWith a batch that grows with the number of devices, exact pipelines over fast links "
        "lose little, and decoupling gains little or nothing: the heads cost about what the bubble "
        "does. Over the thin, long link it even loses from some hundred devices on: exact training "
        "averages gradients once for many samples and so can afford replicas, each with a link of "
        "its own. What is left for decoupling are links with delay but bandwidth, models whose "
        "batch cannot grow, and models so deep that the microbatches that would fill a pipeline do "
        "not fit into memory."
    )


def _limits() -> str:
    return """## What they do not say

- **Nothing about learning.** A step with synthetic gradients is not worth as much as an exact one;
  how much less depends on the head and grows with the number of cuts. Hundreds of decoupled cuts
  in one model have not been trained by anybody that we know of. The maps say what there is to gain
  in time, and so how many more steps decoupled training may need before it loses.
- Links do not share switches, nothing is lost or varies, and devices are equal.
- Published peaks make stages short. A program that reaches half of them has stages of twice the
  time: a third of a decade up in the first map.
- A link of 200 ms has its full bandwidth: protocols whose window does not fill such a link do
  worse, all ways alike."""


def _cell(entry: dict[str, Any]) -> str:
    if entry["speedup"] is None:
        return "-"
    return f"{entry['speedup']:.2f}" if entry["speedup"] < 10 else f"{entry['speedup']:.0f}"


def _nearest(values: Sequence[float], wanted: float) -> int:
    return min(range(len(values)), key=lambda i: abs(values[i] / wanted - 1))
