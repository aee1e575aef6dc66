"""What is fixed on the machine of a document's reader and free in a test: ports and a key. Nothing else is changed."""

import re
from collections.abc import Mapping

KEY = "sk-moray-..."  # in documents, the key that `make up` or `moray up` printed
GATEWAY, PROMETHEUS, ALERTMANAGER = 8000, 9090, 9093
UP = re.compile(r"moray (?:--family \S+ )?up\b")
LEFT_OUT = {  # what a command means that does not say it
    UP: f"--port {GATEWAY}",
    re.compile(r"moray (?:--family \S+ )?(?:load(?! compare)|experts|doctor)\b"): f"--url http://127.0.0.1:{GATEWAY}",
    re.compile(r"moray (?:--family \S+ )?render prometheus\b"): f"--gateway http://127.0.0.1:{GATEWAY}",
    re.compile(r"moray (?:--family \S+ )?render prometheus\b(?=.* --out)"): f"--alertmanager 127.0.0.1:{ALERTMANAGER}",
    re.compile(r"^prometheus(?= --)"): f"--web.listen-address=127.0.0.1:{PROMETHEUS}",
    re.compile(r"^prometheus-alertmanager(?= --)"): f"--web.listen-address=127.0.0.1:{ALERTMANAGER}",
}


def spelt_out(command: str) -> str:
    """With the addresses that it leaves to its defaults."""
    for pattern, words in LEFT_OUT.items():
        option = re.split("[ =]", words)[0]
        if f" {option}" not in command:
            command = pattern.sub(rf"\g<0> {words}", command)
    return command


def is_about_a_server(text: str) -> bool:
    return KEY in text or "127.0.0.1:" in text or ".moray" in text or "moray keys" in text


def moved(text: str, key: str, ports: Mapping[int, int]) -> str:
    """With the key, and each port of `ports` where it is."""
    for port, free in ports.items():
        text = re.sub(rf"(127\.0\.0\.1:|--port ){port}\b", rf"\g<1>{free}", text)
    return text.replace(KEY, key)
