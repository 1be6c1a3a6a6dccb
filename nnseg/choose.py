"""Which models predict a dataset, and what is done with what they find: choice.json."""

from dataclasses import dataclass, field

from nnseg.dataset import stays_inside
from nnseg.errors import DataError
from nnseg.postprocess import Postprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenModel:
    """One of the models that predict together."""

    folder: str  # of its configuration, relative to the file that says so
    folds: tuple[str, ...] = ()  # as they are called; none are all that are trained
    weight: float = 1.0  # beside those of the others

    def __post_init__(self) -> None:
        if not stays_inside(self.folder):
            raise DataError(
                f"the model {self.folder!r} lies outside the folder of its choice; move it there"
            )
        if not 0 < self.weight < float("inf"):
            raise DataError(f"the weight of {self.folder} is {self.weight:g}; it must be over 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The content of choice.json: everything that `nnseg predict -m` needs to know."""

    members: tuple[ChosenModel, ...]
    postprocessing: Postprocessing = field(default_factory=Postprocessing)

    def __post_init__(self) -> None:
        if not self.members:
            raise DataError("a choice needs at least one model")
