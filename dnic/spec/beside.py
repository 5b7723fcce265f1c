"""What a model file has imported from its own folder, for the bundle that holds a copy of it.

Single files only: a package of one's own has to be installed where the bundle trains.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dnic.errors import SpecError

# What a bundle calls its own files.
TAKEN = ("stages.py", "train.py", "model.py")


def imported_beside(model_file: Path) -> dict[str, bytes]:
    """Name and content of every file beside the model file that has been imported.

    Raises:
        SpecError: one is called like a file that a bundle has of its own.
    """
    folder, found = model_file.resolve().parent, {}
    for name, module in sorted(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        path = Path(origin) if isinstance(origin, str) else None
        if path is None or path.stem != name or path.resolve().parent != folder:
            continue
        if path.resolve() == model_file.resolve():
            continue
        if path.name in TAKEN:
            raise SpecError(
                f"the model file imports {path.name}, which a bundle has of its own",
                where=str(model_file),
                expected=f"any name but {', '.join(TAKEN)}",
            )
        found[path.name] = path.read_bytes()
    return found
