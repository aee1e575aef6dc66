"""Who goes where and when, for one gateway: dispatch, spill, hold, postpone or refuse, as the twin does.

All judgement is the core's: cluster.routing, admission, tiering, fairness, held, breaker. Here are the clock, the draw,
the futures of those who wait, and what this process sees of the replicas. Held requests are looked at again when a
replica of their tier changes, when a request ends, and every TICK_S.
"""

import asyncio
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import count

from cluster.admission import decide, overdue_s, retry_after_s
from cluster.breaker import Event, after
from cluster.errors import MorayError, Overloaded, ReplicaLost, StartTimeout
from cluster.family import Family
from cluster.held import Action, Held
from cluster.request import Served, Usage
from cluster.spare import TierLoad
from cluster.tiering import Range, keeps, spill
from deployments import seen
from deployments.gateway.asked import RESUMED, Asked, Place, Waiting, fail
from deployments.gateway.desk_tier import DeskTier, Offer, Wants, renewed

log = logging.getLogger("ray.serve")
TICK_S = 0.05
WAKE_AGAIN_S = 1.0


class Desk:
    """Lives on one event loop. `on_sleep`: told the tier when a request asks for one that has no replica.

    `admissions`: decisions, by the tier asked and the action.
    """

    def __init__(
        self,
        family: Family,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
        on_sleep: Callable[[str], None],
    ) -> None:
        self.admissions: Counter[tuple[str, str]] = Counter()
        self._clock, self._draw, self._on_sleep = clock, draw, on_sleep
        self._tiers: dict[str, DeskTier[Waiting]] = {}
        self._open: set[int] = set()
        self._spare: dict[int, Waiting] = {}  # that have no place, by number
        self._spare_ongoing: Counter[str] = Counter()
        self._numbers = count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.follow(family)
        seen.listen(self._heard)

    def follow(self, family: Family) -> None:
        """New promises for new requests."""
        self._tiers = renewed(self._tiers, family.tiers)

    # --- what others read

    def held(self) -> dict[str, tuple[int, int]]:
        """By tier: requests, and their prompt tokens. Without those that run on what is left over, as in `ongoing`."""
        return {key: self._wanting(key, tier) for key, tier in self._tiers.items()}

    def ongoing(self) -> dict[str, int]:
        """Places by tier."""
        return {key: tier.ongoing - self._spare_ongoing[key] for key, tier in self._tiers.items()}

    def open_breakers(self) -> dict[str, int]:
        return {key: tier.breakers_open() for key, tier in self._tiers.items()}

    def _wanting(self, key: str, tier: DeskTier[Waiting]) -> tuple[int, int]:
        spare = [one for one in self._spare.values() if one.range.tiers[0] == key and not one.future.done()]
        return len(tier.held) - len(spare), tier.held.prefill_tokens - sum(one.prompt_tokens for one in spare)

    def load(self, key: str, prompt_tokens: int) -> TierLoad:
        """Of a tier, for requests of so many tokens."""
        tier = self._tiers[key]
        tier.look(self._clock())
        return tier.load(prompt_tokens)

    # --- in

    async def place(self, asked: Asked) -> Place:
        """Waits. Raises Overloaded or StartTimeout. Who is cancelled leaves no trace."""
        return await self._placed(asked, asked.range, asked.arrived_s, asked.prompt_tokens, None)

    async def again(self, place: Place, given_tokens: int) -> Place:
        """The replica was lost: another one of the same tier. Raises ReplicaLost.

        `given_tokens`: of the answer, so far. Ends the place as failed where the caller has not. Its client reads
        already and sees a pause: it waits as long as a replica may take to start, whatever the tier's patience.
        """
        self.ended(place, None, True)
        asked, key = place.asked, place.served.tier
        same = Range((key,), asked.range.reason, asked.range.auto)
        most_s = self._tiers[key].rescue_s
        try:
            async with asyncio.timeout(most_s):
                return await self._placed(asked, same, self._clock(), asked.prompt_tokens + given_tokens, place)
        except TimeoutError:
            raise ReplicaLost(f"tier {key}: lost, and no place elsewhere in {most_s:g} s; send it again") from None

    async def _placed(
        self, asked: Asked, range_: Range, asked_s: float, prompt_tokens: int, before: Place | None
    ) -> Place:
        kind = (asked.priority + (RESUMED if before is not None else 0), asked.tenant)
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Place] = self._loop.create_future()
        waiting = Waiting(asked, range_, kind, asked_s, prompt_tokens, next(self._numbers), future, before)
        if asked.spare:
            self._spare[waiting.number] = waiting
        try:
            self._admit(waiting, self._clock())
            return await future
        except asyncio.CancelledError:
            self._forget(waiting)
            raise
        finally:
            self._spare.pop(waiting.number, None)

    def _admit(self, waiting: Waiting, now_s: float) -> None:
        """Those who wait could not use what is free now, so a newcomer may; but not before a higher priority."""
        tier = self._tiers[waiting.range.tiers[0]]
        tier.look(now_s)
        if tier.held.first_priority() > waiting.kind[0]:
            self._hold(waiting, tier, now_s, "hold")
            self._release(tier, now_s)
            return
        action = self._judged(waiting, now_s)
        if action in ("hold", "postpone"):
            self._hold(waiting, tier, now_s, action)

    def _judged(self, waiting: Waiting, now_s: float) -> Action:
        """Dispatch, spill or refuse; "hold" and "postpone" are for the caller to carry out."""
        if waiting.future.done():
            return "refuse"  # its caller is leaving
        key = waiting.range.tiers[0]
        tier, wants = self._tiers[key], self._wants(waiting, now_s)
        offer = tier.offer(wants, now_s)
        choice = offer.choice
        if choice.index is not None and choice.feasible:
            return self._dispatch(waiting, key, offer, wants, now_s)
        if not tier.replicas:
            if waiting.asked.spare:
                self._refuse(waiting, "it sleeps", WAKE_AGAIN_S)
                return "refuse"
            self._wake(tier, now_s)
        if self._spilled(waiting, wants, now_s):
            return "dispatch"
        return self._late(waiting, tier, offer, wants, now_s) if tier.replicas else "hold"

    def _late(self, waiting: Waiting, tier: DeskTier[Waiting], offer: Offer, wants: Wants, now_s: float) -> Action:
        """No replica keeps its promises."""
        key, choice, free = tier.key, offer.choice, tier.idle(offer, now_s)
        if free is not None:
            return self._dispatch(waiting, key, free, wants, now_s)
        if choice.index is None:
            return "postpone"  # only the replica that lost it is there
        asked_s = None if waiting.before else waiting.asked_s
        verdict = decide(choice, tier.due(offer, asked_s, now_s, waiting.asked.patience))
        if verdict.action == "dispatch":
            return self._dispatch(waiting, key, offer, wants, now_s)
        if verdict.action == "refuse":
            self._refuse(waiting, verdict.reason, verdict.retry_after_s or 1.0)
        return verdict.action

    def _wants(self, waiting: Waiting, now_s: float) -> Wants:
        """Who was lost is never late: it has the first place that keeps the promises to others."""
        avoid = waiting.before.served.replica if waiting.before is not None else None
        waited_s = now_s - waiting.asked_s if waiting.before is None else 0.0
        return Wants(waiting.kind, waiting.prompt_tokens, waited_s, self._draw(), avoid)

    def _spilled(self, waiting: Waiting, wants: Wants, now_s: float) -> bool:
        keys = waiting.range.tiers
        if len(keys) == 1:
            return False
        options = []
        for key in keys[1:]:
            self._tiers[key].look(now_s)
            options.append(self._tiers[key].offer(wants._replace(draw=self._draw()), now_s))
        asked = self._tiers[keys[0]].service
        left_s = asked.ttft_s - wants.waited_s
        found = spill(waiting.range, [False, *(keeps(one.choice, left_s, asked.tpot_ms) for one in options)])
        if found is None:
            return False
        index, reason = found
        self._dispatch(waiting, keys[index], options[index - 1], wants, now_s, reason)
        return True

    def _dispatch(
        self, waiting: Waiting, key: str, offer: Offer, wants: Wants, now_s: float, spilled: str | None = None
    ) -> Action:
        tier, asked, before = self._tiers[key], waiting.asked, waiting.before
        replica, cost_gpu_s = tier.send(offer, wants, asked.share, now_s)
        served = Served(tier=key, replica=replica, queued_s=now_s - asked.arrived_s, spilled=spilled)
        if before is not None:
            served = replace(before.served, replica=replica, resumed=before.served.resumed + 1)
        number = next(self._numbers)
        self._open.add(number)
        self._spare_ongoing[key] += asked.spare
        self.admissions[waiting.range.tiers[0], "dispatch" if spilled is None else "spill"] += 1
        seen.routing_decisions[key, offer.choice.method] += 1
        waiting.future.set_result(
            Place(
                asked=asked,
                served=served,
                number=number,
                sent_s=now_s,
                prompt_tokens=waiting.prompt_tokens,
                cost_gpu_s=cost_gpu_s,
            )
        )
        return "dispatch"

    # --- waiting

    def _hold(self, waiting: Waiting, tier: DeskTier[Waiting], now_s: float, action: Action) -> None:
        wait_s, patience_s = tier.wait_s(waiting.kind[0]), tier.service.patience_s * waiting.asked.patience
        if tier.replicas and waiting.before is None and wait_s > patience_s:
            reason = f"{wait_s:.1f} s of work wait ahead; patience is {patience_s:g} s"
            self._refuse(waiting, reason, retry_after_s(wait_s, patience_s))
            return
        tier.held.lift(waiting.kind, tier.served_gpu_s)
        more_s = patience_s - tier.service.patience_s  # whoever may wait longer is due later
        deadline_s = math.inf if waiting.before is not None else waiting.asked_s + tier.service.ttft_s + more_s
        cost_gpu_s = tier.cost_gpu_s(waiting.prompt_tokens)
        held = Held(waiting, waiting.number, waiting.kind, waiting.prompt_tokens, deadline_s, cost_gpu_s)
        tier.held.push(held, late=action == "postpone")
        self.admissions[tier.key, action] += 1
        most = tier.spec.max_waiting * max(1, len(tier.replicas))
        if len(tier.held) > most:
            last = tier.held.last()
            tier.held.remove(last.kind, last.number)
            retry_s = retry_after_s(tier.wait_s(last.kind[0]), patience_s)
            self._refuse(last.item, f"{most} requests wait already", retry_s)
        self._wind()

    def _release(self, tier: DeskTier[Waiting], now_s: float) -> None:
        tier.held.release(now_s, tier.served_gpu_s, lambda waiting: self._released(waiting, now_s))

    def _released(self, waiting: Waiting, now_s: float) -> Action:
        try:
            return self._judged(waiting, now_s)
        except Exception:  # a fault of ours: its caller must not wait for ever, nor all who stand behind
            log.exception("tier %s: a held request could not be judged", waiting.range.tiers[0])
            fail(waiting, MorayError("gateway: internal error; give the request id to the operator"))
            return "refuse"

    def _wind(self) -> None:
        if self._timer is None and self._loop is not None:
            self._timer = self._loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now_s = self._clock()
        try:
            for tier in self._tiers.values():
                if tier.held:
                    tier.look(now_s)
                    self._expire(tier, now_s)
                    self._release(tier, now_s)
        finally:
            if any(tier.held for tier in self._tiers.values()):
                self._wind()

    def _expire(self, tier: DeskTier[Waiting], now_s: float) -> None:
        ttft_s, patience_s, start_s = tier.service.ttft_s, tier.service.patience_s, tier.spec.start_timeout_s
        if tier.replicas:
            for held in tier.held.expired(overdue_s(now_s, ttft_s, patience_s, tier.awake_s)):
                retry_s = retry_after_s(tier.wait_s(held.kind[0]), patience_s)
                waited_s = patience_s * held.item.asked.patience
                self._refuse(held.item, f"no place in {waited_s:g} s of patience", retry_s)
            return
        for held in tier.held.expired(overdue_s(now_s, ttft_s, start_s, tier.asleep_s)):
            told = f"tier {tier.key}: no replica started within {start_s:g} s; the operator's log says why"
            fail(held.item, StartTimeout(told))

    def _refuse(self, waiting: Waiting, reason: str, retry_s: float) -> None:
        key = waiting.range.tiers[0]
        self.admissions[key, "refuse"] += not waiting.asked.spare
        if waiting.before is not None:
            fail(waiting, ReplicaLost(f"tier {key}: its replica was lost: {reason}; send the request again"))
            return
        told = f"tier {key}: overloaded: {reason}; come back in {math.ceil(retry_s)} s"
        fail(waiting, Overloaded(told, retry_after_s=retry_s))

    def _forget(self, waiting: Waiting) -> None:
        self._tiers[waiting.range.tiers[0]].held.remove(waiting.kind, waiting.number)
        future = waiting.future
        if future.done() and not future.cancelled() and future.exception() is None:
            place = future.result()  # it was given in the moment in which the caller left
            self._tiers[place.served.tier].charge(place.asked.tenant, -place.cost_gpu_s, place.asked.share)
            self.ended(place, None, False)

    # --- what happens

    def ended(self, place: Place, usage: Usage | None, failed: bool) -> None:
        """Frees the place. `failed`: by its replica's fault. A place that has ended already is left alone."""
        if place.number not in self._open:
            return
        self._open.remove(place.number)
        self._spare_ongoing[place.served.tier] -= place.asked.spare
        now_s, tier = self._clock(), self._tiers[place.served.tier]
        tier.look(now_s)
        replica = tier.end(place.served.replica, place.sent_s, place.prompt_tokens, None if failed else usage)
        if replica is not None:
            event: Event = "failed" if failed else "left" if usage is None else "done"
            replica.breaker = after(replica.breaker, event, now_s)
        self._changed(tier.key)

    def _heard(self, deployment: str) -> None:
        """Told by the routers, on whatever thread they run."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed, deployment)

    def _changed(self, deployment: str) -> None:
        tier = self._tiers.get(deployment)
        if tier is not None and tier.held:
            now_s = self._clock()
            tier.look(now_s)
            tier.held.late_again_s = now_s
            self._release(tier, now_s)

    def _wake(self, tier: DeskTier[Waiting], now_s: float) -> None:
        """Once, and again now and then: whoever was told may have forgotten."""
        if now_s >= tier.woken_s:
            tier.woken_s = now_s + WAKE_AGAIN_S
            self._on_sleep(tier.key)
