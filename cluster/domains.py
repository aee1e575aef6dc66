"""What a request is about: the specialist that its caller names, else the one that its persona speaks of.

Only experts' counts and placement go by the domain. Which tier serves a request is decided by hints, never by personas.
"""

from collections.abc import Mapping, Sequence

from cluster.family import Specialist
from cluster.request import Message

FIRST_CHARS = 4096  # of the message, in which a persona is looked for


def domain_of(
    hint: Specialist | None, messages: Sequence[Message], personas: Mapping[Specialist, Sequence[str]]
) -> str:
    """The hint; else the specialist with the longest phrase found in the first system or developer message; else "".

    Phrases of equal length: the first of `personas`. Letter case does not matter.
    """
    if hint is not None:
        return hint
    first = next((message.content for message in messages if message.role in ("system", "developer")), "")
    said = first[:FIRST_CHARS].casefold()
    found = [
        (len(phrase), specialist)
        for specialist, phrases in personas.items()
        for phrase in phrases
        if phrase.casefold() in said
    ]
    return max(found, key=lambda one: one[0])[1] if found else ""
