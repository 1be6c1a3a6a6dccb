"""NIfTI files that are damaged, hostile or merely odd, in the place of a good one."""

import gzip
import math
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import nibabel
import numpy as np
from bad_inputs import (
    RIGHT,
    Array,
    BadFile,
    Refused,
    Role,
    Used,
    Verdict,
    affine_of,
    as_image,
    as_label,
    everywhere,
    nifti,
)

DAMAGED = Refused(cause=r"cut off|is damaged|does not begin with a NIfTI header")
OTHER = Refused(cause=r"does not begin with a NIfTI header|is damaged")
NO_NUMBER = {
    "image": Refused(cause="not finite"),
    "predicted": Refused(cause="not finite"),
    "label": Refused(cause="no integers"),
}
Write = Callable[[Array], bytes]


def nifti_files() -> tuple[BadFile, ...]:
    """List them all."""
    kinds = (damages, strangers, headers, geometries, units, shapes, sizes, values, label_maps)
    return tuple(bad for kind in kinds for bad in kind())


def damages() -> Iterator[BadFile]:
    """Files that were cut off, or of which some bits have changed."""
    for share in (0, 0.002, 0.1, 0.6, 0.99):
        yield _file(f"cut at {share:.1%}", "cut off", _cut(share), everywhere(DAMAGED))
    for bytes_lost in (1, 4, 8):
        write = _packed(lambda data, n=bytes_lost: data[:-n])
        yield _file(f"{bytes_lost} bytes of its end lost", "cut off", write, everywhere(DAMAGED))
    yield _plain("plain, cut at 60%", "cut off", lambda v: _cut(0.6, packed=False)(v), DAMAGED)
    yield _plain("plain, the last byte lost", "cut off", lambda v: nifti(v, packed=False)[:-1],
                 DAMAGED)  # fmt: skip
    yield _file("only a header", "cut off", lambda v: gzip.compress(nifti(v, packed=False)[:352]),
                everywhere(DAMAGED))  # fmt: skip
    for place, what in ((-8, "checksum"), (-1, "length")):
        write = _packed(lambda data, at=place: _flipped(data, at))
        yield _file(f"wrong {what}", "bit rot", write, everywhere(DAMAGED))
    for seed in range(6):
        yield _file(f"bit {seed} flipped", "bit rot", _flip(seed), everywhere(DAMAGED))
    yield _file("a stretch of zeros", "bit rot", _packed(_zeroed), everywhere(DAMAGED))
    yield _file("zeros after the end", "rest after the end", _packed(lambda d: d + bytes(512)),
                everywhere(RIGHT))  # fmt: skip
    yield _file("text after the end", "rest after the end", _packed(lambda d: d + b"rest" * 9),
                everywhere(Refused(cause="is damaged")))  # fmt: skip
    yield _plain("plain, text after the end", "rest after the end",
                 lambda v: nifti(v, packed=False) + b"rest", RIGHT)  # fmt: skip
    yield _file("two gzip members", "rest after the end", _in_two_members, everywhere(RIGHT))


def strangers() -> Iterator[BadFile]:
    """Files of something else, under the name of a NIfTI file."""
    contents = {
        "empty": b"",
        "a web page": b"<html>404 Not Found</html>" * 20,
        "text": b"hello\n" * 200,
        "zeros": bytes(4096),
        "a pointer of git-lfs": b"version https://git-lfs.github.com/spec/v1\nsize 12345\n",
        "a packed empty file": gzip.compress(b""),
        "packed text": gzip.compress(b"hello\n" * 200),
        "a zip": b"PK\x03\x04" + bytes(600),
    }
    for name, data in contents.items():
        verdict = DAMAGED if name == "empty" else OTHER
        yield _file(name, "another content", lambda v, d=data: d, everywhere(verdict))
    yield _file("unpacked under .nii.gz", "another content", lambda v: nifti(v, packed=False),
                everywhere(OTHER))  # fmt: skip
    yield _plain("packed under .nii", "another content", nifti, OTHER)
    yield _file("packed twice", "another content", _packed(gzip.compress), everywhere(OTHER))
    analyze = {"magic": b"\0\0\0\0"}
    yield _odd("without its magic", "another content", analyze, Refused(cause="NIfTI"))


