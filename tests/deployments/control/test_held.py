from collections.abc import Sequence
from pathlib import Path

from cluster.errors import Unavailable
from cluster.usage import Held
from deployments.control.held import HeldUse
from deployments.stores.usage import SqliteUsage
from deployments.stores.usage_rows import UsageRows


def held(store: UsageRows) -> list[tuple[str, float]]:
    return [tuple(row) for row in store._run("SELECT tier, gpu_s FROM usage_held ORDER BY at_s, tier", ())]


def test_what_tiers_held_is_written_once_as_it_grows(tmp_path: Path) -> None:
    store = SqliteUsage(tmp_path / "usage.sqlite")
    use = HeldUse("run", lambda: store)
    use.write({"pro": 8.0, "mini": 2.0}, 3.0, 60)
    use.write({"pro": 8.0, "mini": 5.0}, 3.0, 120)
    use.write({"pro": 8.0, "mini": 5.0}, 3.0, 120)
    assert held(store) == [("mini", 2.0), ("pro", 8.0), ("mini", 3.0)]


def test_what_could_not_be_written_is_written_the_next_time(tmp_path: Path) -> None:
    store, answers = SqliteUsage(tmp_path / "usage.sqlite"), [False, True]

    def opened() -> UsageRows:
        if answers.pop(0):
            return store
        raise Unavailable("usage: it hangs; one that answers is allowed; try again soon")

    use = HeldUse("run", opened)
    use.write({"pro": 8.0}, 3.0, 60)
    use.write({"pro": 9.0}, 3.0, 120)
    assert held(store) == [("pro", 8.0), ("pro", 1.0)], "each in its own hour"


class Unheard(SqliteUsage):
    """What it writes, nobody hears of at first."""

    heard = False

    def hold(self, held: Sequence[Held]) -> None:
        super().hold(held)
        if not self.heard:
            self.heard = True
            raise Unavailable("usage: it hangs; one that answers is allowed; try again soon")


def test_what_was_written_unheard_counts_once(tmp_path: Path) -> None:
    store = Unheard(tmp_path / "usage.sqlite")
    use = HeldUse("run", lambda: store)
    use.write({"pro": 8.0}, 3.0, 60)
    use.write({"pro": 9.0}, 3.0, 120)
    assert held(store) == [("pro", 8.0), ("pro", 1.0)]
