from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roost.engine import lifecycle as lc
from roost.engine.lifecycle import Command, Desired, Phase, State, Tier, initial, step
from roost.errors import ConflictError

TIERS = list(Tier)
EVENTS: list[lc.Event] = [
    lc.Placing(),
    lc.Starting(),
    lc.Running(),
    *(lc.SleepAsked(tier) for tier in TIERS),
    lc.SleepUndone(),
    lc.RollbackAsked(),
    *(lc.Slept(tier) for tier in TIERS),
    lc.WakeAsked(),
    *(lc.WakeUndone("no room", tier) for tier in TIERS),
    lc.WentDown("host restarted"),
    lc.Failed("crashed", True),
    lc.Failed("stuck", False),
    lc.DestroyAsked(),
    lc.Destroyed(),
]

# phase -> where it can go; anything else is a fault of the state machine
ARROWS = {
    Phase.ACCEPTED: {Phase.PLACEMENT_PENDING, Phase.FAILED, Phase.DESTROYING},
    Phase.PLACEMENT_PENDING: {Phase.STARTING, Phase.FAILED, Phase.DESTROYING},
    Phase.STARTING: {Phase.RUNNING, Phase.FAILED, Phase.DESTROYING},
    Phase.RUNNING: {Phase.STOPPING, Phase.SLEEPING, Phase.FAILED, Phase.DESTROYING},
    Phase.STOPPING: {Phase.RUNNING, Phase.SLEEPING, Phase.FAILED, Phase.DESTROYING},
    Phase.SLEEPING: {Phase.STOPPING, Phase.WAKING, Phase.DESTROYING},
    Phase.WAKING: {Phase.RUNNING, Phase.SLEEPING, Phase.FAILED, Phase.DESTROYING},
    Phase.FAILED: {
        Phase.WAKING,
        Phase.SLEEPING,
        Phase.STOPPING,  # rolled back, where it can be started again
        Phase.RUNNING,  # a sleep that got stuck is undone after all
        Phase.DESTROYING,
    },
    Phase.DESTROYING: {Phase.DESTROYED, Phase.FAILED},
    Phase.DESTROYED: set(),
}


def test_whatever_happens_keeps_to_the_arrows() -> None:
    """Every event in every state that any sequence of them leads to."""
    seen = {initial()}
    todo = [initial()]
    while todo:
        state = todo.pop()
        for event in EVENTS:
            after = checked(state, event)
            if after not in seen:
                seen.add(after)
                todo.append(after)
    assert {state.phase for state in seen} == set(Phase)


def checked(before: State, event: lc.Event) -> State:
    refused = None
    try:
        state, commands = step(before, event)
    except ConflictError as error:
        refused = error
    if refused is not None:
        assert refused.code == "INVALID_STATE"
        assert before.phase.value in refused.message
        assert refused.message.endswith(".")
        assert not isinstance(event, lc.DestroyAsked)  # that is always legal
        return before
    assert state.phase is before.phase or state.phase in ARROWS[before.phase]
    if before.phase is Phase.FAILED and state.phase is Phase.RUNNING:
        assert isinstance(event, lc.SleepUndone)
    if before.desired is Desired.DESTROYED:  # never taken back
        assert state.desired is Desired.DESTROYED
    if state.phase is Phase.FAILED:
        assert state.reason
    else:
        assert not state.retryable
    assert state.tier is None or state.phase in (Phase.STOPPING, Phase.SLEEPING)
    assert state.tier is not None or state.phase is not Phase.SLEEPING
    if before.phase is Phase.SLEEPING and state.phase is Phase.STOPPING:
        assert before.frozen or isinstance(event, lc.RollbackAsked)  # nothing is below the others
    if before.phase is Phase.RUNNING and state.phase is not Phase.RUNNING:
        assert Command.UNWATCH in commands
    if state.phase is Phase.RUNNING and before.phase is not Phase.RUNNING:
        assert commands == (Command.WATCH,)
    if state == before:
        assert commands == () or isinstance(event, lc.Failed)
    return state


@given(st.sampled_from(list(Phase)), st.sampled_from(list(Desired)), st.booleans())
def test_no_state_is_a_trap(phase: Phase, desired: Desired, retryable: bool) -> None:
    state = State(phase, desired, "x", retryable)
    after, _ = step(state, lc.DestroyAsked())
    assert after.phase in (Phase.DESTROYING, Phase.DESTROYED)


@pytest.mark.parametrize(
    ("phase", "event", "says"),
    [
        (Phase.DESTROYED, lc.WakeAsked(), "Create another"),
        (Phase.STARTING, lc.SleepAsked(Tier.FROZEN), "Wait until it runs"),
        (Phase.FAILED, lc.WakeAsked(), "Delete it"),
        (Phase.DESTROYING, lc.SleepAsked(Tier.STOPPED), "Wait until it is destroyed"),
    ],
)
def test_the_refusal_says_what_is_possible(phase: Phase, event: lc.Event, says: str) -> None:
    with pytest.raises(ConflictError) as caught:
        step(State(phase, Desired.RUNNING, "why" if phase is Phase.FAILED else None), event)
    assert says in caught.value.message
    assert caught.value.details["phase"] == phase


def test_asking_again_changes_nothing() -> None:
    for phase, event in (
        (Phase.RUNNING, lc.WakeAsked()),
        (Phase.SLEEPING, lc.SleepAsked(Tier.HIBERNATED)),
        (Phase.DESTROYED, lc.DestroyAsked()),
    ):
        desired = Desired.SLEEPING if phase is Phase.SLEEPING else Desired.RUNNING
        state = State(phase, desired, tier=Tier.STOPPED if phase is Phase.SLEEPING else None)
        assert step(state, event) == (state, ())


def test_frozen_is_the_first_of_the_tiers() -> None:
    running = State(Phase.RUNNING, Desired.RUNNING)
    state, commands = step(running, lc.SleepAsked(Tier.FROZEN))
    assert commands == (Command.UNWATCH, Command.RUN_FREEZE)
    assert step(state, lc.SleepUndone())[0] == running
    frozen, _ = step(state, lc.Slept(Tier.FROZEN))
    assert frozen.frozen
    assert step(frozen, lc.WakeAsked())[1] == (Command.RUN_THAW,)
    deeper, commands = step(frozen, lc.SleepAsked(Tier.HIBERNATED))
    assert (deeper.phase, commands) == (Phase.STOPPING, (Command.UNWATCH, Command.RUN_SLEEP))
    lost, commands = step(frozen, lc.WentDown("its memory was lost"))
    assert (lost.phase, lost.tier) == (Phase.SLEEPING, Tier.STOPPED)
    assert Command.RUN_REAP in commands
    asleep, _ = step(deeper, lc.Slept(Tier.HIBERNATED))
    assert step(asleep, lc.SleepAsked(Tier.FROZEN)) == (asleep, ())  # never back up but by waking
    assert step(asleep, lc.WakeAsked())[1] == (Command.RUN_WAKE,)