def headers() -> Iterator[BadFile]:
    """Headers whose fields cannot be meant, or can in an unusual way."""
    row = "header"
    for offset in (math.nan, -1.0, 0.0, 100.0, 1e30):
        verdict = Refused(cause="vox_offset")
        yield _odd(f"vox_offset {offset:g}", row, {"vox_offset": offset}, verdict)
    yield _odd("vox_offset a byte late", row, {"vox_offset": 353}, Refused(cause="cut off"))
    for size in (0, -1, 347, 2**31 - 1):
        yield _odd(f"sizeof_hdr {size}", row, {"sizeof_hdr": size}, OTHER)
    for kind in (0, 1, 9999):
        verdict = Refused(cause="not a NIfTI file|type|announces")
        yield _odd(f"datatype {kind}", row, {"datatype": kind}, verdict)
    yield _file("bitpix 8 of floats", row, lambda v: nifti(v.astype("f4"), fields={"bitpix": 8}),
                everywhere(Refused(cause="not a NIfTI file|bitpix|cut off")))  # fmt: skip
    for name, slope in (("0", 0), ("NaN", math.nan)):
        yield _odd(f"scl_slope {name}", row, {"scl_slope": slope}, RIGHT)
    for name, fields in {
        "scl_slope infinite": {"scl_slope": math.inf},
        "scl_slope 3e38": {"scl_slope": 3e38},
        "scl_inter infinite": {"scl_inter": math.inf},
    }.items():
        yield _odd(name, row, fields, Refused(cause="not finite|scl_|not a NIfTI file"), of="image")
    yield _file("scaled by 0.5", row, lambda v: nifti(v * np.float64(2), fields={"scl_slope": 0.5}),
                as_image(RIGHT))  # fmt: skip
    for name, options in {
        "big-endian": {"order": ">"},
        "NIfTI-2": {"kind": nibabel.Nifti2Image},
        "NIfTI-2, big-endian": {"kind": nibabel.Nifti2Image, "order": ">"},
    }.items():
        yield _file(name, row, lambda v, o=options: nifti(v, **o), everywhere(RIGHT))
    for kind in ("f8", "<f4"):
        yield _file(f"voxels of {kind}", row, lambda v, k=kind: nifti(v.astype(k)),
                    everywhere(RIGHT))  # fmt: skip


def geometries() -> Iterator[BadFile]:
    """Spacings, matrices and quaternions that no grid has, or that a grid may have."""
    row = "spacing and directions"
    for value in (math.nan, math.inf, -math.inf):
        verdict = Refused(cause="pixdim is not finite")
        yield _odd(f"pixdim {value}", row, {"pixdim": {2: value}}, verdict)
    for value in (0.0, 1e6, 1e-9, 4.0):
        verdict = Refused(cause="spacing")
        yield _odd(f"pixdim {value:g}", row, {"pixdim": {3: value}}, verdict)
    yield _odd("pixdim negative", row, {"pixdim": {1: -1.5}}, RIGHT)
    for name, factor in (("huge", 2000.0), ("tiny", 1e-6)):
        spacing = (1.5 * factor, 1.0 * factor, 2.0 * factor)
        yield _file(f"spacing {name}", row, lambda v, s=spacing: nifti(v, spacing=s),
                    everywhere(Refused(cause="spacing is")))  # fmt: skip
    for value in (math.nan, math.inf):
        yield _odd(f"srow {value}", row, {"srow_y": {1: value}}, Refused(cause="srow is not fin"))
    yield _odd("srow flat", row, {"srow_z": {2: 0.0}}, Refused(cause="cannot be inverted"))
    yield _odd("srow all zeros", row, {n: [0] * 4 for n in ("srow_x", "srow_y", "srow_z")},
               Refused(cause="cannot be inverted"))  # fmt: skip
    yield _odd("quaternion too long", row, {"sform_code": 0, "quatern_b": 3.0},
               Refused(cause="quatern"))  # fmt: skip
    yield _odd("quaternion NaN", row, {"sform_code": 0, "quatern_c": math.nan},
               Refused(cause="quatern"))  # fmt: skip
    yield _odd("qoffset infinite", row, {"sform_code": 0, "qoffset_x": math.inf},
               Refused(cause="qoffset"))  # fmt: skip
    yield _odd("another qform beside the sform", row, {"qoffset_x": 55.0}, RIGHT)
    yield _odd("qform alone", row, {"sform_code": 0}, RIGHT)
    yield _odd("sform alone", row, {"qform_code": 0}, RIGHT)
    for degrees, verdict in ((40, Refused(cause="degrees")), (20, RIGHT)):
        write = _sheared(degrees)
        verdicts = as_image(verdict)
        yield _file(f"sheared by {degrees} degrees", row, write, verdicts, whole=True)
    codes = {"qform_code": 0, "sform_code": 0}
    yield _file("no directions", row, lambda v: nifti(v, fields=codes), as_image(RIGHT),
                whole=True)  # fmt: skip


