"""What a cascade has done so far: kept with each of its checkpoints, and told in its history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cnncompress.errors import RunError
from cnncompress.files.place import SECOND
from cnncompress.finetuning.checkpoints import Checkpoints, write_atomically
from cnncompress.finetuning.settings import CascadeStep
from cnncompress.network.evaluate import Evaluation

DAMAGED = "{} does not fit this cascade; run without --resume to start again"


@dataclass
class Story:
    """What is known of a cascade of `steps` steps that has begun with number `step`.

    `start` is the accuracy of the compressed network as it was given, `original` that of the network it was made of.
    `rows` are those of the history, and `done` what came out, of the steps before; `errors` those of all fitted layers.
    """

    steps: int
    start: Evaluation
    original: Evaluation
    step: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    done: list[CascadeStep] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)

    @property
    def reached(self) -> Evaluation:
        """The accuracy after the last step that is done."""
        return self.done[-1].tuned if self.done else self.original

    def state(self) -> dict[str, Any]:
        """As plain values."""
        done = [{key: _plain(value) for key, value in vars(step).items()} for step in self.done]
        return {**vars(self), "start": _plain(self.start), "original": _plain(self.original), "done": done}

    @classmethod
    def of(cls, state: Mapping[str, Any], steps: int) -> Story:
        """From the plain values of a checkpoint; KeyError, TypeError or ValueError where they are none of `steps`."""
        evaluations = {key: Evaluation(**state[key]) for key in ("start", "original")}
        if state["steps"] != steps or not 1 <= state["step"] <= steps:
            raise ValueError
        return cls(**{**state, **evaluations, "done": [_step(values) for values in state["done"]]})

    def told(self, layers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The history with the rows of the step that is under way."""
        return [*self.rows, *({"cascade_step": self.step, "layers": list(layers), **row} for row in rows)]


def _plain(value: Any) -> Any:
    return value.numbers if isinstance(value, Evaluation) else value


def _step(values: Mapping[str, Any]) -> CascadeStep:
    found = {k: Evaluation(**values[k]) for k in ("before", "decomposed", "tuned")}
    return CascadeStep(**{**values, **found, "layers": tuple(values["layers"])})


class StepCheckpoints(Checkpoints):
    """The files of one step of a cascade: they stand for all of it.

    The best weights of a step and of the one before are in two files, as a checkpoint may still be of that. `state` is
    a checkpoint that was read.
    """

    def __init__(
        self, files: Checkpoints, story: Story, layers: Sequence[str], state: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(files.last.parent, files.ready, files.origin)
        self.story, self.layers, self.state = story, layers, state
        if story.step % 2 == 0:
            self.best = self.best.with_name(SECOND)

    def clear(self) -> None:
        """Begin a step: the first one removes what an earlier training left, others go on in its place."""
        if self.story.step == 1:
            super().clear()
            return
        self.tidy()
        write_atomically(self.previous, lambda file: file.write(self.last.read_bytes()))

    def save_last(self, state: Mapping[str, Any]) -> None:
        """Write the state of the cascade."""
        super().save_last({**state, "cascade": self.story.state()})

    def load_last(self, settings: Mapping[str, Any], images: int) -> dict[str, Any]:
        """The state that the cascade goes on from, which was read, or later one of this step; else as any."""
        state, self.state = self.state, None
        if state is None:
            return super().load_last(settings, images)
        self._check_same(self.last, state, {**self.origin, **settings, "training images": images})
        return dict(state)

    def unfinished(self) -> str:
        """As for any training, before the first step."""
        return super().unfinished() if self.story.step == 1 else ""

    def save_history(self, rows: list[dict[str, Any]]) -> None:
        """Write the history of the cascade."""
        super().save_history(self.story.told(self.layers, rows))


def read_story(state: Mapping[str, Any], steps: int, files: Checkpoints) -> Story:
    """The story that a checkpoint tells; RunError where it tells none of so many steps."""
    try:
        return Story.of(state["cascade"], steps)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(DAMAGED.format(files.last)) from error
