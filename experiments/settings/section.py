"""What all settings are made of: sections that convert nothing and know their keys, and the ranges of their numbers."""

import re
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt

OpenFraction = Annotated[float, Field(gt=0, lt=1)]
HalfOpenFraction = Annotated[float, Field(ge=0, lt=1)]
Sizes = tuple[PositiveInt, ...]
NonEmptySizes = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]
NonEmptySeeds = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]
FolderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # it becomes the name of a folder


class Section:
    """Base of all sections: no conversion between types, no unknown keys, no NaN or infinity."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


def slug(text: str) -> str:
    """A `FolderName` made of a text's letters and digits."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-._").lower()
