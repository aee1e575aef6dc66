from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.access import SCOPES, USUAL, KeyRecord, Sharing, cache_salt, checked_scopes, refusal, scope_of
from cluster.errors import Forbidden, InvalidRequest, Unauthorized


def key(*scopes: str, expires_s: float | None = None) -> KeyRecord:
    return KeyRecord(
        id="key_a", name="a", plan=None, created_s=0, revoked_s=None, scopes=scopes or USUAL, expires_s=expires_s
    )


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/videos", "videos"),
        ("/v1/videos/video_1/content", "videos"),
        ("/v1/videosomething", "chat"),
        ("/v1/storyboards", "videos"),
        ("/v1/files", "files"),
        ("/v1/admin/keys", "admin"),
        ("/v1/organization/usage/completions", "admin"),
        ("/v1/models/gpt-5.2", None),
        ("/v1/usage", None),
        ("/v1/made-tomorrow", "chat"),
    ],
)
def test_a_route_needs_one_scope_or_none(path: str, scope: str | None) -> None:
    assert scope_of(path) == scope
    for held in SCOPES:
        refused = refusal(key(held), path, 1.0)
        assert (refused is None) == (scope in (None, held))
        assert refused is None or isinstance(refused, Forbidden)


def test_a_key_is_refused_from_the_moment_that_it_expires() -> None:
    assert refusal(key(expires_s=10.0), "/v1/models", 9.9) is None
    refused = refusal(key(expires_s=10.0), "/v1/models", 10.0)
    assert isinstance(refused, Unauthorized)
    assert refused.code == "key_expired"


def test_scopes_stand_in_their_order_once_and_none_is_the_usual() -> None:
    assert checked_scopes(("admin", "chat", "chat")) == ("chat", "admin")
    assert checked_scopes(()) == USUAL
    with pytest.raises(InvalidRequest, match="'root'"):
        checked_scopes(("root",))


WORDS = st.text(min_size=1, max_size=8)
OWNERS = st.builds(lambda *names: replace(key(), id=names[0], org=names[1], project=names[2]), WORDS, WORDS, WORDS)


@given(OWNERS, OWNERS)
def test_only_keys_that_may_share_cached_prefixes_have_the_same_salt(one: KeyRecord, other: KeyRecord) -> None:
    def equal(sharing: Sharing) -> bool:
        return cache_salt(one, sharing) == cache_salt(other, sharing)

    assert equal("key") == (one.id == other.id)
    assert equal("project") == ((one.org, one.project) == (other.org, other.project))
    assert equal("family")


@given(OWNERS)
def test_a_salt_tells_nothing_of_its_key_and_none_is_needed_where_all_share(one: KeyRecord) -> None:
    salts = [cache_salt(one, sharing) for sharing in ("key", "project")]
    assert len(set(salts)) == 2
    assert all(len(salt) == 32 and one.id != salt for salt in salts)
    assert cache_salt(one, "family") == ""
