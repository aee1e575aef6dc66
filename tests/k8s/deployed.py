"""Deploy the config that is rendered for a family file on a Ray of this machine, ask each tier, and stop."""

import sys
import time
from pathlib import Path

import httpx
import yaml
from integration.server import eventually

from cluster.family import load
from cluster.manifest_pods import Setting
from cluster.manifests import documents
from deployments import local
from deployments.stores.keys import KEYS_FILE, KeyStore

READY_S = 120.0


def main(file: Path) -> None:
    family = load(file, serving=False)
    setting = Setting(
        image="none",
        ray_version="2.60.0",
        environment=local.SWITCHES,
        shipped="/none",
        packages="/none",
        family_file=str(file),
        state_folder=family.state_folder,
    )
    text = documents(family, setting)[1]["spec"]["serveConfigV2"]
    key, _ = KeyStore(Path(family.state_folder) / KEYS_FILE).create("a test", time.time())
    with local.cluster(family):
        from ray import serve
        from ray.serve.config import HTTPOptions
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        config = ServeDeploySchema.model_validate(yaml.safe_load(text))
        http = HTTPOptions(host="127.0.0.1", port=config.http_options.port)
        serve.start(proxy_location=config.proxy_location, http_options=http)
        _get_global_client().deploy_apps(config, _blocking=True)
        url = f"http://127.0.0.1:{config.http_options.port}"
        print(", ".join(f"{tier} answered {_asked(url, key, tier)} tokens" for tier in family.tiers))
        states = {name: each.status for name, each in serve.status().applications.items()}
        assert set(states.values()) == {"RUNNING"}, states


def _asked(url: str, key: str, tier: str) -> int:
    """How many tokens its answer has. The gateway may be there before it knows the replicas."""
    body = {"model": tier, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}

    def answered() -> httpx.Response | None:
        answer = httpx.post(
            f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"}, timeout=60
        )
        return answer if answer.status_code == 200 else None

    answer = eventually(answered, READY_S)
    assert answer is not None
    tokens: int = answer.json()["usage"]["completion_tokens"]
    return tokens


if __name__ == "__main__":
    main(Path(sys.argv[1]))