def units() -> Iterator[BadFile]:
    """Lengths that are not in mm."""
    for name, code, per_mm in (("metres", 1, 0.001), ("micrometres", 3, 1000.0)):
        write = _in_unit(code, per_mm)
        yield _file(name, "units", write, everywhere(Used(warning="not in mm")))
    yield _odd("no such unit", "units", {"xyzt_units": 5}, Refused(cause="xyzt_units"))
    yield _odd("no unit", "units", {"xyzt_units": 0}, RIGHT)


def shapes() -> Iterator[BadFile]:
    """Other numbers of dimensions, and values that are not one real number."""
    row = "dimensions and types"
    for name, count in (("three times", 3), ("no time", 0)):
        write = _reshaped(lambda v, n=count: np.stack([v] * 3, axis=-1)[..., :n])
        yield _file(name, row, write, everywhere(Refused(cause="dimensions|no voxels|cut off|NIf")))
    yield _file("one time", row, _reshaped(lambda v: v[..., None]), everywhere(RIGHT))
    yield _file("vectors", row, _reshaped(lambda v: np.stack([v] * 2, -1)[:, :, :, None]),
                everywhere(Refused(cause="5 dimensions")))  # fmt: skip
    for count in (0, 1, 8, -1, 300):
        yield _odd(f"dim[0] {count}", row, {"dim": {0: count}},
                   Refused(cause="NIfTI|dimension"))  # fmt: skip
    for length in (0, -9):
        yield _odd(f"dim[3] {length}", row, {"dim": {3: length}},
                   Refused(cause="NIfTI|voxels|shape|dim"))  # fmt: skip
    for kind in ("c8", "c16"):
        write = _reshaped(lambda v, k=kind: v.astype(k))
        yield _file(f"complex {kind}", row, write, everywhere(Refused(cause="real numbers")))
    for name, fields in (("RGB", 3), ("RGBA", 4)):
        write = _coloured(fields)
        yield _file(name, row, write, everywhere(Refused(cause="real numbers|values")))


def sizes() -> Iterator[BadFile]:
    """Headers that announce far more than there is, and streams that hold more than announced."""
    row = "declared size"
    verdict = Refused(cause="announces")
    yield _odd("32767 voxels long", row, {"dim": dict.fromkeys((1, 2, 3), 32767)}, verdict)
    yield _odd("some GB", row, {"dim": {1: 2000, 2: 2000}}, verdict)
    yield _file("2^60 voxels", row, lambda v: nifti(
        v, kind=nibabel.Nifti2Image, fields={"dim": dict.fromkeys((1, 2, 3), 2 ** 20)}),
        everywhere(verdict))  # fmt: skip
    yield _file("more bytes than 64 bits count", row, lambda v: nifti(
        v, kind=nibabel.Nifti2Image, fields={"dim": dict.fromkeys((1, 2, 3), 2 ** 62)}),
        everywhere(verdict))  # fmt: skip
    yield _file("512 MB of zeros after the voxels", row, _padded, {
        "image": Refused(cause="goes on for more than 1048576 bytes")})  # fmt: skip
    yield _file("30 GB of zeros", row, _huge, {"image": Refused(cause="announces|memory")})


def values() -> Iterator[BadFile]:
    """Voxels that are no finite numbers."""
    row = "voxels not finite"
    for value in (math.nan, math.inf, -math.inf):
        yield _file(f"one {value}", row, _put(value), NO_NUMBER)
    yield _file("all NaN", row, lambda v: nifti(np.full(v.shape, np.nan, "f4")), NO_NUMBER)
    yield _file("beyond float32", row, _put(1e39, "f8"), as_image(Refused(cause="not finite")))


def label_maps() -> Iterator[BadFile]:
    """Label maps with other values than those that dataset.json declares."""
    row = "label values"
    strange = Refused(cause="not declare")
    for name, kind, value in (
        ("a third label", "u1", 7), ("255", "u1", 255), ("-1", "i2", -1), ("300", "u2", 300),
        ("2^40", "i8", 2**40), ("-2^62", "i8", -(2**62)), ("2^63", "u8", 2**63),
        ("1e9 as a float", "f4", 1e9),
    ):  # fmt: skip
        yield _file(name, row, _put(value, kind), as_label(strange))
    broken = Refused(cause="no integers")
    yield _file("one half", row, _put(0.5), as_label(broken))
    yield _file("1e300", row, _put(1e300, "f8"), as_label(Refused(cause="not declare|no integ")))
    yield _file("blurred", row, _blurred, as_label(broken))
    yield _file("an image", row, lambda v: nifti(_noise(v.shape)), as_label(broken))
    yield _file("a CT image", row, lambda v: nifti((500 * _noise(v.shape)).astype("i2")),
                as_label(strange))  # fmt: skip
    yield _file("a probability", row, lambda v: nifti((v / 2).astype("f4")), as_label(broken))
    yield _file("scaled by 1/255", row, lambda v: nifti(v, fields={"scl_slope": 1 / 255}),
                as_label(broken))  # fmt: skip
    yield _file("scaled by 2", row, lambda v: nifti(v, fields={"scl_slope": 2}), as_label(strange))
    yield _file("one-hot", row, _reshaped(lambda v: np.stack([v == n for n in range(3)], -1) * 1),
                as_label(Refused(cause="4 dimensions")))  # fmt: skip
    for kind in ("i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"):
        yield _file(f"labels as {kind}", row, lambda v, k=kind: nifti(v.astype(k)), as_label(RIGHT))


