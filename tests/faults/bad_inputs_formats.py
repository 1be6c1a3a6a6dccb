"""Files of the other formats, damaged or odd: NRRD, MetaImage, PNG, BMP, JPEG and TIFF."""

import gzip
import io
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from bad_inputs import (
    RIGHT,
    SIZE,
    Array,
    BadFile,
    BadInput,
    Data,
    Refused,
    Role,
    Used,
    Verdict,
    as_image,
    as_label,
    everywhere,
)

Lines = Mapping[str, str | None]  # of a text header by name; what is None goes

TYPES = {"float32": ("float", "MET_FLOAT"), "uint8": ("uchar", "MET_UCHAR")}
DAMAGED = Refused(cause="damaged|cut off|cannot be read|no NRRD header|no MetaImage header")


def other_files() -> tuple[BadFile, ...]:
    """List them all but those that need a file beside them."""
    kinds = (nrrd_files, meta_files, png_files, picture_files, tiff_files)
    return tuple(bad for kind in kinds for bad in kind())


def nrrd_files() -> Iterator[BadFile]:
    """NRRD files of volumes."""

    def of(name: str, verdict: Verdict, write: Callable[[Array], bytes]) -> BadFile:
        return _file(name, "NRRD", write, everywhere(verdict), ".nrrd")

    def odd(name: str, cause: str, **lines: str | None) -> BadFile:
        changed = {key.replace("_", " "): text for key, text in lines.items()}
        return of(name, Refused(cause=cause), lambda v: nrrd(v, changed))

    yield of("right", RIGHT, nrrd)
    yield of("right, unpacked", RIGHT, lambda v: nrrd(v, packed=False))
    for share in (0, 0.02, 0.6, 0.99):
        yield of(f"cut at {share:.0%}", DAMAGED, lambda v, s=share: _cut(nrrd(v), s))
    yield of("unpacked, cut at 80%", DAMAGED, lambda v: _cut(nrrd(v, packed=False), 0.8))
    yield of("wrong checksum", DAMAGED, lambda v: _flipped(nrrd(v), -8))
    yield of("a bit flipped", DAMAGED, lambda v: _flipped(nrrd(v), -200))
    yield odd("spacing NaN", "finite", space_directions="(-1.5,0,0) (0,nan,0) (0,0,2)")
    yield odd("spacing 0", "spacing|finite", space_directions="(-1.5,0,0) (0,0,0) (0,0,2)")
    yield odd("a direction lacks", "lack an axis", space_directions="(-1.5,0,0) none (0,0,2)")
    yield odd("sheared by 45 degrees", "degrees", space_directions="(-1,0,0) (0,-1,0) (0,2,2)")
    yield odd("origin infinite", "finite", space_origin="(inf,0,0)")
    yield odd("origin a word", "finite numbers", space_origin="(here,0,0)")
    yield odd("sizes beyond the file", "announces|cut off|cannot be read", sizes="15 13 9000")
    yield odd("huge sizes", "announces", sizes="99999 99999 99999")
    yield odd("negative sizes", "cannot be read", sizes="15 -13 9")
    yield odd("voxels in another file", "names another file", data_file="/etc/hostname")
    yield odd("no such type", "cannot be read", type="quaternion")
    yield odd("no such encoding", "cannot be read|has no NRRD", encoding="zip9")
    yield odd("two dimensions of three", "cannot be read|dimensions|finite", dimension="2")


def meta_files() -> Iterator[BadFile]:
    """MetaImage files of volumes."""

    def of(name: str, verdict: Verdict, write: Callable[[Array], bytes]) -> BadFile:
        return _file(name, "MetaImage", write, everywhere(verdict), ".mha")

    def odd(name: str, cause: str, **lines: str | None) -> BadFile:
        return of(name, Refused(cause=cause), lambda v: meta(v, lines))

    yield of("right", RIGHT, meta)
    yield of("right, packed", RIGHT, lambda v: meta(v, packed=True))
    for share in (0, 0.02, 0.6, 0.99):
        yield of(f"cut at {share:.0%}", DAMAGED, lambda v, s=share: _cut(meta(v), s))
        if share > 0.1:
            yield of(f"packed, cut at {share:.0%}", DAMAGED,
                     lambda v, s=share: _cut(meta(v, packed=True), s))  # fmt: skip
    yield of("packed, wrong checksum", DAMAGED, lambda v: _flipped(meta(v, packed=True), -1))
    yield of("packed, half of the voxels", Refused(cause="bytes of voxels where.* save"),
             lambda v: meta(v, packed=True, share=0.5))  # fmt: skip
    for name, size in (("no size", None), ("size 0", "0"), ("a wrong size", "9")):
        yield of(f"packed, {name}", Refused(cause="CompressedDataSize is .* save the image anew"),
                 lambda v, s=size: meta(v, {"CompressedDataSize": s}, packed=True))  # fmt: skip
    yield of("packed, a size beyond the file", Refused(cause="cut off, copy it again"),
             lambda v: meta(v, {"CompressedDataSize": "999999"}, packed=True))  # fmt: skip
    yield odd("voxels that begin in the header", "HeaderSize .* repair", HeaderSize="10")
    yield odd("spacing NaN", "over 0", ElementSpacing="1.5 nan 2")
    yield odd("spacing 0", "over 0", ElementSpacing="1.5 0 2")
    yield odd("spacing negative", "over 0", ElementSpacing="1.5 -1 2")
    yield odd("spacing a word", "over 0", ElementSpacing="1.5 wide 2")
    yield odd("sheared by 45 degrees", "degrees", TransformMatrix="-1 0 0 0 -1 0 0 1 1")
    yield odd("offset infinite", "finite", Offset="inf 0 0")
    yield odd("huge sizes", "announces|cannot be read", DimSize="99999 99999 99999")
    yield odd("sizes beyond the file", "cannot be read|announces", DimSize="15 13 90")
    yield odd("voxels in another file", "names another file|no MetaImage header",
              ElementDataFile="/etc/hostname")  # fmt: skip
    yield odd("a list of files", "names another file|no MetaImage header", ElementDataFile="LIST")


