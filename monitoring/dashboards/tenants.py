"""What tenants use and are charged, as far as series tell: no label names a key, so who it was stands in the ledger."""

from monitoring.dashboards.panels import RANGE, RATE, Board, Panel, Query, Row, by, per_s

BILLED_IN, BILLED_OUT = "moray_billed_prompt_tokens_total", "moray_billed_completion_tokens_total"
HERE = 'tier="$tier"'


def _usd(function: str, window: str) -> str:
    """Of the chosen tier's billed tokens, at the prices entered."""
    parts = (
        f"${price} * sum by (tier) ({function}({metric}{{{HERE}}}[{window}]))"
        for metric, price in ((BILLED_IN, "usd_per_mtok_in"), (BILLED_OUT, "usd_per_mtok_out"))
    )
    return f"({' + '.join(parts)}) / 1e6"


def _gap(billed: str, answered: str) -> str:
    return f"sum by (tier) (increase({billed}[{RANGE}])) - sum by (tier) (increase({answered}[{RANGE}]))"


TENANTS = Board(
    uid="moray-tenants",
    title="Moray: tenants",
    says="What is asked, refused, charged and written into the ledger of usage. No series names a tenant or a key: "
    "who it was is told by `moray usage --by org,key`.",
    variables=("tier", "usd_per_mtok_in", "usd_per_mtok_out"),
    decided=False,
    rows=(
        Row(
            title="Demand",
            panels=(
                Panel(
                    title="Arrivals",
                    says="Requests that asked for the tier, refused and held ones included.",
                    unit="reqps",
                    queries=(by("tier", per_s("moray_arrivals_total", "tier")),),
                ),
                Panel(
                    title="Refusals",
                    says="Requests refused before any work, by code: limits of plans and budgets, full tiers, and "
                    "what callers got wrong.",
                    unit="reqps",
                    kind="stacked",
                    queries=(by("code", per_s("moray_rejections_total", "code")),),
                ),
                Panel(
                    title="Refusals of the tier asked",
                    says="As beside, by the tier that was asked; none where no tier was reached.",
                    unit="reqps",
                    kind="stacked",
                    queries=(by("tier", per_s("moray_rejections_total", "tier")),),
                ),
            ),
        ),
        Row(
            title="Limits",
            panels=(
                Panel(
                    title="Refusals by limit",
                    says="Requests that a limit of their plan refused, by the limit: chats and videos.",
                    unit="reqps",
                    kind="stacked",
                    queries=(by("limit", per_s("moray_limit_refusals_total", "limit")),),
                ),
                Panel(
                    title="Store of limits",
                    says="Times that it did not answer. Keys whose plans have limits are refused meanwhile.",
                    unit="ops",
                    queries=(Query(expr=f"sum(rate(moray_limit_failures_total[{RATE}]))", legend="failed"),),
                ),
                Panel(
                    title="Lost settlements",
                    says="Reservations whose lease was over before they were settled, over the time shown. They count "
                    "as they were reserved.",
                    unit="short",
                    kind="number",
                    queries=(Query(expr=f"sum(increase(moray_limit_lost_total[{RANGE}]))", legend="lost"),),
                ),
            ),
        ),
        Row(
            title="Charged",
            panels=(
                Panel(
                    title="Billed output tokens",
                    says="Output tokens in the ledger, by the tier that served.",
                    unit="short",
                    queries=(by("tier", per_s(BILLED_OUT, "tier")),),
                ),
                Panel(
                    title="Billed prompt tokens",
                    says="Prompt tokens in the ledger, cached ones too, by the tier that served.",
                    unit="short",
                    queries=(by("tier", per_s(BILLED_IN, "tier")),),
                ),
                Panel(
                    title="Spent per hour",
                    says="Billed tokens that the chosen tier served, at the prices above. They are yours to enter, as "
                    "series hold no prices; what was spilled is charged at the price of the tier asked, another class "
                    "of service has its factor, and videos go by the second: exact is `moray usage`.",
                    unit="currencyUSD",
                    queries=(by("tier", f"3600 * {_usd('rate', RATE)}"),),
                ),
                Panel(
                    title="Spent",
                    says="As beside, over the time shown.",
                    unit="currencyUSD",
                    kind="number",
                    queries=(by("tier", _usd("increase", RANGE)),),
                ),
                Panel(
                    title="Billed less answered",
                    says="Output tokens in the ledger less those of answers, over the time shown. Above 0 clients left "
                    "or streams broke: what they were given is charged. Below 0 the ledger lacks some.",
                    unit="short",
                    kind="number",
                    width=16,
                    queries=(by("tier", _gap(BILLED_OUT, "moray_completion_tokens_total")),),
                ),
            ),
        ),
        Row(
            title="Ledger",
            panels=(
                Panel(
                    title="Events",
                    says="Events written, by the tier that served; lost requests have none.",
                    unit="wps",
                    queries=(by("tier", per_s("moray_usage_events_total", "tier")),),
                ),
                Panel(
                    title="Pending",
                    says="Events that are in the memory of gateways alone. A few under load; more than that for "
                    "minutes, and a gateway that dies takes them along.",
                    unit="short",
                    queries=(Query(expr="sum(moray_usage_pending)", legend="pending"),),
                ),
                Panel(
                    title="Failures",
                    says="Times that the ledger could not be written or shipped, and events that found no room and "
                    "are in the log alone.",
                    unit="ops",
                    queries=(
                        Query(expr=f"sum(rate(moray_usage_failures_total[{RATE}]))", legend="failed"),
                        Query(expr=f"sum(rate(moray_usage_refused_total[{RATE}]))", legend="no room"),
                    ),
                ),
            ),
        ),
    ),
)
