"""The build of the wheel takes NiiVue along where it is or npm can get it; hatchling runs this."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WithNiivue(BuildHookInterface):  # type: ignore[type-arg]
    """Before a wheel is built, try to fetch NiiVue; without it, reports show slices only."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Fetch it for a wheel that is built; an editable installation takes what is there."""
        root = Path(self.root)
        there = root / "nnseg" / "report" / "assets" / "niivue" / "niivue.umd.js"
        if self.target_name != "wheel" or version == "editable" or there.is_file():
            return
        command = [sys.executable, str(root / "scripts" / "niivue")]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            self.app.display_warning(f"the wheel is built without NiiVue: {done.stderr.strip()}")