def png_files() -> Iterator[BadFile]:
    """PNG files, in a dataset of them."""

    def of(name: str, verdict: Verdict, write: Callable[[Array], bytes]) -> BadFile:
        return _file(name, "PNG", write, everywhere(verdict), ".png", "pictures")

    for share in (0, 0.05, 0.6, 0.95):
        yield of(f"cut at {share:.0%}", Refused(cause="cut off|is no PNG|damaged"),
                 lambda v, s=share: _cut(picture(v), s))  # fmt: skip
    yield of("a bit flipped", Refused(cause="checksum|damaged"), lambda v: _flipped(picture(v), 70))
    yield of("a JPEG inside", Refused(cause="is no PNG"), lambda v: picture(v, "JPEG"))
    yield of("huge", Refused(cause="announces"), lambda v: _png_of_size(v, 2**20, 2**20))
    yield of("wider than its pixels", Refused(cause="bytes of pixels"),
             lambda v: _png_of_size(v, 23, 190))  # fmt: skip
    yield of("animated", Refused(cause="animated"), _animated)
    yield of("16 bits", RIGHT, lambda v: picture(v.astype("u2")))
    yield of("with a palette", RIGHT, _with_palette)
    yield _file("colours", "PNG", lambda v: picture(np.repeat(v, 3, axis=2)),
                everywhere(Refused(cause="3 values a pixel")), ".png", "pictures")  # fmt: skip
    yield _file("labels of 0 and 255", "PNG", lambda v: picture((v > 0).astype("u1") * 255),
                as_label(Refused(cause="not declare")), ".png", "pictures")  # fmt: skip


def picture_files() -> Iterator[BadFile]:
    """BMP and JPEG files in a dataset of PNG files."""
    broken = Refused(cause="damaged|cut off|is no BMP|is no JPEG")
    for share in (0.03, 0.6):
        yield _file(f"BMP, cut at {share:.0%}", "BMP and JPEG",
                    lambda v, s=share: _cut(picture(v, "BMP"), s), everywhere(broken),
                    ".bmp", "pictures")  # fmt: skip
        yield _file(f"JPEG, cut at {share:.0%}", "BMP and JPEG",
                    lambda v, s=share: _cut(picture(v, "JPEG"), s), as_image(broken),
                    ".jpg", "pictures")  # fmt: skip
    yield _file("BMP, right", "BMP and JPEG", lambda v: picture(v, "BMP"), everywhere(RIGHT),
                ".bmp", "pictures")  # fmt: skip


def tiff_files() -> Iterator[BadFile]:
    """TIFF files in a dataset of PNG files."""

    def of(name: str, verdict: Verdict, write: Callable[[Array], bytes]) -> BadFile:
        return _file(name, "TIFF", write, everywhere(verdict), ".tif", "pictures")

    broken = Refused(cause="damaged|cut off")
    yield of("right", RIGHT, tiff)
    for share in (0, 0.05, 0.6, 0.95):
        yield of(f"cut at {share:.0%}", broken, lambda v, s=share: _cut(tiff(v), s))
    yield of("pages in a circle", broken, _circle)
    yield of("two sizes of pages", Refused(cause="different sizes"), _two_sizes)


