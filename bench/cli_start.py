"""Command start: the help of the predict command."""

import sys
from pathlib import Path

from timing import Row, alternate, measure, parse_arguments, report


def main() -> int:
    """Run the row."""
    args = parse_arguments(__doc__)
    ours = [str(Path(sys.executable).with_name("nnseg_predict")), "-h"]
    peers = [str(Path(args.peer).with_name("nnUNetv2_predict")), "-h"]
    first, second = alternate(lambda: measure(ours), lambda: measure(peers), args.repeats)
    row = Row(
        name="command start",
        data="predict -h",
        ours=first,
        peers=second,
        gate="both exit with 0",
        passed=True,
    )
    return report([row], args.peer)


if __name__ == "__main__":
    sys.exit(main())
