"""A training step at the planned batch of Hippocampus: forward, loss, backward, update.

The gates come first: both networks have the same outputs in fp32 from the same weights, and 200
steps of a small network in the precision that is timed end within 1 % of the loss of fp32. Two more
rows have both sides do with AVX2, and ours without its kernels, which such a CPU cannot run.

`--golden FILE` writes the names and shapes of the peer's weights that the tests compare with.
"""

import json
import shutil
import statistics
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path

from timing import Row, Run, alternate, measure, parse_arguments, report

PLANS = Path("reference/nnunet_plans/Dataset004_Hippocampus/nnUNetPlans.json")
CONFIGURATIONS = ("3d_fullres", "2d")
STEPS = 3  # timed in a run, after one that is not
CURVE_STEPS = 200
CURVE_MEAN = 20  # steps whose mean loss is compared
ALLOWED_LOSS = 0.01  # of the fp32 loss, counted from its best value
ALLOWED_OUTPUT = 1e-4  # of the largest logit
THREADS = {"OMP_NUM_THREADS": "2", "nnUNet_compile": "f"}
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}  # as if there were no more

# What both sides share: the work as JSON, seeded arrays, the clock.
COMMON = """
import json, statistics, sys, time
import numpy as np
import torch
work = json.loads(sys.argv[1])
config = json.load(open(work["plans"]))["configurations"][work["configuration"]]
kwargs = config["architecture"]["arch_kwargs"]
rng = np.random.default_rng(0)
shape = config["patch_size"]
image = torch.from_numpy(rng.normal(size=(config["batch_size"], 1, *shape)).astype(np.float32))
truth = torch.from_numpy(rng.integers(0, 3, (config["batch_size"], *shape)))
def timed(step):
    step()
    seconds = []
    for _ in range(work["steps"]):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
"""
OURS = (
    COMMON
    + """
from nnseg.model import kernels
if work["plain"]:
    kernels.library = lambda: None
from nnseg.exchange.nnunet_weights import from_nnunet
from nnseg.labels import Labels
from nnseg.model.architecture import Architecture
from nnseg.model.device import Execution, choose_execution
from nnseg.losses.build import make_loss
from nnseg.losses.supervision import deep_supervision_loss
from nnseg.networks.build import build_network
dimensions = len(shape)
flat = lambda triple, fill: tuple(triple) if dimensions == 3 else (fill, *triple)
architecture = Architecture(
    network="plain", dimensions=dimensions, features=tuple(kwargs["features_per_stage"]),
    kernel_sizes=tuple(flat(k, 1) for k in kwargs["kernel_sizes"]),
    strides=tuple(flat(s, 1) for s in kwargs["strides"]),
    encoder_blocks=tuple(kwargs["n_conv_per_stage"]),
    decoder_blocks=tuple(kwargs["n_conv_per_stage_decoder"]),
)
if dimensions == 2:
    image, truth = image[:, :, None], truth[:, None]
if work["exact"]:
    network = build_network(architecture, 1, 3)
    weights = torch.load(work["weights"], weights_only=True)
    network.load_state_dict(from_nnunet(weights, architecture))
    with torch.no_grad():
        outputs = network(image[:2], 3)
    torch.save([y.squeeze(2) if dimensions == 2 else y for y in outputs], work["output"])
    sys.exit()
execution = choose_execution("cpu")
network = execution.place(build_network(architecture, 1, 3), dimensions).train()
optimizer = torch.optim.SGD(
    network.parameters(), 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5
)
labels = Labels(labels={"background": 0, "Anterior": 1, "Posterior": 2})
loss = make_loss("dice_ce")
def step():
    with execution.autocast():
        outputs = network(image, 2)
    value = deep_supervision_loss(
        loss, outputs, truth, labels, config["batch_dice"], (2 / 3, 1 / 3)
    )
    value.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
seconds = timed(step)
print(json.dumps({"seconds": seconds, "execution": str(execution)}))
"""
)
PEERS = (
    COMMON
    + """
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
torch.manual_seed(0)
network = get_network_from_plans(
    config["architecture"]["network_class_name"], kwargs,
    config["architecture"]["_kw_requires_import"], 1, 3, deep_supervision=True,
).train()
if work["exact"]:
    torch.save(network.state_dict(), work["weights"])
    with torch.no_grad():
        torch.save(network(image[:2]), work["output"])
    sys.exit()
loss = DeepSupervisionWrapper(
    DC_and_CE_loss(
        {"batch_dice": config["batch_dice"], "smooth": 1e-5, "do_bg": False, "ddp": False}, {},
        dice_class=MemoryEfficientSoftDiceLoss,
    ),
    [2 / 3, 1 / 3, 0],
)
optimizer = torch.optim.SGD(
    network.parameters(), 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5
)
targets = [truth[:, None].float()]
for level in (2, 4):
    targets.append(targets[0][(slice(None), slice(None), *[slice(None, None, level)] * len(shape))])
def step():
    optimizer.zero_grad(set_to_none=True)
    value = loss(network(image), targets)
    value.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
    optimizer.step()
print(json.dumps({"seconds": timed(step)}))
"""
)
# A network of 32 and 64 features learns blobs; precision and kernels as they are chosen, or fp32.
CURVE = """
import dataclasses, json, sys
import torch
from nnseg.labels import Labels
from nnseg.model.architecture import Architecture
from nnseg.model.device import Execution, choose_execution
from nnseg.losses.build import LOSSES
from nnseg.networks.build import build_network
work = json.loads(sys.argv[1])
chosen = choose_execution("cpu")
execution = chosen if work["chosen"] else Execution(device="cpu", threads=chosen.threads)
architecture = Architecture(
    network="plain", dimensions=3, features=(32, 64), kernel_sizes=((3, 3, 3),) * 2,
    strides=((1, 1, 1), (2, 2, 2)), encoder_blocks=(2, 2), decoder_blocks=(2,),
)
torch.manual_seed(0)
network = execution.place(build_network(architecture, 1, 3), 3).train()
optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, nesterov=True)
labels = Labels(labels={"background": 0, "a": 1, "b": 2})
generator = torch.Generator().manual_seed(1)
losses = []
for _ in range(work["steps"]):
    smooth = torch.randn(2, 1, 5, 6, 4, generator=generator)
    field = torch.nn.functional.interpolate(smooth, size=(16, 20, 12), mode="trilinear")
    truth = ((field > 0.3).long() + (field > 0.8).long())[:, 0]
    image = field + 0.5 * torch.randn(field.shape, generator=generator)
    with execution.autocast():
        logits = network(image)[0]
    loss = LOSSES["dice_ce"](logits, truth, labels, True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(float(loss.detach()))
print(json.dumps({"losses": losses, "execution": str(execution)}))
"""
GOLDEN = """
import json
from torch import nn
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
found = {}
for name, make, blocks, conv, norm, first in (
    ("plain 2d", PlainConvUNet, "n_conv_per_stage", nn.Conv2d, nn.InstanceNorm2d, 1),
    ("resenc 3d", ResidualEncoderUNet, "n_blocks_per_stage", nn.Conv3d, nn.InstanceNorm3d, 0),
):
    network = make(
        2, 3, [4, 5, 5], conv, [k[first:] for k in ([1, 3, 3], [3, 3, 3], [3, 3, 3])],
        [s[first:] for s in ([1, 1, 1], [1, 2, 2], [2, 2, 1])], **{blocks: [1, 2, 1]},
        num_classes=3, n_conv_per_stage_decoder=[1, 2], conv_bias=True, norm_op=norm,
        norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, deep_supervision=True,
    )
    found[name] = {key: list(value.shape) for key, value in network.state_dict().items()}
print(json.dumps(found))
"""