def stacks() -> tuple[BadInput, ...]:
    """TIFF stacks whose spacing is told wrongly by the file beside them."""

    def side(name: str, text: str | None, verdict: Verdict) -> BadInput:
        def spoil(data: Data) -> None:
            for folder in ("imagesTr", "labelsTr"):
                path = data.folder / folder / "case_0.json"
                path.unlink() if text is None else path.write_text(text)
            if text is None:
                data.change(spacing=(1.0, 1.0, 1.0))

        names = () if text is not None and isinstance(verdict, Used) else ("case_0",)
        return BadInput(name=name, row="spacing of TIFF", spoil=spoil, verdict=verdict, names=names,
                        drawn="stacks")  # fmt: skip

    return (
        side("not there", None, Used(warning="1 mm is taken")),
        side("no JSON", "spacing: 2, 1, 1.5", Refused(cause="not valid JSON")),
        side("NaN", '{"spacing": [2, NaN, 1.5]}', Refused(cause="NaN is not")),
        side("0", '{"spacing": [2, 0, 1.5]}', Refused(cause="spacing is")),
        side("two entries", '{"spacing": [1, 1.5]}', Refused(cause="2 entries")),
        side("words", '{"spacing": ["2", "1", "1.5"]}', Refused(cause="spacing")),
        side("another key", '{"voxel_size": [2, 1, 1.5]}', Refused(cause='no "spacing"')),
        side("a list", "[2, 1, 1.5]", Refused(cause='no "spacing"')),
        side("more keys", '{"spacing": [2, 1.0, 1.5], "by": "x"}', RIGHT),
    )


def nrrd(voxels: Array, changes: Lines | None = None, *, packed: bool = True) -> bytes:
    """Give the bytes of a NRRD file on the grid of the phantoms, with other lines."""
    lines = {
        "type": TYPES[voxels.dtype.name][0],
        "dimension": "3",
        "space": "left-posterior-superior",
        "sizes": " ".join(map(str, voxels.shape)),
        "space directions": "(-1.5,0,0) (0,-1,0) (0,0,2)",
        "endian": "little",
        "encoding": "gzip" if packed else "raw",
        "space origin": "(10,-5,30)",
    } | dict(changes or {})
    head = "".join(f"{name}: {text}\n" for name, text in lines.items() if text is not None)
    data = voxels.tobytes(order="F")
    return f"NRRD0004\n{head}\n".encode() + (gzip.compress(data, mtime=0) if packed else data)


def meta(
    voxels: Array, changes: Lines | None = None, *, packed: bool = False, share: float = 1
) -> bytes:
    """Give the bytes of a MetaImage file on the grid of the phantoms, with other lines.

    It holds only a share of its voxels, the first ones.
    """
    data = _cut(voxels.tobytes(order="F"), share)
    written = zlib.compress(data) if packed else data
    lines = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "HeaderSize": None,
        "CompressedData": str(packed),
        "CompressedDataSize": str(len(written)) if packed else None,
        "TransformMatrix": "-1 0 0 0 -1 0 0 0 1",
        "Offset": "10 -5 30",
        "ElementSpacing": "1.5 1 2",
        "DimSize": " ".join(map(str, SIZE)),
        "ElementType": TYPES[voxels.dtype.name][1],
        "ElementDataFile": "LOCAL",
    } | dict(changes or {})
    head = "".join(f"{name} = {text}\n" for name, text in lines.items() if text is not None)
    return head.encode() + written


def picture(voxels: Array, kind: str = "PNG") -> bytes:
    """Give the bytes of a picture of one slice (x, y, 1), or (x, y, 3) of colours."""
    from PIL import Image

    pixels = voxels.transpose(1, 0, 2)
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(stream, kind)
    return stream.getvalue()


def tiff(voxels: Array) -> bytes:
    """Give the bytes of a TIFF file of one slice, or of a stack (x, y, z)."""
    import tifffile

    stream = io.BytesIO()
    pages = voxels.transpose(2, 1, 0)
    tifffile.imwrite(stream, pages[0] if len(pages) == 1 else pages, photometric="minisblack")
    return stream.getvalue()


def _file(
    name: str,
    row: str,
    write: Callable[[Array], bytes],
    verdicts: Mapping[Role, Verdict],
    ending: str,
    drawn: str = "volumes",
) -> BadFile:
    return BadFile(name=name, row=row, write=write, verdicts=verdicts, ending=ending, drawn=drawn)


def _cut(data: bytes, share: float) -> bytes:
    return data[: int(share * len(data))]


def _flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 4
    return bytes(changed)


def _png_of_size(voxels: Array, width: int, height: int) -> bytes:
    """Give a picture whose header announces another size than its pixels have."""
    data = picture(voxels)
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def _animated(voxels: Array) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    frames = [Image.fromarray(voxels[:, :, 0].T), Image.fromarray(255 - voxels[:, :, 0].T)]
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def _with_palette(voxels: Array) -> bytes:
    from PIL import Image

    indexed = Image.fromarray(voxels[:, :, 0].T).convert("P")
    stream = io.BytesIO()
    indexed.save(stream, "PNG")
    return stream.getvalue()


def _circle(voxels: Array) -> bytes:
    """Give a TIFF file whose last page leads to its first."""
    data = bytearray(tiff(voxels))
    (first,) = struct.unpack_from("<I", data, 4)
    (tags,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * tags, first)
    return bytes(data)


def _two_sizes(voxels: Array) -> bytes:
    import tifffile

    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(voxels[:, :, 0].T, photometric="minisblack")
        writer.write(voxels[3:, :, 0].T, photometric="minisblack")
    return stream.getvalue()
