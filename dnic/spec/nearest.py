"""The nearest known word to one that a person mistyped: difflib, ignoring case.

difflib alone misses `adamw` for `AdamW`, which is the commonest slip. Words that resemble nothing
get no suggestion: a wrong one is worse than none.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The known word that `word` most resembles; None when it resembles none."""
    if not isinstance(word, str):
        return None
    by_folded = {name.casefold(): name for name in known}
    found = get_close_matches(word.casefold(), by_folded, n=1)
    return by_folded[found[0]] if found else None
