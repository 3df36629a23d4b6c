"""A soak of the running demo: mixed actions for minutes, memory, errors; then 100 calls at once, none mixed up.

python -m benchmarks.demo_soak --minutes 30
"""

import argparse
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from gradio_client import Client, handle_file

from vlm.demo.search.samples import SAMPLES, samples

WORDS = "dog cat car tree apple 犬 猫 車 木 りんご ship castle 花 月".split()  # noqa: SIM905


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--model", default="mini")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w+") as log:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": f"{folder}/uploads"}
        command = [sys.executable, "-m", "demo", "--model", chosen.model]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            answer = soak(_client(port, server), server.pid, chosen.minutes)
        finally:
            server.terminate()
            server.wait(30)
        log.seek(0)
        said = log.read()
    answer["errors_in_log"] = said.count("Traceback") + said.count("ERROR")
    print(json.dumps(answer, indent=1))
    return int(bool(answer["errors_in_log"] or answer["mixed_up"] or answer["lost"]))


def soak(client: Client, process: int, minutes: float) -> dict[str, float]:
    """Memory is compared from a tenth of the time on: caches are full then."""
    chance = random.Random(0)
    start, actions, first = time.monotonic(), 0, 0
    while (passed := time.monotonic() - start) < 60 * minutes:
        if not first and passed > 6 * minutes:
            first = memory(process)
        act(client, chance)
        actions += 1
    last = memory(process)
    lost, mixed_up = hundred_at_once(client)
    growth = 100 * (last - first) / first if first else 0.0
    return {"actions": actions, "minutes": minutes, "growth_percent": growth, "lost": lost, "mixed_up": mixed_up}


def act(client: Client, chance: random.Random) -> None:
    image = handle_file(str(SAMPLES / chance.choice(samples()).file_name))
    match chance.randrange(4):
        case 0:
            client.predict(image, chance.sample(WORDS, 4), api_name="/classify")
        case 1:
            client.predict(" + ".join(chance.sample(WORDS, 2)), api_name="/search")
        case 2:
            client.predict(image=image, api_name="/search")
        case _:
            client.predict(chance.choice(samples()).file_name, api_name="/similar")


def hundred_at_once(client: Client) -> tuple[int, int]:
    """Each caller asks with a label of its own -> calls without an answer, answers to somebody else's question."""
    image = handle_file(str(SAMPLES / samples()[0].file_name))

    def ask(number: int) -> set[str] | None:
        try:
            ranking = client.predict(image, [f"caller {number}", "nobody"], api_name="/classify")
        except Exception:  # whatever it was: the call is lost
            return None
        return {ranked["label"] for ranked in ranking}

    with ThreadPoolExecutor(100) as callers:
        answers = list(callers.map(ask, range(100)))
    wrong = [answer for number, answer in enumerate(answers) if answer and answer != {f"caller {number}", "nobody"}]
    return answers.count(None), len(wrong)


def memory(process: int) -> int:
    """Resident bytes, Linux."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _client(port: int, server: subprocess.Popen[bytes]) -> Client:
    for _ in range(300):
        try:
            return Client(f"http://127.0.0.1:{port}", verbose=False, download_files=False)
        except (OSError, ValueError, httpx.HTTPError):
            if server.poll() is not None:
                break
            time.sleep(1)
    raise SystemExit("the demo did not start")


if __name__ == "__main__":
    sys.exit(main())
