"""A choice that is handed on: the folds that it predicts with, and what its card tells of it."""

from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from nnseg import record
from nnseg.checkpoint import Checkpoint, Kind
from nnseg.choose import Choice, Choosing
from nnseg.errors import DataError, MissingError, NnsegError
from nnseg.folders import (
    CHOICE,
    FOLD_FOLDER,
    checkpoint_file,
    choosing_beside,
    trained_configurations,
    trained_folds,
)
from nnseg.model_card import CardChoice

DEEPEST = (
    4  # parts of a fold's place in the folder of the choice: DATASET/PLAN/CONFIGURATION/fold_N
)


def find_choice_file(source: Path, kind: Kind, *, wanted: bool) -> Path | None:
    """Give the choice.json that is meant by a path, None where it means a model.

    Args:
        source: A file, or the folder that it lies in.
        kind: Of checkpoints.
        wanted: Whether a choice is meant where there are both it and configurations.
    """
    if source.is_file() and source.suffix == ".json":
        return source.absolute()
    file = source.absolute() / CHOICE
    if not file.is_file() or (not wanted and trained_configurations(source, kind)):
        return None
    return file


def members_of(choice: Path) -> str:
    """Name the members of a choice, for messages.

    Raises:
        DataError: The file is no choice.
    """
    content = record.load(Choice, choice)
    return ", ".join(str(choice.parent / one.folder) for one in content.members)


def chosen_folds(choice: Path, kind: Kind) -> tuple[Path, ...]:
    """Give the folders of all folds that predict by a choice, stages before cascades among them.

    They are those that `predictor.load` would take.

    Raises:
        MissingError: One is not trained.
        DataError: A file is damaged.
    """
    found: list[Path] = []
    for member in record.load(Choice, choice).members:
        folds = trained_folds(choice.parent / member.folder, member.folds, kind)
        checkpoint = record.load_sealed(Checkpoint, checkpoint_file(folds[0], kind))
        found += folds
        if previous := checkpoint.configuration.previous:
            beside = folds[0].absolute().parent.with_name(previous)
            command = f"nnseg train {checkpoint.plan.dataset} {previous}"
            try:
                found += trained_folds(beside, member.folds, kind, command)
            except MissingError:  # it then starts from all that are trained
                found += trained_folds(beside, (), kind, command)
    return tuple(dict.fromkeys(found))


def place_of(fold: Path, choice: Path, checkpoint: Checkpoint) -> Path:
    """Give where a fold lies in the folder of a choice.

    Raises:
        DataError: It lies elsewhere, or is called otherwise than it is.
    """
    try:
        place = fold.absolute().relative_to(choice.parent.absolute())
    except ValueError:
        raise DataError(f"{fold}: lies outside the folder of {choice}; move it there") from None
    named = FOLD_FOLDER.fullmatch(place.name)
    if (
        not 2 <= len(place.parts) <= DEEPEST
        or named is None
        or (place.parent.name, named["fold"]) != (checkpoint.configuration_name, checkpoint.fold)
    ):
        raise DataError(
            f"{fold}: is fold {checkpoint.fold} of {checkpoint.configuration_name}, but does not "
            f"lie in {checkpoint.configuration_name}/fold_{checkpoint.fold} beside {choice}; move "
            "it there"
        )
    return place


def card_choice(choice: Path, folds: Sequence[Path], kind: Kind) -> CardChoice:
    """Gather what a card tells of a choice.

    What choosing.json says of it counts only where it is about these members, rules and weights.

    Raises:
        DataError: The file is no choice.
    """
    content = record.load(Choice, choice)
    names = {
        member.folder: tuple(
            fold.name.removeprefix("fold_")
            for fold in trained_folds(choice.parent / member.folder, member.folds, kind)
        )
        for member in content.members
    }
    try:
        found: Choosing | None = record.load(Choosing, choosing_beside(choice))
    except NnsegError:
        found = None
    if found is not None and (found.choice != content or not _is_of(found, choice, folds, kind)):
        found = None
    return CardChoice(choice=content, folds=names, choosing=found)


def check_members(content: Choice, names: Collection[str], where: str) -> None:
    """Make sure that what a choice predicts with came along.

    Args:
        content: The choice.
        names: Of the files beside it.
        where: Its file, for messages.

    Raises:
        DataError: A member did not.
    """
    for member in content.members:
        place = PurePosixPath(member.folder)
        for fold in [f"fold_{name}" for name in member.folds] or [""]:
            wanted = (place / fold).as_posix() + "/"
            if not any(name.startswith(wanted) for name in names):
                raise DataError(
                    f"{where}: predicts with {wanted}, which is not there; get it again"
                )


def _is_of(found: Choosing, choice: Path, folds: Sequence[Path], kind: Kind) -> bool:
    """Whether the scores are of the weights that are handed on."""
    for fold in folds:
        known = found.weights_sha256.get(fold.relative_to(choice.parent).as_posix())
        if known is not None:
            checkpoint = record.load_sealed(Checkpoint, checkpoint_file(fold, kind))
            if checkpoint.weights_sha256 != known:
                return False
    return bool(found.weights_sha256)
