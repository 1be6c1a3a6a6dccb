"""Predictions in a process of their own, which prints what memory it has taken, in bytes.

`many FOLDER EARLY LATE`: by as many predictions of small scans, at EARLY and at LATE.
`classes PLANES SIDE CLASSES DEPTH`: at most, once a small network of so many classes is built, and
after one image of PLANES x SIDE x SIDE voxels, an array in memory: in bf16, without mirrors, by
tiles of DEPTH x 64 x 64 voxels that do not overlap.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path


def many(folder: Path, early: int, late: int) -> tuple[int, int]:
    from scans import draw_scans, make_model

    from nnseg.predicted_folder import Wanted
    from nnseg.predictor import load
    from nnseg.verbs import predicting

    predictor = load(make_model(folder / "model"), device="cpu", precision="fp32")
    predictor = replace(predictor, mirror=False)
    scans = draw_scans(folder / "scans", 5)
    one, out = draw_scans(folder / "one", 1), folder / "out"
    wanted = Wanted(maps=("entropy", "disagreement"), probabilities="chunks", statistics=True)
    found = []
    for number in range(1, late + 1):
        if number % 5:
            name = f"scan_{number % 5}_000"
            predictor.predict([scans / f"{name}0.nii.gz", scans / f"{name}1.nii.gz"])
        else:
            predicting.predict(predictor, one, out, wanted=wanted, overwrite=True)
        if number in (early, late):
            found.append(resident())
    return found[0], found[1]


def resident() -> int:
    """Give the memory that this process has now."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def classes(planes: int, side: int, number: int, depth: int) -> tuple[int, int]:
    import numpy as np
    from tiny import shrink, toy_plan

    from nnseg.ensemble import Member
    from nnseg.inference import Model
    from nnseg.labels import Labels
    from nnseg.model.device import Execution
    from nnseg.networks.build import build_network
    from nnseg.predictor import Predictor
    from nnseg.runlog import peak_memory

    labels = Labels(labels={"background": 0, **{f"organ {n}": n for n in range(1, number)}})
    plan = shrink(toy_plan(labels), "3d_fullres", (depth, 64, 64))
    configuration = plan.configuration("3d_fullres")
    execution = Execution(device="cpu", precision="bf16")
    network = build_network(configuration.architecture, 1, labels.heads)
    model = Model(
        plan=plan,
        configuration=configuration,
        networks=(execution.place(network, 3).eval(),),
        mirror_axes=(),
        execution=execution,
        weights_sha256=("0" * 64,),
    )
    predictor = Predictor(members=(Member(model=model),), step=1.0)
    built = peak_memory()
    rng = np.random.default_rng(0)
    image = rng.normal(size=(planes, side, side)).astype(np.float32)
    found = predictor.predict((image, (2.0, 1.0, 1.5)))
    assert found.shape == image.shape
    assert len(np.unique(found)) > 1
    return built, peak_memory()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    what, *arguments = sys.argv[1:]
    if what == "many":
        taken = many(Path(arguments[0]), int(arguments[1]), int(arguments[2]))
    else:
        planes, side, number, depth = map(int, arguments)
        taken = classes(planes, side, number, depth)
    print(*taken)
