"""Plan and preprocess hippocampus, 2d and 3d_fullres, data examined, from nothing.

The peer runs twice, with two processes and with its own default; the better one counts.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from timing import Row, Run, alternate, measure, parse_arguments, report

from nnseg import record
from nnseg.exchange.nnunet_writing import plans_to_json
from nnseg.plan import Plan

DATASET = "Dataset004_Hippocampus"
PLANNED = ("patch_size", "batch_size", "spacing", "normalization_schemes", "architecture")


def main() -> int:
    """Run the row."""
    args = parse_arguments(__doc__)
    root = Path(tempfile.mkdtemp(prefix="nnseg-bench-"))
    try:
        (root / "raw").mkdir()
        (root / "raw" / DATASET).symlink_to(args.shared / "data" / DATASET)
        rows = [compare(root, args.peer, args.repeats, processes) for processes in ("2", None)]
        rows.sort(key=lambda row: row.ratio)
        return report(rows[:1], args.peer)
    finally:
        shutil.rmtree(root)


def compare(root: Path, peer: str, repeats: int, processes: str | None) -> Row:
    """Run both sides into empty folders, the peer with so many processes."""
    ours_command = str(Path(sys.executable).with_name("nnseg_plan_and_preprocess"))
    peer_command = str(Path(peer).with_name("nnUNetv2_plan_and_preprocess"))
    ours_out, peer_out = root / "preprocessed", root / "peer"
    env = {
        "nnUNet_raw": str(root / "raw"),
        "nnUNet_preprocessed": str(peer_out),
        "nnUNet_results": str(root / "none"),
        "OMP_NUM_THREADS": "2",
    }
    configurations = ["-c", "2d", "3d_fullres"]

    def ours() -> Run:
        shutil.rmtree(ours_out, ignore_errors=True)
        return measure([ours_command, "-d", "4", *configurations, "--root", str(root)])

    def peers() -> Run:
        shutil.rmtree(peer_out, ignore_errors=True)
        argv = [peer_command, "-d", "4", *configurations, "--verify_dataset_integrity"]
        if processes is not None:
            argv += ["-npfp", processes, "-np", processes, processes]
        return measure(argv, env=env)

    first, second = alternate(ours, peers, repeats)
    plan = record.load(Plan, ours_out / DATASET / "plans" / "nnseg.json")
    mine = plans_to_json(plan)["configurations"]
    theirs = record.read_json(peer_out / DATASET / "nnUNetPlans.json")["configurations"]
    differing = [
        f"{name}.{key}"
        for name in ("2d", "3d_fullres")
        for key in PLANNED
        if mine[name][key] != theirs[name][key]
    ]
    return Row(
        name="plan and preprocess",
        data=f"hippocampus, 2d + 3d_fullres, examined; peer: {processes or 'default'} processes",
        ours=first,
        peers=second,
        gate="plans equal" if not differing else f"plans differ: {', '.join(differing)}",
        passed=not differing,
    )


if __name__ == "__main__":
    sys.exit(main())
