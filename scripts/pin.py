"""Write requirements-cpu.txt and sbom.cdx.json: what nnseg runs on, to the last byte.

pip says what it would install for the dependencies of pyproject.toml at the versions of
constraints-cpu.txt, with the hash of every file; nothing is installed. Run it after a change of
either, with the Python and on the kind of machine that the files are for.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import tomllib

CHECKOUT = Path(__file__).parents[1]
CONSTRAINTS, PINS, SBOM = "constraints-cpu.txt", "requirements-cpu.txt", "sbom.cdx.json"
HEAD = """\
# What nnseg runs on, pinned by version and by the SHA-256 of the file that pip gets: of torch the
# CPU build, all for Python {python} on {platform}. scripts/pin.py writes this file.
#
#   pip install --require-hashes --only-binary :all: -r requirements-cpu.txt
#   pip install --no-deps --no-build-isolation .    # after pip install hatchling
#
# pip then refuses any file that is not one of these.
"""


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--report", type=Path, help="what pip said before, instead of asking it")
    args = parser.parse_args()
    report = json.loads(args.report.read_text() if args.report else ask_pip())
    packages = sorted(map(package, report["install"]), key=lambda one: str(one["name"]))
    environment = report["environment"]
    head = HEAD.format(
        python=environment["python_version"],
        platform=f"{environment['platform_system']} {environment['platform_machine']}",
    )
    lines = [f"{one['name']}=={one['version']} --hash=sha256:{one['sha256']}\n" for one in packages]
    (CHECKOUT / PINS).write_text(head + "".join(lines), "utf-8")
    text = json.dumps(bill(packages), indent=1, ensure_ascii=False)
    (CHECKOUT / SBOM).write_text(text + "\n", "utf-8")


def project() -> dict[str, Any]:
    """Give the table `project` of pyproject.toml."""
    with open(CHECKOUT / "pyproject.toml", "rb") as file:
        table: dict[str, Any] = tomllib.load(file)["project"]
    return table


def ask_pip() -> str:
    """Give pip's report on what it would install into an empty environment."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += [
            "--ignore-installed",
            "--report",
            str(report),
            "-c",
            str(CHECKOUT / CONSTRAINTS),
        ]
        subprocess.run([*command, *project()["dependencies"]], check=True)
        return report.read_text("utf-8")


def plain(name: str) -> str:
    """Give the name of a package as all its spellings have it.

    >>> plain("Acvl_Utils")
    'acvl-utils'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def package(entry: dict[str, Any]) -> dict[str, Any]:
    """Take from an entry of pip's report what the two files tell."""
    told = entry["metadata"]
    license_ = told.get("license_expression") or told.get("license") or ""
    return {
        "name": plain(told["name"]),
        "version": told["version"].partition("+")[0],  # pip takes any build that has the hash
        "sha256": entry["download_info"]["archive_info"]["hashes"]["sha256"],
        "license": license_ if 0 < len(license_) <= 100 and "\n" not in license_ else None,
        "needs": sorted(
            {
                plain(re.split(r"[\s;<>=!~\[(]", need, maxsplit=1)[0])
                for need in told.get("requires_dist", ())
                if "extra ==" not in need
            }
        ),
    }


def bill(packages: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the bill of materials as CycloneDX 1.5 has it; the same packages make the same."""
    known = {one["name"]: f"pkg:pypi/{one['name']}@{one['version']}" for one in packages}
    direct = [plain(re.split(r"[<>=]", one)[0]) for one in project()["dependencies"]]
    content = json.dumps(packages)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "nnseg", "bom-ref": "nnseg"}},
        "components": [component(one, known[one["name"]]) for one in packages],
        "dependencies": [
            {"ref": "nnseg", "dependsOn": sorted(known[name] for name in direct)},
            *(
                {
                    "ref": known[one["name"]],
                    "dependsOn": sorted(known[name] for name in one["needs"] if name in known),
                }
                for one in packages
            ),
        ],
    }


def component(one: dict[str, Any], reference: str) -> dict[str, Any]:
    """Give a package's entry."""
    licenses = {"licenses": [{"license": {"name": one["license"]}}]} if one["license"] else {}
    return {
        "type": "library",
        "bom-ref": reference,
        "name": one["name"],
        "version": one["version"],
        "purl": reference,
        "hashes": [{"alg": "SHA-256", "content": one["sha256"]}],
        **licenses,
    }


if __name__ == "__main__":
    main()
