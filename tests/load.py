"""A load test of `ppt serve`: clients that ask again and again, each as soon as it has an answer.

python tests/load.py PICTURE "TEXT"... [--url http://127.0.0.1:8000] [--clients 16] [--seconds 60]

Prints how many requests were answered, how many were lost (no answer, or none with status 200 and a
mask for each text), and the latencies. The exit code is 1 if one was lost.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

TIMEOUT_S = 60


@dataclass
class Load:
    """What came back."""

    seconds: float
    latencies: list[float] = field(default_factory=list)  # of the answered requests, in seconds
    lost: list[str] = field(default_factory=list)  # why, for each lost one

    def __str__(self) -> str:
        answered = len(self.latencies)
        lines = [
            f"{answered:,} answered in {self.seconds:.1f} s ({answered / self.seconds:.1f} a "
            f"second), {len(self.lost)} lost"
        ]
        if answered:
            ms = 1000 * np.percentile(self.latencies, [50, 90, 99, 100])
            lines.append(
                "latency: "
                + ", ".join(
                    f"{name} {value:,.0f} ms"
                    for name, value in zip(("p50", "p90", "p99", "max"), ms, strict=True)
                )
            )
        return "\n".join([*lines, *(f"lost: {why}" for why in self.lost[:5])])


def load(url: str, body: bytes, num_texts: int, clients: int, seconds: float) -> Load:
    """Let `clients` ask for `seconds`, and return what came back."""
    start = time.monotonic()
    result = Load(seconds)

    def ask() -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
        while (before := time.monotonic()) < start + seconds:
            try:
                headers = {"content-type": "application/json"}
                connection.request("POST", "/v1/segment", body, headers)
                answer = connection.getresponse()
                content = answer.read()
                if answer.status != 200:
                    raise ValueError(f"{answer.status} {content[:200]!r}")
                if len(json.loads(content)["predictions"]) != num_texts:
                    raise ValueError("not a mask for each text")
            except (OSError, http.client.HTTPException, ValueError) as error:
                result.lost.append(repr(error))
                connection.close()
            else:
                result.latencies.append(time.monotonic() - before)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.seconds = time.monotonic() - start
    return result


def body_of(picture: bytes, texts: list[str]) -> bytes:
    """Return the body of a request."""
    return json.dumps({"picture": base64.b64encode(picture).decode(), "texts": texts}).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description="A load test of ppt serve.")
    parser.add_argument("picture", type=Path)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60)
    asked = parser.parse_args()
    body = body_of(asked.picture.read_bytes(), asked.texts)
    found = load(asked.url, body, len(asked.texts), asked.clients, asked.seconds)
    print(found)
    raise SystemExit(bool(found.lost))


if __name__ == "__main__":
    main()
