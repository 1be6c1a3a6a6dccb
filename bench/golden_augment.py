"""What the peer's training transforms make of a small image, for the tests of our own.

    python bench/golden_augment.py --peer PYTHON --write-golden FILE

The transforms of batchgeneratorsv2 run by the python of a venv with nnunetv2, with parameters given
instead of drawn. Noise is left out: its values come from a generator.
"""

import json
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

from nnseg.commit import write_whole

PEER = """
import json
from importlib import metadata
import numpy as np
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.nnunet import random_binary_operator as operators
from batchgeneratorsv2.transforms.nnunet.remove_connected_components import (
    RemoveRandomConnectedComponentFromOneHotEncodingTransform as Remove,
)
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial import spatial
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform

LOADED, PATCH = (11, 14, 9), (6, 9, 5)

def values(shape):
    count = int(np.prod(shape))
    return torch.from_numpy(((np.arange(count) * 7919 % 1009) / 100 - 5).reshape(shape)).float()

def digits(channels):
    places = torch.arange(1, len(channels) + 1).view(-1, 1, 1, 1)
    return "".join(map(str, (channels.int() * places).sum(0).flatten().tolist()))

def blocks(shape):
    z, y, x = np.indices(shape) // 3
    return torch.from_numpy((z * 5 + y * 3 + x) % 4).to(torch.int16)

def turn(patch, angles, scale, image, labels):
    transform = spatial.SpatialTransform(
        patch, 0, False, p_rotation=0 if angles is None else 1, rotation=0,
        p_scaling=0 if scale is None else 1, scaling=scale or 1,
        p_synchronize_scaling_across_axes=1, border_mode_seg="constant", padding_value_seg=-1,
    )
    if angles is not None:
        transform.rotation = lambda image, dim: angles[dim]
    done = transform(image=image, segmentation=labels)
    return {"image": done["image"].tolist(), "labels": done["segmentation"].tolist()}

found = {}
image, labels = values((2, *LOADED)), blocks(LOADED)[None]
for name, angles, scale in (
    ("crop", None, None), ("scale", None, 0.8), ("turn", (0.3, -0.2, 0.4), None),
    ("turn_and_scale", (-0.4, 0.5, 0.1), 1.3),
):
    found[name] = turn(PATCH, angles, scale, image.clone(), labels.clone())
flat, flat_labels = image[:, :6].flatten(0, 1), labels[0, :6]
found["flat"] = turn(PATCH[1:], (0.7, 0.7), 1.2, flat.clone(), flat_labels.clone())
found["slice"] = turn(PATCH[1:], (-2.1, -2.1), 0.9, image[:, 4].clone(), labels[:, 4].clone())

both = torch.tensor([0, 1])
patch = values((2, *PATCH))
none = dict(synchronize_channels=False, p_per_channel=1)
changes = {
    "blur": (
        GaussianBlurTransform((0.5, 1), benchmark=False),
        dict(apply_to_channel=torch.tensor([False, True]), sigmas=[[0.6, 0.95, 0.75]]),
    ),
    "brightness": (
        MultiplicativeBrightnessTransform(1, **none),
        dict(apply_to_channel=both, multipliers=torch.tensor([0.8, 1.2])),
    ),
    "contrast": (
        ContrastTransform(1, preserve_range=True, **none),
        dict(apply_to_channel=both, multipliers=torch.tensor([0.8, 1.2])),
    ),
    "zoom": (
        SimulateLowResolutionTransform(1, False, True, None),
        dict(apply_to_channel=both, scales=torch.tensor([[0.53] * 3, [0.81] * 3])),
    ),
    "zoom_in_plane": (
        SimulateLowResolutionTransform(1, False, True, (0,)),
        dict(apply_to_channel=both, scales=torch.tensor([[1, 0.53, 0.53], [1, 0.81, 0.81]])),
    ),
    "mirror": (MirrorTransform((0, 1, 2)), dict(axes=[0, 2])),
}
for name, inverted in (("gamma", False), ("gamma_inverted", True)):
    changes[name] = (
        GammaTransform(1, p_invert_image=1, p_retain_stats=1, **none),
        dict(
            apply_to_channel=both, gamma=torch.tensor([0.75, 1.4]),
            retain_stats=torch.tensor([True] * 2), invert_image=torch.tensor([inverted] * 2),
        ),
    )
for name, (transform, parameters) in changes.items():
    found[name] = {"image": transform._apply_to_image(patch.clone(), **parameters).tolist()}

onehot = torch.stack([(blocks(LOADED) == label) for label in (1, 2, 3)]).float()
for name, operator in (
    ("dilate", operators.binary_dilation_torch), ("erode", operators.binary_erosion_torch),
    ("close", operators.binary_closing_torch), ("open", operators.binary_opening_torch),
):
    for radius in (1, 2):
        transform = operators.ApplyRandomBinaryOperatorTransform([0, 1, 2])
        done = transform._apply_to_image(
            onehot.clone(), apply_to_channels=[1], operators=[operator], strel_size=[radius]
        )
        found[f"{name}_{radius}"] = {"positions": digits(done)}
lone = torch.zeros((1, *LOADED))
lone[0, 1:3, 2:5, 1:4] = 1
lone[0, 3, 5, 4] = 1  # touches at a corner
lone[0, 5:, 7:] = 1  # too large to go
done = Remove([0], 0, 0.15, 1)._apply_to_image(lone.clone(), apply_to_channels=[0])
found["remove"] = {"positions": digits(done)}
print(json.dumps({"version": metadata.version("batchgeneratorsv2"), "found": found}))
"""


def main() -> int:
    """Run the peer's transforms and write what they gave."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--peer", required=True, help="python of a venv with nnunetv2")
    parser.add_argument("--write-golden", required=True, type=Path)
    args = parser.parse_args()
    done = subprocess.run([args.peer, "-c", PEER], capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    origin = f"batchgeneratorsv2 {told['version']}; made by bench/golden_augment.py"
    shortened = json.dumps({"origin": origin, **_rounded(told["found"])}, separators=(",", ":"))
    write_whole(args.write_golden, (shortened.replace("},", "},\n") + "\n").encode())
    return 0


def _rounded(value: object) -> object:
    """Give numbers the five digits behind the point that the tests look at."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
