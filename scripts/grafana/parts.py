"""Builds the parts that both dashboards are made of: a number, a graph, the table of findings, rows and variables."""

from dataclasses import dataclass

from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    TableSortByFieldState,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
    TextBoxVariable,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from .findings import SEVERITIES, Rule, selected, union

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
DOCS = "https://docs.example/license-agent/"
"""What the variable `docs` is until an administrator sets it: a name that nobody has (RFC 2606)."""
COLORS = ("blue", "yellow", "orange", "red")
"""Of the severities, from the least."""
GOOD = "green"


@dataclass(frozen=True)
class Steps:
    """Colors of a number: green, and another from a value on, or until a value."""

    steps: tuple[tuple[float | None, str], ...]

    def config(self) -> ThresholdsConfig:
        return ThresholdsConfig().steps([Threshold(value=value, color=color) for value, color in self.steps])


PLAIN = Steps(((None, "text"),))
BAD_FROM_1 = Steps(((None, GOOD), (1, "red")))
LOOK_FROM_1 = Steps(((None, GOOD), (1, "orange")))
GOOD_AT_1 = Steps(((None, "red"), (1, GOOD)))


def good_below(value: float) -> Steps:
    """Red from a value on."""
    return Steps(((None, GOOD), (value, "red")))


def good_from(value: float) -> Steps:
    """Red below a value."""
    return Steps(((None, "red"), (value, GOOD)))


def number(title: str, expr: str, text: str, *, steps: Steps = PLAIN, unit: str = "short", span: int = 4, none: str = "no data",
           decimals: int | None = None) -> Stat:  # fmt: skip
    """One number, as it is now.

    Args:
        title: what it counts.
        expr: PromQL without selectors of the machine.
        text: what it means and what to do.
        steps: its colors.
        unit: Grafana's name of it.
        span: of 24 columns.
        none: what is shown where the query returns nothing; never a number, so that "nobody was asked" does not look like 0.
        decimals: places after the point; None lets Grafana choose.
    """
    panel = (
        Stat()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .unit(unit)
        .no_value(none)
        .thresholds(steps.config())
        .color_mode(BigValueColorMode.BACKGROUND if steps is not PLAIN else BigValueColorMode.NONE)
        .graph_mode(BigValueGraphMode.NONE)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .span(span)
        .height(4)
        .with_target(Dataquery().expr(selected(expr)).instant().ref_id("A").datasource(SOURCE))
    )
    return panel if decimals is None else panel.decimals(decimals)


def lines(title: str, queries: dict[str, str], text: str, *, unit: str = "short", span: int = 8, steps: Steps | None = None,
          soft_max: float | None = None, stacked: bool = False) -> Timeseries:  # fmt: skip
    """A graph over time.

    Args:
        title: what it shows.
        queries: PromQL by legend; a legend may name labels as `{{instance}}`.
        text: what it means and what to look for.
        unit: as for `number`.
        span: as for `number`.
        steps: where the line lies that it must not cross.
        soft_max: upper end of the axis while nothing is above it.
        stacked: whether the areas are filled.
    """
    panel = (
        Timeseries()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .fill_opacity(30 if stacked else 8)
        .line_width(1)
        .show_points(VisibilityMode.NEVER)
        .legend(VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM).show_legend(True))
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .span(span)
        .height(8)
    )
    for number_, (legend, expr) in enumerate(queries.items()):
        panel = panel.with_target(
            Dataquery().expr(selected(expr)).range().legend_format(legend).ref_id(chr(65 + number_)).datasource(SOURCE)
        )
    if steps is not None:
        panel = panel.thresholds(steps.config()).thresholds_style(
            GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        )
    return panel if soft_max is None else panel.axis_soft_max(soft_max)


def findings(found: list[Rule]) -> Table:
    """The table that says what is wrong, on which machine, and where its runbook is; the worst first."""
    levels = {str(rank): {"text": name, "color": COLORS[rank - 1], "index": rank} for rank, name in enumerate(SEVERITIES, 1)}
    return (
        Table()
        .title("What is wrong, where, and what to do")
        .description(
            "Each finding is an alert rule that holds at this moment, without the time that the rule waits before it fires. "
            "The runbook opens in your copy of the documentation: set the variable 'Documentation' above."
        )
        .datasource(SOURCE)
        .no_value("nothing is wrong, or no machine is seen: the numbers above say which")
        .span(24)
        .height(8)
        .with_target(Dataquery().expr(union(found)).instant().format(PromQueryFormat.TABLE).ref_id("A").datasource(SOURCE))
        .with_transformation(
            DataTransformerConfig(
                id_val="organize",
                options={
                    "excludeByName": {"Time": True},
                    "indexByName": {"Value": 0, "instance": 1, "finding": 2, "name": 3, "exported_job": 4, "runbook": 5},
                    "renameByName": {"Value": "severity", "instance": "machine", "name": "key", "exported_job": "job"},
                },
            )
        )
        .sort_by([TableSortByFieldState().display_name("severity").desc(True)])
        .override_by_name(
            "severity",
            [
                DynamicConfigValue(id_val="mappings", value=[{"type": "value", "options": levels}]),
                DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-background"}),
                DynamicConfigValue(id_val="custom.width", value=110),
            ],
        )
        .override_by_name(
            "runbook",
            [
                DynamicConfigValue(
                    id_val="links",
                    value=[{"title": "Open the runbook", "url": "${docs}${__value.raw}", "targetBlank": True}],
                )
            ],
        )
    )


def dashboard(title: str, uid: str, instances: str, other: tuple[str, str]) -> Dashboard:
    """An empty dashboard with its variables: the data source, the machines, where the documentation is.

    Args:
        title: of the dashboard.
        uid: stable, so that links and a later import find it.
        instances: PromQL of the series whose label `instance` names the machines.
        other: title and uid of the dashboard that it links to.
    """
    return (
        Dashboard(title)
        .uid(uid)
        .tags(["license-agent"])
        .time("now-6h", "now")
        .refresh("1m")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(DashboardLink(other[0]).url(f"/d/{other[1]}").keep_time(True))
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(
            QueryVariable("instance")
            .label("Machine")
            .datasource(SOURCE)
            .query(f"label_values({instances}, instance)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".+")
            .current(VariableOption(selected=True, text="All", value="$__all"))
        )
        .with_variable(
            TextBoxVariable("docs")
            .label("Documentation")
            .description("Where your copy of docs/ is: a URL that ends with a slash.")
            .default_value(DOCS)
        )
    )


def section(title: str, *panels: Stat | Timeseries) -> Row:
    """A row that is closed until somebody opens it: its queries are asked only then."""
    row = Row(title).collapsed(True)
    for panel in panels:
        row = row.with_panel(panel)
    return row
