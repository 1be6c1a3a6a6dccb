"""The rules of what reads and writes files: image formats, and kinds of probabilities."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Planes
from nnseg.components.refusal import refuses
from nnseg.errors import DataError, MissingError, NnsegError
from nnseg.labels import Labels
from nnseg.preprocess import Placement
from nnseg.probabilities import writing
from nnseg.probabilities.kinds import KINDS
from nnseg.volume import (
    ENDINGS,
    LABEL_ENDINGS,
    Geometry,
    flat_geometry,
    read_array,
    read_image,
    read_segmentation,
    simple_geometry,
    write,
)
from nnseg.volume.picture import PICTURES

SPACING = (3.0, 0.75, 0.5)
NEAR = 1e-4  # mm
CUTS = (0.0, 0.3, 0.7)  # what is left of a file


def rules_of_format(ending: str) -> Iterator[tuple[str, bool]]:
    """Try a format on label maps, on images, and on files that are none."""
    if ending not in ENDINGS:
        raise DataError(f"no format ends in {ending!r}; known: {', '.join(ENDINGS)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        missing = folder / f"missing{ending}"
        yield "it must miss a file that is not there", _raises(MissingError, missing)
        if ending in LABEL_ENDINGS:
            yield from _rules_of_writing(folder, ending)
        else:
            geometry = flat_geometry((6, 7), (1.0, 1.0))
            labels = np.zeros(geometry.shape, np.uint8)
            path = folder / f"lossy{ending}"
            yield (
                "it must refuse to write label maps, as it is lossy",
                refuses(write, path, labels, geometry),
            )
            yield "it must leave nothing of what it refuses", not path.exists()
        for text in (b"", b"no image at all", bytes(400)):
            path = folder / f"none{ending}"
            path.write_bytes(text)
            yield "it must refuse what is no such file", _raises(DataError, path)


def _rules_of_writing(folder: Path, ending: str) -> Iterator[tuple[str, bool]]:
    flat = ending in PICTURES
    for shape in ((1, 6, 7), (1, 1, 1)) if flat else ((5, 6, 7), (1, 1, 1), (1, 6, 7)):
        geometry = (
            flat_geometry(shape[1:], SPACING[1:]) if flat else simple_geometry(shape, SPACING)
        )
        rng = np.random.default_rng(5)
        labels = rng.integers(0, 4, shape).astype(np.uint8)
        kept = labels.copy()
        first, second = (folder / f"{n}_{shape[0]}_{shape[1]}{ending}" for n in ("a", "b"))
        write(first, labels, geometry)
        write(second, labels, geometry)
        found, lies = read_segmentation(first)
        yield "it must give back every label", bool((found == labels).all())
        yield "it must keep the shape", found.shape == shape
        yield "it must leave what it writes as it is", bool((labels == kept).all())
        yield "it must write the same bytes twice", first.read_bytes() == second.read_bytes()
        yield "its label map must lie where it lay", flat or _is_near(lies, geometry)
        image = read_image([first]).image
        yield "it must give it as an image, too", bool((image[0] == labels).all())
        yield (
            "it must refuse an array of another shape",
            refuses(write, folder / f"wrong{ending}", labels[..., :-1], geometry),
        )
    yield "it must leave nothing of what it refuses", not (folder / f"wrong{ending}").exists()
    whole = (folder / f"a_{1 if flat else 5}_6{ending}").read_bytes()
    for share in CUTS:
        path = folder / f"cut{ending}"
        path.write_bytes(whole[: int(share * len(whole))])
        yield "it must refuse a file that is cut off", _raises(DataError, path)
    if not flat:
        yield from _rules_of_real_numbers(folder, ending)


def _rules_of_real_numbers(folder: Path, ending: str) -> Iterator[tuple[str, bool]]:
    geometry = simple_geometry((5, 6, 7), SPACING)
    values = np.random.default_rng(6).normal(size=(5, 6, 7)).astype(np.float32)
    path = folder / f"real{ending}"
    write(path, values, geometry)
    yield "it must give back every real number", bool((read_array(path)[0] == values).all())
    yield "it must not take real numbers for labels", _refuses_labels(path)
    for bad in (np.nan, np.inf):
        values[1, 2, 3] = bad
        write(path, values, geometry)
        yield "it must refuse an image with a value that is not finite", _raises(DataError, path)
        yield "it must refuse a label map with one", _refuses_labels(path)


def _raises(kind: type[NnsegError], path: Path) -> bool:
    try:
        read_image([path])
    except kind as error:
        return path.name in str(error)  # the message says which file
    return False


def _refuses_labels(path: Path) -> bool:
    try:
        read_segmentation(path)
    except DataError:
        return True
    return False


def _is_near(found: Geometry, wanted: Geometry) -> bool:
    return bool(np.abs(found.corners() - wanted.corners()).max() < NEAR)


LABELS = Labels(labels={"background": 0, "edema": 2, "core": 1})
SHAPE = (5, 6, 7)
PLACEMENT = Placement(
    order=(0, 1, 2),
    shape=SHAPE,
    spacing=SPACING,
    box=((1, 5), (0, 6), (2, 6)),
    shape_resampled=(4, 6, 4),
)


def rules_of_probabilities(name: str) -> Iterator[tuple[str, bool]]:
    """Try a kind of files that keep probabilities on those of a small box."""
    kind = KINDS[name]
    logits = np.random.default_rng(7).normal(size=(4, 6, 4, LABELS.heads)).astype(np.float32)
    planes = LABELS.probabilities(logits)
    kept = planes.copy()
    with tempfile.TemporaryDirectory() as folder:
        first, second, none = (Path(folder) / name for name in ("first", "second", "none"))
        for place in (first, second, none):
            place.mkdir()
        _write_probabilities(first, name, planes)
        _write_probabilities(second, name, planes)
        written = sorted(path.name for path in first.iterdir())
        wanted = sorted(f"case{ending}" for ending in kind.endings)
        yield "it must write the files that it names, and no others", written == wanted
        yield "it must leave the probabilities as they are", bool((planes == kept).all())
        yield (
            "it must write the same bytes twice",
            all((first / n).read_bytes() == (second / n).read_bytes() for n in written),
        )
        for what, wrong in (
            ("too few planes", planes[:-1]),
            ("planes of another shape", planes[:, :-1]),
            ("too few heads", planes[..., :-1]),
        ):
            yield f"it must refuse {what}", refuses(_write_probabilities, none, name, wrong)
        yield "it must leave nothing of what it refuses", not list(none.iterdir())


def _write_probabilities(folder: Path, kind: str, planes: NDArray[Any]) -> None:
    geometry = simple_geometry(SHAPE, SPACING)
    with writing(folder / "case.nii.gz", kind, LABELS, geometry) as writer:
        take = writer.begin(PLACEMENT)
        part: Planes
        for part in (planes[:2], planes[2:]):
            take(part)
