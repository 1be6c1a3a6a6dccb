"""A backbone that timm itself builds, for the many of its networks that are not written here."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from nnseg.errors import MachineError, PlanError
from nnseg.model.backbone_records import TIMM
from nnseg.networks.inflation import Backbone, Levels

_BUILT = "model."  # what names of timm's parameters begin with here
_REFUSALS = (RuntimeError, TypeError, AttributeError, AssertionError, ValueError, IndexError)


class TimmBackbone(Backbone):
    """One of timm's image networks as it is, in 2D; timm must be installed.

    `features` are its channels at levels 1, 2, ..., 0 where it has no map.

    Args:
        levels: How many.
        channels: Of the image.
        name: By which timm knows it, such as "regnety_016".

    Raises:
        MachineError: timm is not installed.
        PlanError: It does not know the name, or the network has no maps of these levels, or takes
            images of one size only.
    """

    def __init__(self, levels: Levels, channels: int, name: str) -> None:
        super().__init__()
        if levels.dimensions == 3:
            raise PlanError(
                f"backbone {TIMM}{name} is an image network of timm's, which has two dimensions; "
                "train 2d, or plan with a backbone of ours"
            )
        try:
            import timm
        except ImportError:
            raise MachineError(
                f"backbone {TIMM}{name} needs timm; `pip install nnseg[timm]`, or plan with a "
                "backbone of ours"
            ) from None
        wanted = [2**level for level in range(1, len(levels.steps))]
        try:
            whole = timm.create_model(name, features_only=True, pretrained=False, in_chans=channels)
            reductions = list(whole.feature_info.reduction())
            taken = [place for place, each in enumerate(reductions) if each in wanted]
            self.model = timm.create_model(
                name, features_only=True, pretrained=False, in_chans=channels, out_indices=taken
            )
        except _REFUSALS as error:
            raise PlanError(
                f"timm cannot make {name!r} give its feature maps ({_first_line(error)}); choose "
                "another"
            ) from None
        found = [reductions[place] for place in taken]
        once = len(set(found)) == len(found) and wanted[-1] in found
        if not once or not self._gives_maps(name, channels, found):
            raise PlanError(
                f"{name} of timm's has maps at 1/{', 1/'.join(map(str, reductions))}; they must be "
                f"(channel, y, x), with one at 1/{wanted[-1]}; choose another"
            )
        widths = dict(zip(found, self.model.feature_info.channels(), strict=True))
        self.features = tuple(widths.get(reduction, 0) for reduction in wanted)

    def forward(self, image: Tensor) -> list[Tensor]:  # noqa: D102
        return list(self.model(image))

    def _gives_maps(self, name: str, channels: int, reductions: Sequence[int]) -> bool:
        """Pass an image through, and say whether maps come out as (batch, channel, y, x).

        A network that is built for images of one size, as many with attention are, does not take
        one of so uneven edges. Any that does takes patches, whose edges are multiples, too.

        Raises:
            PlanError: It does not.
        """
        y, x = 2 * max(reductions), 3 * max(reductions)
        self.model.eval()
        try:
            with torch.no_grad():
                maps = self.model(torch.zeros(1, channels, y, x))
        except _REFUSALS as error:
            raise PlanError(
                f"{TIMM}{name} does not take an image of {y} x {x} pixels ({_first_line(error)}), "
                "but must take patches of any size; choose a backbone without a fixed size, such "
                "as one of ours"
            ) from None
        self.model.train()
        widths = self.model.feature_info.channels()
        wanted = [(1, w, y // r, x // r) for w, r in zip(widths, reductions, strict=True)]
        return [tuple(each.shape) for each in maps] == wanted

    def name_in_timm(self, name: str) -> str:
        """Give a parameter's name in timm's files, without the parts that `features_only` joins."""
        return re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", name.removeprefix(_BUILT))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