def _file(
    name: str,
    row: str,
    write: Write,
    verdicts: Mapping[Role, Verdict],
    *,
    ending: str = ".nii.gz",
    whole: bool = False,
) -> BadFile:
    return BadFile(name=name, row=row, write=write, verdicts=verdicts, ending=ending, whole=whole)


def _plain(name: str, row: str, write: Write, verdict: Verdict) -> BadFile:
    return _file(name, row, write, everywhere(verdict), ending=".nii")


def _odd(
    name: str,
    row: str,
    fields: Mapping[str, Any],
    verdict: Verdict,
    *,
    of: Role | None = None,
) -> BadFile:
    """Give a file with these fields of its header, in every role or as an image alone."""
    verdicts = as_image(verdict) if of == "image" else everywhere(verdict)
    return _file(name, row, lambda voxels: nifti(voxels, fields=fields), verdicts)


def _packed(change: Callable[[bytes], bytes]) -> Write:
    return lambda voxels: change(nifti(voxels))


def _cut(share: float, *, packed: bool = True) -> Write:
    def write(voxels: Array) -> bytes:
        data = nifti(voxels, packed=packed)
        return data[: int(share * len(data))]

    return write


def _flipped(data: bytes, place: int, bit: int = 0) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 1 << bit
    return bytes(changed)


def _flip(seed: int) -> Write:
    rng = random.Random(seed)

    def write(voxels: Array) -> bytes:
        data = nifti(voxels)
        return _flipped(data, rng.randrange(20, len(data) - 8), rng.randrange(8))

    return write


def _zeroed(data: bytes) -> bytes:
    third = len(data) // 3
    return data[:third] + bytes(third) + data[2 * third :]


def _in_two_members(voxels: Array) -> bytes:
    data = nifti(voxels, packed=False)
    return gzip.compress(data[:700]) + gzip.compress(data[700:])


def _sheared(degrees: float) -> Write:
    """Give slices that are piled up aslant, and as spacing the distance of their planes."""
    affine = affine_of()
    affine[1, 2] = affine[2, 2] * math.tan(math.radians(degrees))
    return lambda voxels: nifti(voxels, affine=affine, fields={"pixdim": {3: affine[2, 2]}})


def _in_unit(code: int, per_mm: float) -> Write:
    """Give a header whose lengths are in another unit."""
    affine = affine_of()
    affine[:3] *= per_mm
    return lambda voxels: nifti(voxels, affine=affine, fields={"xyzt_units": code})


def _reshaped(change: Callable[[Array], Array]) -> Write:
    return lambda voxels: nifti(change(voxels))


def _coloured(channels: int) -> Write:
    kind = np.dtype([(name, "u1") for name in "RGBA"[:channels]])
    return lambda voxels: nifti(np.zeros(voxels.shape, kind))


def _put(value: float, kind: str = "f4") -> Write:
    def write(voxels: Array) -> bytes:
        changed = voxels.astype(kind)
        changed[2, 3, 4] = value
        return nifti(changed)

    return write


def _noise(shape: tuple[int, ...]) -> Array:
    return np.random.default_rng(9).normal(size=shape).astype("f4")


def _blurred(voxels: Array) -> bytes:
    near = [np.roll(voxels.astype("f4"), step, axis) for step in (-1, 1) for axis in range(3)]
    return nifti(sum(near, start=voxels.astype("f4")) / 7)


def _padded(voxels: Array) -> bytes:
    """Give a file that unpacks to 512 MB more than its header announces."""
    member = gzip.compress(bytes(2**24), 1)
    return nifti(voxels) + member * 32


def _huge(voxels: Array) -> bytes:
    """Give a file whose header announces 30 GB of 8 bits each, and that does hold them."""
    dim = {"dim": {1: 2**10, 2: 2**10, 3: 30 * 2**10}}
    header = nifti(voxels.astype("u1"), fields=dim, packed=False)[:352]
    packer = zlib.compressobj(9, wbits=31)
    member = packer.compress(bytes(2**26)) + packer.flush()
    return gzip.compress(header) + member * 480
