"""What a model takes beside its prompt, and the refusal of what it does not."""

from dataclasses import dataclass

from cluster.errors import InvalidRequest
from deployments.video.spec import RenderSpec, Task

# Fields of Inputs, and what they are called in a request.
PARAMS = {
    "first": "input_reference", "last": "last_frame_reference", "references": "image_references",
    "source": "video_reference", "mask": "mask",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Takes:
    """`inputs`: fields of Inputs. `needs`: those without which there is no job. `fast`: edits of active tokens alone.

    `audio` is for none of the families here: it is only heard beside the result.
    """

    model: str
    inputs: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    tasks: frozenset[Task] = frozenset(("create", "remix", "edit", "extend"))
    fast: bool = False

    def check(self, spec: RenderSpec) -> None:
        """Raises InvalidRequest with the field that is at fault."""
        if spec.task not in self.tasks:
            raise InvalidRequest(
                f"{spec.job_id}: {spec.task}; {self.model} takes {', '.join(sorted(self.tasks))}; render a new clip",
                param="video",
            )
        given = {name for name in PARAMS if getattr(spec.inputs, name)}
        for name in sorted(given - self.inputs):
            self._refuse(spec, f"{PARAMS[name]} given", PARAMS[name])
        for name in sorted(self.needs - given):
            self._refuse(spec, f"no {PARAMS[name]}", PARAMS[name])

    def _refuse(self, spec: RenderSpec, given: str, param: str) -> None:
        taken = ", ".join(["a prompt", *(PARAMS[name] for name in sorted(self.inputs))])
        raise InvalidRequest(f"{spec.job_id}: {given}; {self.model} takes {taken}; leave it out or add it", param=param)
