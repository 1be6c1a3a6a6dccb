"""Plans and folds of a dataset, made of what was measured, and kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from nnseg import record
from nnseg.axes import Spacing
from nnseg.dataset import DatasetSpec, read_spec
from nnseg.dataset.groups import GroupRule, rule_file
from nnseg.errors import PlanError
from nnseg.exchange.nnunet_reading import read_fingerprint, read_plans
from nnseg.exchange.nnunet_writing import plans_to_json
from nnseg.fingerprint import Fingerprint
from nnseg.folders import Folders, is_folder_name
from nnseg.lock import locked
from nnseg.model.architecture import NO_OPTIONS, NetworkOptions
from nnseg.plan import Plan, differing_key, make_plan
from nnseg.runlog import logged_run
from nnseg.splits import plan_folds, source_file

DEFAULT_PLAN = "nnseg"
PLANNED_BY = "nnseg plan"


def plan(
    folders: Folders,
    dataset: str,
    *,
    name: str = DEFAULT_PLAN,
    planner: str = "default",
    memory_gb: float | None = None,
    target_spacing: Spacing | None = None,
    network: str | None = None,
    options: NetworkOptions = NO_OPTIONS,
    measured: Fingerprint | None = None,
    group_regex: str | None = None,
    save: bool = True,
) -> Plan:
    """Stage 2: plan `dataset` from its fingerprint, and write the plan and the folds.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        name: Of the plan; several live side by side.
        planner: A name of PLANNERS.
        memory_gb: What a training may take; None is the planner's own target.
        target_spacing: mm, (z, y, x) of the files, instead of the median's.
        network: A name of KINDS; None is the planner's own.
        options: Of the network.
        measured: Its fingerprint; None reads the one that `fingerprint` wrote.
        group_regex: Finds the patient in the id of a case; the folds keep patients together.
        save: False plans without writing anything.

    Raises:
        MissingError: There is no fingerprint.
        PlanError: As `make_plan`.
        UsageError: `group_regex` is wrong, or finds no patient in some case.
        DataError: The folds part patients by `group_regex`, and were trained on.
        MachineError: Another run is planning this dataset, or its folder cannot be written.
    """
    rule = None if group_regex is None else GroupRule(regex=group_regex)
    spec = read_spec(folders.spec_file(dataset))
    if measured is None:
        measured = record.load(Fingerprint, folders.fingerprint_file(dataset), PLANNED_BY)
    result = make_plan(
        spec,
        measured,
        dataset=dataset,
        name=name,
        planner=planner,
        memory_gb=memory_gb,
        target_spacing=target_spacing,
        network=network,
        options=options,
    )
    if save:
        arguments = {"planner": planner, "memory_gb": memory_gb, "target_spacing": target_spacing}
        arguments |= {"network": network, **options.chosen}
        arguments |= {"dataset": dataset, "name": name, "group_regex": group_regex}
        _save_plan(folders, result, "plan", arguments, rule)
    return result


def import_plans(folders: Folders, dataset: str, plans_file: Path, *, name: str) -> Plan:
    """Make a plan of ours from nnU-Net's plans.json for a dataset of ours."""
    spec = read_spec(folders.spec_file(dataset))
    result = read_plans(record.read_json(plans_file), spec, name=name)
    result = replace(result, dataset=dataset)
    _save_plan(folders, result, "import", {"plans_file": str(plans_file), "name": name})
    return result


def _save_plan(
    folders: Folders,
    plan: Plan,
    command: str,
    arguments: dict[str, Any],
    rule: GroupRule | None = None,
) -> None:
    """Write a plan, the folds beside it, and the record of the command that made them."""
    path, folder = folders.plan_file(plan.dataset, plan.name), folders.prepared_folder(plan.dataset)
    with (
        locked(folder, f"nnseg {command} -d {plan.dataset}"),
        logged_run(folder, command, arguments) as run,
    ):
        plan_folds(folders, plan.dataset, rule)
        record.save(plan, path)
        splits = folders.splits_file(plan.dataset)
        run.outputs += [path, splits, rule_file(splits), source_file(splits)]


def plan_as_nnunet(
    fingerprint_file: Path,
    dataset_json: Path,
    *,
    planner: str = "default",
    memory_gb: float | None = None,
    target_spacing: Spacing | None = None,
    network: str | None = None,
    options: NetworkOptions = NO_OPTIONS,
) -> dict[str, Any]:
    """Plan from nnU-Net's own fingerprint and give the content of nnU-Net's plans.json.

    Raises:
        PlanError: As `make_plan`, or the network is none of nnU-Net's.
    """
    spec = read_spec(dataset_json)
    data = record.read_json(fingerprint_file, most=record.LARGE_BYTES)
    measured = read_fingerprint(data, str(fingerprint_file))
    here = dataset_json.resolve().parent.name
    result = make_plan(
        spec,
        measured,
        dataset=here if is_folder_name(here) else "Dataset",
        planner=planner,
        memory_gb=memory_gb,
        target_spacing=target_spacing,
        network=network,
        options=options,
    )
    reader = spec.others.get("overwrite_image_reader_writer")
    return plans_to_json(result, reader=reader)


def load_plan(folders: Folders, dataset: str, name: str = DEFAULT_PLAN) -> Plan:
    """Read the plan called `name` of a dataset.

    Raises:
        MissingError: It has not been made.
        PlanError: The file calls itself otherwise, as a copy does; then its data would be mixed up.
    """
    path = folders.plan_file(dataset, name)
    found = record.load(Plan, path, f"{PLANNED_BY} -d {dataset}")
    if (found.name, found.dataset) != (name, dataset):
        raise PlanError(
            f"{path}: calls itself plan {found.name} of {found.dataset}; write {name} and "
            f"{dataset} into it"
        )
    return found


def check_spec(plan: Plan, spec: DatasetSpec, where: str) -> None:
    """Refuse a plan that was made of another dataset.json than today's.

    What was preprocessed or trained by it has the channels and labels of then.

    Args:
        plan: The plan.
        spec: The dataset.json of today.
        where: Its file, for the message.

    Raises:
        PlanError: The key of dataset.json that differs, what it is and what it was.
    """
    if difference := differing_key(plan, spec):
        raise PlanError(
            f"{where}: {difference} for plan {plan.name}; restore it, or plan anew: "
            f"`nnseg plan {plan.dataset} -p {plan.name}`"
        )