def main() -> int:
    """Run all rows, or write the golden names."""
    if "--golden" in sys.argv:
        return write_golden()
    args = parse_arguments(__doc__)
    folder = Path(tempfile.mkdtemp(prefix="nnseg-bench-"))
    try:
        curve = compare_curves()
        rows = [
            compare(folder, args.peer, args.shared / PLANS, name, args.repeats, curve, plain=plain)
            for plain in (False, True)
            for name in CONFIGURATIONS
        ]
        return report(rows, args.peer)
    finally:
        shutil.rmtree(folder)


def compare(
    folder: Path,
    peer: str,
    plans: Path,
    configuration: str,
    repeats: int,
    curve: float,
    *,
    plain: bool,
) -> Row:
    """Time the steps of both sides in turn."""

    def run(python: str, program: str, side: str, *, exact: bool = False) -> Run:
        work = {
            "plans": str(plans),
            "configuration": configuration,
            "steps": STEPS,
            "exact": exact,
            "plain": plain,
            "weights": str(folder / "weights.pt"),
            "output": str(folder / f"{side}.pt"),
        }
        env = THREADS | AVX2 if plain else THREADS
        return measure([python, "-c", program, json.dumps(work)], env=env)

    run(peer, PEERS, "peer", exact=True)
    run(sys.executable, OURS, "ours", exact=True)
    error = output_error(folder)
    ours, peers = alternate(
        lambda: run(sys.executable, OURS, "ours"),
        lambda: run(peer, PEERS, "peer"),
        repeats,
        warm_up=False,
    )
    gate = f"fp32 outputs differ by {error:.1g}, {CURVE_STEPS} steps end {curve:.2%} from fp32"
    return Row(
        name="training step, AVX2 only" if plain else "training step",
        data=f"hippocampus {configuration}",
        ours=ours,
        peers=peers,
        gate=gate,
        passed=error <= ALLOWED_OUTPUT and abs(curve) <= ALLOWED_LOSS,
    )


def output_error(folder: Path) -> float:
    """Give the largest difference of the outputs of both sides, of the largest logit."""
    import torch

    mine, theirs = (
        torch.load(folder / f"{side}.pt", weights_only=True) for side in ("ours", "peer")
    )
    pairs = zip(mine, theirs, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def compare_curves() -> float:
    """Give how far the loss ends from that of fp32, of its distance to the best loss, -1."""
    ends = []
    for chosen in (True, False):
        work = json.dumps({"chosen": chosen, "steps": CURVE_STEPS})
        result = measure([sys.executable, "-c", CURVE, work], env=THREADS).result
        ends.append(statistics.mean(result["losses"][-CURVE_MEAN:]))
        print(f"{result['execution']}: {ends[-1]:.4f}", flush=True)
    return (ends[0] - ends[1]) / (ends[1] + 1)


def write_golden() -> int:
    """Write the peer's names and shapes as JSON."""
    parser = ArgumentParser(description=write_golden.__doc__)
    parser.add_argument("--peer", required=True, help="python of a venv with nnunetv2")
    parser.add_argument("--golden", type=Path, required=True)
    args = parser.parse_args()
    found = measure([args.peer, "-c", GOLDEN]).result
    lines = [
        f"  {json.dumps(name)}: {{\n{rows}\n  }}"
        for name, shapes in found.items()
        for rows in [
            ",\n".join(
                f"    {json.dumps(key)}: {json.dumps(shape)}" for key, shape in shapes.items()
            )
        ]
    ]
    args.golden.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
