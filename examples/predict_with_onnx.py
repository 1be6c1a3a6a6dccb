"""Segment one image with an exported model; neither nnseg nor torch is needed.

    python predict_with_onnx.py MODEL_FOLDER IMAGE... -o OUT.nii.gz

MODEL_FOLDER holds model.json and the networks, as `nnseg export` wrote them. IMAGE is a NIfTI file
for each channel of the image. Arrays are (channel, z, y, x), shapes and spacings (z, y, x); the
steps are those that model.json names. The whole image is kept in memory, its logits too.
"""

import argparse
import hashlib
import itertools
import json
import math
import sys
from pathlib import Path

import nibabel
import numpy as np
import onnxruntime
from scipy import ndimage

FORMAT = 2  # of model.json
FLOOR = 1e-8  # what intensities are divided by is never less
MM = {"meter": 1000.0, "micron": 0.001}
SLICE_OF_2D = 999.0  # the spacing of a single slice, in units of the largest in its plane
FAR_CORNER = 0.01  # smallest voxels that corners of one grid may be apart, which files round
MM3_PER_ML = 1000.0
ROUNDING = 1e-6  # share that a component may be too small by; files round spacings
TOUCHING = np.ones((3, 3, 3), bool)  # neighbours share a corner, or more


def main():
    """Do what the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="folder with model.json")
    parser.add_argument("images", type=Path, nargs="+", help="a NIfTI file for each channel")
    parser.add_argument("-o", "--output", type=Path, required=True, help="label map to write")
    args = parser.parse_args()
    model = read_model(args.model)
    files = [nibabel.load(path) for path in args.images]
    image, spacing = read_image(files, model)
    labels = postprocess(segment(args.model, model, image, spacing), model, spacing)
    labels = labels.transpose(2, 1, 0).reshape(files[0].shape)
    header = files[0].header.copy()
    header.set_data_dtype(labels.dtype)
    nibabel.save(type(files[0])(labels, None, header), args.output)


def read_model(folder):
    """Read model.json, and make sure that the networks are those that it is about."""
    model = json.loads((folder / "model.json").read_text("utf-8"))
    if model["format"] != FORMAT:
        sys.exit(f"{folder}: model.json has format {model['format']}; this reads {FORMAT}")
    if model["previous"]:
        sys.exit(f"{folder}: is the second stage of a cascade; this runs single networks only")
    for network in model["networks"]:
        path = folder / network["file"]
        if hashlib.sha256(path.read_bytes()).hexdigest() != network["sha256"]:
            sys.exit(f"{path}: is damaged (its SHA-256 changed); export the model again")
    return model


def read_image(files, model):
    """Give the image, float32, and its spacing in mm."""
    names = [channel["name"] for channel in model["channels"]]
    if len(files) != len(names):
        sys.exit(f"{len(files)} images were given; the model wants {len(names)}: {names}")
    if any(file.shape != files[0].shape for file in files):
        sys.exit(f"the images differ in shape: {[file.shape for file in files]} (x, y, z)")
    if math.prod(files[0].shape[3:]) > 1:
        sys.exit(f"the images have {len(files[0].shape)} axes; split them into files of three")
    apart = max(np.linalg.norm(corners(file) - corners(files[0]), axis=1).max() for file in files)
    if apart > FAR_CORNER * min(files[0].header.get_zooms()[:3]):
        sys.exit(f"voxels of the images lie {apart:.3g} mm apart; resample them to one grid")
    arrays = [np.asanyarray(file.dataobj).astype(np.float32) for file in files]
    if not all(np.isfinite(array).all() for array in arrays):
        sys.exit("an image has voxels that are not finite; repair it")
    size = (*files[0].shape, 1)[:3]
    image = np.stack([array.reshape(size).transpose(2, 1, 0) for array in arrays])
    x, y, *z = files[0].header.get_zooms()[:3]
    z = z[0] if z else SLICE_OF_2D * max(x, y)
    scale = MM.get(files[0].header.get_xyzt_units()[0], 1.0)
    return image, [scale * float(length) for length in (z, y, x)]


def corners(file):
    """Give where the corner voxels of an image lie, (corner, world axis)."""
    size = (*file.shape, 1)[:3]
    places = list(itertools.product(*((0, edge - 1) for edge in size)))
    return np.array(places) @ file.affine[:3, :3].T + file.affine[:3, 3]


def segment(folder, model, image, spacing):
    """Give the label map (z, y, x) of an image."""
    body = ndimage.binary_fill_holes((image != 0).any(axis=0))
    box = ndimage.find_objects(body.astype(np.uint8))[0] if body.any() else (slice(None),) * 3
    order = model["order"]
    seen = image[(..., *box)].transpose(0, *(axis + 1 for axis in order)).copy()
    body = body[box].transpose(order)
    spacing = [spacing[axis] for axis in order]
    for values, channel in zip(seen, model["channels"], strict=True):
        normalize(values, channel, body)

    shape = seen.shape[1:]
    planned = [n or old for n, old in zip(model["spacing"], spacing, strict=True)]
    wanted = [round(o / n * size) for o, n, size in zip(spacing, planned, shape, strict=True)]
    ratio = model["coarse_ratio"]
    seen = resample(seen, wanted, spacing, planned, model["resample_image"], ratio)
    logits = predict(folder, model, seen)
    logits = resample(logits, shape, planned, spacing, model["resample_logits"], ratio)

    values = np.array(model["head_values"])
    if model["decision"] == "argmax":
        labels = values[logits.argmax(axis=0)]
    else:
        labels = np.zeros(shape, values.dtype)
        for value, head in zip(values, logits, strict=True):
            labels[head > 0] = value
    result = np.zeros(image.shape[1:], np.min_scalar_type(values.max()))
    result[box] = labels.transpose(np.argsort(order))
    return result


def postprocess(labels, model, spacing):
    """Carry out the rules for label maps, each on what the one before left."""
    result = labels.copy()
    for rule in model["postprocessing"]:
        kind = rule["kind"]
        if kind not in ("keep_largest", "minimum_size"):
            sys.exit(f"label maps are to be postprocessed by {kind!r}, which this does not know")
        names = rule["labels"] if kind == "keep_largest" else [rule["label"]]
        values = np.concatenate([np.atleast_1d(model["labels"][name]) for name in names])
        parts, _ = ndimage.label(np.isin(result, values), TOUCHING)
        sizes = np.bincount(parts.ravel())
        sizes[0] = 0  # what has another value
        if kind == "keep_largest":
            smallest = sizes.max()
        else:
            smallest = rule["smallest"]
            if rule["unit"] == "ml":
                smallest *= MM3_PER_ML / math.prod(spacing) * (1 - ROUNDING)
        gone = sizes < smallest
        gone[0] = False
        result[gone[parts]] = 0
    return result


def normalize(values, channel, body):
    """Bring a channel to the scale of the network, in its place."""
    rule, known = channel["normalization"], channel["intensity"]
    if rule == "zscore":
        inside = body if channel["use_mask"] else np.ones_like(body)
        mean = values[inside].mean(dtype=np.float64)
        deviation = values[inside].std(dtype=np.float64)
        values[inside] = (values[inside] - mean) / max(deviation, FLOOR)
    elif rule == "ct":
        values.clip(known["percentile_00_5"], known["percentile_99_5"], out=values)
        values -= known["mean"]
        values /= max(known["std"], FLOOR)
    elif rule == "rescale_to_0_1":
        values -= values.min()
        values /= max(values.max(), FLOOR)
    elif rule == "rgb_to_0_1":
        values /= 255
    elif rule != "none":
        sys.exit(f"channel {channel['name']} is normalized by {rule!r}, which this does not know")


def resample(image, shape, spacing, new_spacing, rule, ratio):
    """Bring every channel to `shape`."""
    separate = separate_axis(spacing, new_spacing, rule["separate"], ratio)
    together = [axis for axis in range(3) if axis != separate]
    result = np.empty((len(image), *shape), np.float32)
    for volume, resampled in zip(image, result, strict=True):
        low = volume.min(axis=tuple(together), keepdims=True)
        high = volume.max(axis=tuple(together), keepdims=True)
        for axis in together:
            volume = stretch(volume, axis, shape[axis], rule["order"])
        volume = volume.clip(low, high)
        if separate is not None:
            volume = stretch(volume, separate, shape[separate], rule["order_along"])
        resampled[...] = volume
    return result


def separate_axis(spacing, new_spacing, forced, ratio):
    """Say which axis is resampled by itself; None where there is none."""
    if forced is False:
        return None
    for candidate in (spacing, new_spacing):
        if forced or max(candidate) / min(candidate) > ratio:
            coarsest = [axis for axis in range(3) if candidate[axis] == max(candidate)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def stretch(volume, axis, size, order):
    """Resample one axis. Splines are linear in the values, so that a matrix says all of it."""
    old = volume.shape[axis]
    if old == size:
        return volume
    places = [old / size * (np.arange(size) + 0.5) - 0.5]
    matrix = np.stack(
        [ndimage.map_coordinates(one, places, order=order, mode="nearest") for one in np.eye(old)]
    )
    return np.moveaxis(np.moveaxis(volume, axis, -1) @ matrix, -1, axis)


def predict(folder, model, image):
    """Give the logits (head, z, y, x) of a preprocessed image, by tiles, mirrors and networks."""
    patch, shape = model["patch_size"], image.shape[1:]
    pads = [max(edge - size, 0) for edge, size in zip(patch, shape, strict=True)]
    image = np.pad(image, [(0, 0), *((pad // 2, pad - pad // 2) for pad in pads)])
    total = np.zeros((len(model["head_values"]), *image.shape[1:]), np.float32)
    counted = np.zeros(image.shape[1:], np.float32)
    weight = tile_weight(patch, model["tile_sigma"])
    axes = [axis + 2 for axis in model["mirror_axes"]]  # of a batch
    mirrors = [m for n in range(len(axes) + 1) for m in itertools.combinations(axes, n)]
    for network in model["networks"]:
        path = str(folder / network["file"])
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for place in tiles(image.shape[1:], patch, model["tile_step"]):
            tile = image[(None, ..., *place)]
            for mirror in mirrors:
                flipped = np.ascontiguousarray(np.flip(tile, mirror))
                logits = session.run([model["output"]], {model["input"]: flipped})[0]
                total[(..., *place)] += np.flip(logits, mirror)[0] * weight
                counted[place] += weight
    inside = [slice(pad // 2, pad // 2 + size) for pad, size in zip(pads, shape, strict=True)]
    return (total / counted)[(..., *inside)]


def tiles(shape, patch, step):
    """Give the place of every tile."""
    starts = []
    for size, edge in zip(shape, patch, strict=True):
        last = math.ceil((size - edge) / max(1, edge * step))
        starts.append([round(i * (size - edge) / max(1, last)) for i in range(last + 1)])
    for corner in itertools.product(*starts):
        yield tuple(slice(a, a + edge) for a, edge in zip(corner, patch, strict=True))


def tile_weight(patch, sigma):
    """Give how much each voxel of a tile counts."""
    z, y, x = (np.exp(-(((np.arange(n) - n // 2) / (sigma * n)) ** 2) / 2) for n in patch)
    return (z[:, None, None] * y[:, None] * x).astype(np.float32)


if __name__ == "__main__":
    main()
