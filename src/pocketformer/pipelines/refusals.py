"""What cannot be done is said before it is begun: tables that do not fit, budgets that no member meets."""

from collections.abc import Mapping

from pocketformer import runtimes
from pocketformer.architecture import SearchSpace
from pocketformer.devices import LatencyTable, whole
from pocketformer.errors import UserError, WorkError
from pocketformer.pipelines.costs import CostModel, closed_form
from pocketformer.pipelines.settings import Budget, ProfileSettings
from pocketformer.search import Objective
from pocketformer.search.metrics import amount, device_of, is_tabulated
from pocketformer.search.reach import smallest_reachable


def check_table(table: LatencyTable, where: str, space: SearchSpace, num_classes: int) -> None:
    """Raises `UserError` unless the table answers for every member of the space with that many classes."""
    missing = table.missing(space) if table.num_classes == num_classes else None
    if missing is None:
        raise UserError(
            f"latency table {where} is of {_measured_for(table.space, table.num_classes, table.resolution)}; "
            f"this job needs {_measured_for(space.name, num_classes, space.resolution)}"
        )
    if missing:
        raise UserError(
            f"latency table {where} does not answer for every member of space {space.name}: {len(missing)} of its "
            f"blocks have no entry, first {missing[0]!r}"
        )
    if (least := table.latency(space.minimum.architecture)) <= 0:
        raise UserError(
            f"latency table {where} says {least:.3g} ms of the smallest network of space {space.name}: it was edited, "
            "or measured on a busy device; profile again"
        )


def _measured_for(space: str, num_classes: int, resolution: tuple[int, int]) -> str:
    return f"space {space} with {num_classes} classes at {'x'.join(map(str, resolution))} px"


def check_measured_here(table: LatencyTable, where: str, runtime: str, settings: ProfileSettings) -> None:
    """Raises `UserError` unless networks timed here, by that runtime and with these settings, compare with the
    table's milliseconds: a table of another device, runtime, thread count or batch is good for `search` alone."""
    whole.check_measured_here(table, runtime, f"latency table {where}")
    device = runtimes.check_device(runtimes.runtime(runtime), settings.device)
    for name, wanted in (("threads", settings.threads), ("batch", settings.batch), ("on", device)):
        if (had := table.fingerprint.get(name, wanted)) != wanted:
            raise UserError(f"latency table {where} was measured with {name} {had}; this job has {wanted}")


def refuse_small_budgets(space: SearchSpace, budgets: Mapping[str, Budget], num_classes: int) -> None:
    """Parameters, MACs and memory are known in closed form: an impossible budget is refused before anything is
    done."""
    low, high = (closed_form(a, num_classes) for a in (space.minimum.architecture, space.largest))
    for name in (name for name in budgets if not is_tabulated(name)):
        _refuse(space, name, budgets[name].of(high[name]), low[name])


def refuse_unreachable(space: SearchSpace, costs: CostModel, goal: Objective) -> None:
    """Raises `WorkError` if no member meets a budget, or the smallest score, on the device of the table."""
    best = smallest_reachable(space, costs)
    for name, budget in goal.budgets.items():
        _refuse(space, name, budget, best[name])
    if goal.min_mes is not None and goal.mes(best) < goal.min_mes:
        raise WorkError(
            f"no member of space {space.name} has an MES of {goal.min_mes:g} or more: the highest is "
            f"{goal.mes(best):.1f}"
        )


def _refuse(space: SearchSpace, name: str, budget: float, smallest: float) -> None:
    if smallest > budget:
        where = " on this device" if is_tabulated(name) and not device_of(name) else ""
        raise WorkError(
            f"no member of space {space.name} has {amount(name, budget)} or less{where}: its smallest value is "
            f"{amount(name, smallest)}"
        )
