"""A program of a study in a process of its own: fresh, offline, for a bounded time and memory.

A model that crashes, hangs or eats all memory must not end a study. The program appends a line of
JSON to a file for each result, so that what it had before it died is kept.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
MEMORY_BYTES = 8 * 2**30
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def results_of(
    program: str, *arguments: str, seconds: float
) -> tuple[list[dict[str, Any]], str | None]:
    """Run `python -m PROGRAM FILE ARGUMENTS`.

    Returns:
        What it wrote with `append`, and its last words if it did not end well.
    """
    with tempfile.TemporaryDirectory(prefix="dnic-study-") as temporary:
        output = Path(temporary) / "results.jsonl"
        output.touch()
        words = _words([sys.executable, "-m", program, str(output), *arguments], seconds)
        lines = portable(output.read_text("utf-8")).splitlines()
        return [json.loads(line) for line in lines], words and portable(words)


def append(output: str, result: Any) -> None:
    """Add a result, a dataclass or a mapping, to the file that the program was given."""
    content = result if isinstance(result, Mapping) else asdict(result)
    with Path(output).open("a", encoding="utf-8") as file:
        file.write(json.dumps(content) + "\n")


def portable(text: str) -> str:
    """Paths within packages and within this project, without the folders of this machine."""
    for folder in (sysconfig.get_path("purelib"), str(ROOT)):
        text = text.replace(f"{folder}/", "")
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/dnic-study-[^/]+/", "", text)


def _words(command: list[str], seconds: float) -> str | None:
    try:
        ended = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | OFFLINE,
            preexec_fn=_bounded,
            timeout=seconds,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {seconds:.0f} s"
    if ended.returncode == 0:
        return None
    lines = ended.stderr.strip().splitlines()
    return lines[-1] if lines else f"ended with status {ended.returncode}"


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
