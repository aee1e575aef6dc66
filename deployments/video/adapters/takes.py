"""The refusal of what a model does not take: of inputs by the names that they have in a request."""

from typing import get_args

from cluster.errors import InvalidRequest
from cluster.video import Input, Takes
from deployments.video.spec import RenderSpec

# Names of the API and fields of Inputs.
FIELDS: dict[Input, str] = {
    "input_reference": "first",
    "last_frame_reference": "last",
    "image_references": "references",
    "video_reference": "source",
    "mask": "mask",
}
assert set(FIELDS) == set(get_args(Input))


def check(spec: RenderSpec, takes: Takes, model: str) -> None:
    """Raises InvalidRequest with the field that is at fault."""
    if spec.task not in takes.tasks:
        raise InvalidRequest(
            f"{spec.job_id}: {spec.task}; {model} takes {', '.join(takes.tasks)}; render a new clip", param="video"
        )
    taken = ", ".join(("a prompt", *takes.inputs))
    for name, field in FIELDS.items():
        given = bool(getattr(spec.inputs, field))
        if given and name not in takes.inputs:
            raise InvalidRequest(f"{spec.job_id}: {name} given; {model} takes {taken}; leave it out", param=name)
        if not given and name in takes.needs:
            raise InvalidRequest(f"{spec.job_id}: no {name}; {model} takes {taken}; add it", param=name)
