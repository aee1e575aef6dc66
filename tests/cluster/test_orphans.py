"""No clock, however wrong within the grace, makes a live job's files orphans; and what is one is found in the end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.orphans import GRACE_S, Kind, Stored, old, orphans

ID = "video_" + "0" * 24
CREATION_S = GRACE_S / 4  # far more than one takes
SKEW_S = GRACE_S / 4
HEX = "0123456789abcdef01234567"


@given(
    put_s=st.floats(0, 10 * GRACE_S),
    creation_s=st.floats(0, CREATION_S),
    listed_s=st.floats(0, 10 * GRACE_S),
    looking_s=st.floats(0, 3600),
    skew_s=st.floats(-SKEW_S, SKEW_S),
)
def test_files_of_a_job_that_is_or_is_about_to_be_are_no_orphans(
    put_s: float, creation_s: float, listed_s: float, looking_s: float, skew_s: float
) -> None:
    """Times are true; `skew_s`: how much later it is by the store's clock than by the gateway's."""
    files = [Stored(key=f"{ID}/first.png", written_s=put_s + skew_s)] if put_s <= listed_s else []
    rows = {ID} if put_s + creation_s <= listed_s + looking_s else set()
    assert orphans(old(files, "video", listed_s), rows) == ()


@given(ages_s=st.lists(st.floats(0, 3 * GRACE_S), min_size=1))
def test_without_a_row_it_is_an_orphan_once_its_newest_file_is_old(ages_s: list[float]) -> None:
    now_s = 10 * GRACE_S
    files = [Stored(key=f"{ID}/{at}", written_s=now_s - age_s) for at, age_s in enumerate(ages_s)]
    aged = min(now_s - file.written_s for file in files) > GRACE_S
    assert orphans(old(files, "video", now_s), {"video_2"}) == ((ID,) if aged else ())
    assert orphans(old(files, "video", now_s), {ID}) == ()


@pytest.mark.parametrize(
    ("kind", "known"),
    [
        ("video", {f"video_{HEX}/first.png": f"video_{HEX}", f"video_{HEX}/a/b": f"video_{HEX}"}),
        ("storyboard", {f"storyboard_{HEX}/x.mp4": f"storyboard_{HEX}"}),
        ("character", {f"characters/char_{HEX}": f"characters/char_{HEX}"}),
        ("file", {f"file-{HEX}{end}": f"file-{HEX}{end}" for end in ("", "-output", "-error")}),
    ],
)
def test_only_keys_that_a_kind_has_are_looked_at(kind: Kind, known: dict[str, str]) -> None:
    others = (
        *("swept/videos/1", "other", "", "video_1/a", "videos/a", "characters/ada"),
        *(f"video_{HEX}", f"video_{HEX}0/a", f"video_{HEX.upper()}/a", f"video_{HEX}/a\n", f"backup/video_{HEX}/a"),
        *(f"storyboard_{HEX}", f"characters/char_{HEX}/a", f"char_{HEX}"),
        *(f"file-{HEX}/a", f"file-{HEX}-other", f"files/file-{HEX}", f"file_{HEX}"),
    )
    found = old([Stored(key=key, written_s=0.0) for key in (*known, *others)], kind, 2 * GRACE_S)
    assert set(orphans(found, ())) == set(known.values())
