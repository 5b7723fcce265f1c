"""Gradients that may come, counted from what has been sent."""

from __future__ import annotations

from typing import Any

from dnic.runtime.answers import Answers
from dnic.runtime.crossing import Returns


class Told:
    def __init__(self) -> None:
        self.messages: list[int] = []

    def expect(self, messages: int) -> None:
        self.messages.append(messages)


def told(steps: range, microbatches: int = 1, late: int = 0, returns: Any = None) -> list[int]:
    receiver: Any = Told()
    answers = Answers(receiver, late)
    if returns is not None:
        answers.returns = returns
    answers.sent(99, 7)  # of an earlier epoch
    receiver.messages.clear()
    answers.begin()
    for step in steps:
        answers.sent(step, microbatches)
    messages: list[int] = receiver.messages
    return messages


def test_each_step_answers_for_its_microbatches() -> None:
    assert told(range(3)) == [1, 2, 3]
    assert told(range(7, 10), microbatches=4) == [4, 8, 12]


def test_a_late_stage_answers_later() -> None:
    assert told(range(5), late=2) == [0, 0, 1, 2, 3]


def test_only_what_comes_back_counts() -> None:
    assert told(range(8), returns=Returns(every=3, warmup=2)) == [1, 2, 2, 3, 3, 3, 4, 4]
    assert told(range(8), returns=Returns(every=3), late=1) == [0, 1, 1, 1, 2, 2, 2, 3]
