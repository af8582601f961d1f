"""What a model recommends for its own compression: `compression.json` in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headprobe.compression.policies import Policy, with_selector
from headprobe.compression.selectors import Window
from headprobe.errors import FileFormatError, OptionError
from headprobe.models.catalog import COMPRESSION_FILE
from headprobe.models.loading import LoadedModel
from headprobe.scores.strict_json import parse

_KEYS = ("window", "pool")
_MAX_BYTES = 2**16


@dataclass(frozen=True)
class Recommended:
    """The observation window in queries and the width of pooling in entries; None where nothing is recommended.

    The bundled model has both: its prompts end in few tokens behind the question, and its heads look at single tokens,
    so that what stands beside them has to be kept too.
    """

    window: int | None = None
    pool: int | None = None

    @classmethod
    def of(cls, source: str) -> Recommended:
        """What the model's folder recommends, in a file like `{"window": 2, "pool": 49}` or with one of the two.

        Raises `FileFormatError` for a file with anything else in it, or numbers that no policy can have.
        """
        path = Path(source) / COMPRESSION_FILE
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return cls()
        except OSError as error:
            raise FileFormatError(f"cannot be read: {error.strerror}", path) from None
        if len(data) > _MAX_BYTES:
            raise FileFormatError(f"is larger than {_MAX_BYTES} bytes", path)
        return cls._checked(parse(data, path), path)

    @classmethod
    def _checked(cls, record: object, path: Path) -> Recommended:
        if not isinstance(record, dict) or not record or not set(record) <= set(_KEYS):
            raise FileFormatError('expected {"window": QUERIES, "pool": WIDTH} or one of the two', path)
        for name, value in record.items():
            if type(value) is not int:
                raise FileFormatError(f"{name} is {value!r:.60}, need a whole number", path)
        try:
            Window(**record)
        except OptionError as error:
            raise FileFormatError(str(error), path) from None
        return cls(**record)

    def without(self, window: int | None, pool: int | None) -> Recommended:
        """What is left beside the numbers that the user gave, which overrule their own kind only."""
        return Recommended(self.window if window is None else None, self.pool if pool is None else None)

    def apply(self, policy: Policy) -> Policy:
        """`policy` with these numbers, as far as its selector has them."""
        return with_selector(policy, {key: value for key, value in vars(self).items() if value is not None})

    def words(self) -> str | None:
        """In words; None where nothing is recommended."""
        told = [] if self.window is None else [f"look through the last {self.window} queries"]
        if self.pool is not None:
            told.append(f"pooled over {self.pool}" if told else f"pool over {self.pool} entries")
        return ", ".join(told) or None


def with_recommended_window(
    loaded: LoadedModel, policy: Policy, window: int | None = None, pool: int | None = None
) -> Policy:
    """`policy` with the window and pooling that the model's folder recommends, but for what the user gave.

    Policies without a window, and models that recommend nothing, are left as they are.
    """
    return Recommended.of(loaded.source).without(window, pool).apply(policy)


def window_note(loaded: LoadedModel, window: int | None = None, pool: int | None = None) -> str | None:
    """In words that recommended values are taken; None where they are not."""
    told = Recommended.of(loaded.source).without(window, pool).words()
    return None if told is None else f"window policies {told}, as {loaded.name} recommends"
