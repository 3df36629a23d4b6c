"""Run the demo for minutes with mixed actions: memory, errors, 100 calls at once, and uploads left after SIGTERM.

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
        uploads = Path(folder) / "uploads"
        environment = {**os.environ, "GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(uploads)}
        command = [sys.executable, "-m", "demo", "--model", chosen.model]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            answer = soak(_client(port, server), server.pid, chosen.minutes)
        finally:
            server.terminate()
            server.wait(30)
        log.seek(0)
        written = log.read()
        answer["uploads_left"] = sum(path.is_file() for path in uploads.rglob("*"))
    answer["errors_in_log"] = written.count("Traceback") + written.count("ERROR")
    print(json.dumps(answer, indent=1))
    return int(any(answer[name] for name in ("errors_in_log", "mixed_up", "lost", "uploads_left")))


def soak(client: Client, process: int, minutes: float) -> dict[str, float]:
    """Compare the memory after a tenth of the time, when caches are full, with that at the end."""
    chance = random.Random(0)
    start, actions, first = time.monotonic(), 0, 0
    while (passed := time.monotonic() - start) < 60 * minutes:
        if not first and passed > 6 * minutes:
            first = memory(process)
        act(client, chance)
        actions += 1
    last = memory(process)
    lost, mixed_up = hundred_at_once(client.src)
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


def hundred_at_once(address: str) -> tuple[int, int]:
    """Four clients with 25 calls at once each, every call with a label of its own.

    The server takes at most 32 waiting calls of one address.

    Returns:
        Calls without an answer, and answers to another question.
    """
    image = SAMPLES / samples()[0].file_name

    def ask(number: int) -> set[str] | None:
        transport = httpx.HTTPTransport(local_address=f"127.0.0.{10 + number % 4}")
        with httpx.Client(base_url=address, transport=transport, timeout=300) as client:
            files = {"files": (image.name, image.read_bytes())}
            (path,) = client.post("/gradio_api/upload", files=files).json()
            record = {"path": path, "meta": {"_type": "gradio.FileData"}}
            asked = client.post("/gradio_api/call/classify", json={"data": [record, [f"caller {number}", "nobody"]]})
            if asked.status_code != 200:
                return None
            lines = client.get(f"/gradio_api/call/classify/{asked.json()['event_id']}").text.splitlines()
        if "event: complete" not in lines:
            return None
        (ranking,) = json.loads(lines[lines.index("event: complete") + 1].removeprefix("data: "))
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
