"""Dashboards in Grafana's JSON, by Grafana's own builders.

The builders (grafana-foundation-sdk) are needed to change dashboards, not to run: only `text` imports them.
"""

from typing import TYPE_CHECKING, Any

from monitoring.dashboards.panels import Board, Kind, Panel, Query, Variable

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders import dashboard as boards
    from grafana_foundation_sdk.builders import timeseries
    from grafana_foundation_sdk.cog.builder import Builder
    from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableModel
    from grafana_foundation_sdk.models.dashboard import Panel as Drawn

HEIGHT = 8
ENTERED: dict[Variable, tuple[str, float]] = {  # label, and what it is where nobody enters another
    "usd_per_gpu_hour": ("USD per GPU-hour", 2.5),
    "usd_per_mtok_in": ("USD per million prompt tokens", 10),
    "usd_per_mtok_out": ("USD per million output tokens", 30),
}
LOOKED_UP: dict[Variable, tuple[str, str]] = {  # label and query; those with gateways are language tiers
    "tier": ("Tier", "label_values(moray_replicas_running, tier)"),
    "layer": ("Layer", 'label_values(moray_expert_imbalance_ratio{tier="$tier"}, layer)'),
    "domain": ("Domain", 'label_values(moray_expert_tokens_total{tier="$tier"}, domain)'),
}
TAGS = ("moray", "decision")  # of annotations that say why


def text(board: Board) -> str:
    """The committed file: keys in order, a line's end at the end."""
    from grafana_foundation_sdk.builders import dashboard as boards
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import DashboardCursorSync

    made = (
        boards.Dashboard(board.title)
        .uid(board.uid)
        .description(board.says)
        .tags(["moray"])
        .readonly()
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(boards.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for name in board.variables:
        made = made.with_variable(_variable(name))
    if board.decided:
        made = made.annotation(_reasons())
    number = 0
    for row in board.rows:
        number += 1
        made = made.with_row(boards.Row(row.title).id(number))
        for panel in row.panels:
            number += 1
            made = made.with_panel(_panel(panel, number))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def _source() -> "DataSourceRef":
    from grafana_foundation_sdk.models.dashboard import DataSourceRef

    return DataSourceRef(type_val="prometheus", uid="${datasource}")


def _variable(name: Variable) -> "Builder[VariableModel]":
    from grafana_foundation_sdk.builders import dashboard as boards
    from grafana_foundation_sdk.models.dashboard import VariableRefresh, VariableSort

    if name in ENTERED:
        label, usual = ENTERED[name]
        return boards.TextBoxVariable(name).label(label).default_value(f"{usual:g}")
    label, query = LOOKED_UP[name]
    return (
        boards.QueryVariable(name)
        .label(label)
        .datasource(_source())
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NUMERICAL_ASC if name == "layer" else VariableSort.ALPHABETICAL_ASC)
    )


def _reasons() -> "boards.AnnotationQuery":
    from grafana_foundation_sdk.builders import dashboard as boards
    from grafana_foundation_sdk.models.dashboard import AnnotationTarget, DataSourceRef

    made = boards.AnnotationQuery().name("Decisions").enable(True).icon_color("blue")
    made = made.datasource(DataSourceRef(type_val="grafana", uid="-- Grafana --"))
    # The builder takes queries only; the schema wants this one's own form.
    target = AnnotationTarget(limit=100, match_any=False, tags=list(TAGS), type_val="tags")
    made.build().target = target  # type: ignore[assignment]
    return made


def _panel(panel: Panel, number: int) -> "Builder[Drawn]":
    drawn: Any = _drawn(panel.kind)  # the builders of kinds have these calls in common, and no type
    drawn = drawn.id(number).title(panel.title).description(panel.says).unit(panel.unit).datasource(_source())
    drawn = drawn.span(panel.width).height(HEIGHT)
    for place, query in enumerate(panel.queries):
        drawn = drawn.with_target(_target(query, chr(ord("A") + place), panel.kind))
    return drawn  # type: ignore[no-any-return]


def _drawn(kind: Kind) -> object:
    from grafana_foundation_sdk.builders import common, heatmap, stat
    from grafana_foundation_sdk.models.common import HeatmapCellLayout, StackingMode

    match kind:
        case "lines":
            return _over_time().fill_opacity(5)
        case "stacked":
            return _over_time().fill_opacity(40).stacking(common.StackingConfig().mode(StackingMode.NORMAL))
        case "number":
            return stat.Panel()
        case "heat":
            frame = heatmap.RowsHeatmapOptions().layout(HeatmapCellLayout.UNKNOWN)
            return heatmap.Panel().calculate(False).rows_frame(frame).cell_gap(0)


def _over_time() -> "timeseries.Panel":
    from grafana_foundation_sdk.builders import common, timeseries
    from grafana_foundation_sdk.models.common import (
        LegendDisplayMode,
        LegendPlacement,
        TooltipDisplayMode,
        VisibilityMode,
    )

    legend = common.VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST)
    tooltip = common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI)
    return (
        timeseries.Panel()
        .show_points(VisibilityMode.NEVER)
        .legend(legend.placement(LegendPlacement.BOTTOM))
        .tooltip(tooltip)
    )


def _target(query: Query, ref: str, kind: Kind) -> Any:
    from grafana_foundation_sdk.builders import prometheus

    made = prometheus.Dataquery().datasource(_source()).expr(query.expr).legend_format(query.legend).ref_id(ref)
    return made.instant() if kind == "number" else made.range()
