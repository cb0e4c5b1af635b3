"""How many of the ids in histories the index does not hold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

_NUM_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class UnknownIds:
    """Counts over users; an id counts once for each user who watched it."""

    num_ids: int = 0
    num_unknown: int = 0
    num_users: int = 0  # with an unknown id
    examples: tuple[str, ...] = ()

    @classmethod
    def of(cls, history: Sequence[str], unknown: Sequence[str]) -> Self:
        """Count one user, whose unknown ids are distinct."""
        return cls(len(set(history)), len(unknown), int(bool(unknown)), tuple(unknown[:_NUM_EXAMPLES]))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        num_ids, num_unknown, num_users = (int(stored[name]) for name in ("num_ids", "num_unknown", "num_users"))
        return cls(num_ids, num_unknown, num_users, tuple(map(str, stored["examples"])))

    def to_json(self) -> dict[str, Any]:
        """The counts and examples as a footer and the manifest hold them."""
        return {**asdict(self), "examples": list(self.examples)}

    def __add__(self, other: "UnknownIds") -> "UnknownIds":
        examples = tuple(dict.fromkeys((*self.examples, *other.examples)))[:_NUM_EXAMPLES]
        return UnknownIds(
            self.num_ids + other.num_ids,
            self.num_unknown + other.num_unknown,
            self.num_users + other.num_users,
            examples,
        )

    @property
    def fraction(self) -> float:
        """Of all ids."""
        return self.num_unknown / self.num_ids if self.num_ids else 0.0
