"""Settings: one depth for each stack of a model, and which setting a command asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fairseq_sharing.errors import SharingError

Setting = Mapping[str, int]  # stack -> number of layers that run

AUTO = "auto"
"""The value of ``--depth`` for a depth per sentence."""

REFUSED_AUTO = (
    f"--depth {AUTO}: the depth of each sentence is chosen by translate and evaluate; allowed here: a number of layers"
)


def setting_name(setting: Setting) -> str:
    """Return a short name for logs and files: ``d6`` if the stacks agree, else ``e12d3``."""
    if len(set(setting.values())) == 1:
        return f"d{next(iter(setting.values()))}"
    return "".join(f"{stack[0]}{depth}" for stack, depth in setting.items())


@dataclass(frozen=True)
class DepthRequest:
    """The depth that a command asks for.

    Attributes:
        depth: the depth of every stack; None for all layers.
        encoder: the depth of the encoder, overriding ``depth``.
        decoder: the depth of the decoder, overriding ``depth``.
        force: also allow a depth that the model was not trained at.
        per_sentence: a classifier chooses the depth of each sentence.
    """

    depth: int | None = None
    encoder: int | None = None
    decoder: int | None = None
    force: bool = False
    per_sentence: bool = False

    @classmethod
    def of(cls, setting: Setting) -> DepthRequest:
        """Return the request for a setting."""
        return cls(encoder=setting.get("encoder"), decoder=setting.get("decoder"))

    @property
    def given(self) -> bool:
        """Whether any depth is requested."""
        return self.per_sentence or any(depth is not None for depth in (self.depth, self.encoder, self.decoder))

    def resolve(self, trained: Sequence[Setting]) -> dict[str, int]:
        """Return the requested setting.

        Args:
            trained: the settings that the model was trained at; the last one runs all layers.

        Raises:
            SharingError: the model lacks the stack, or was not trained at this depth.
        """
        if self.per_sentence:
            raise SharingError(REFUSED_AUTO)
        full = trained[-1]
        for stack, depth in self._own.items():
            if depth is not None and stack not in full:
                raise SharingError(f"--{stack}-depth {depth}: the model has no {stack}; allowed: --depth")
        chosen = {
            stack: next(depth for depth in (self._own[stack], self.depth, layers) if depth is not None)
            for stack, layers in full.items()
        }
        if chosen not in [dict(setting) for setting in trained] and not self.force:
            raise SharingError(
                f"depth {describe(chosen)}: the model was not trained at it; allowed: "
                f"{', '.join(map(describe, trained))} (or --force-depth)"
            )
        return chosen

    def flag(self, stack: str) -> str:
        """Return the flag that sets the depth of a stack."""
        return "--depth" if self._own[stack] is None else f"--{stack}-depth"

    @property
    def _own(self) -> dict[str, int | None]:
        return {"encoder": self.encoder, "decoder": self.decoder}


def describe(setting: Setting) -> str:
    """Describe a setting in an error message: ``6``, or ``encoder 12 and decoder 3`` if the stacks differ."""
    if len(set(setting.values())) == 1:
        return str(next(iter(setting.values())))
    return " and ".join(f"{stack} {depth}" for stack, depth in setting.items())
