"""First paint and layout shift of a running demo in Chromium, at several speeds of the network.

vlm demo &
python -m benchmarks.demo_paint http://127.0.0.1:7860
"""

import argparse
import shutil
import time

from playwright.sync_api import sync_playwright

SPEEDS = {"50 kB/s": 50_000, "400 kB/s": 400_000, "unlimited": -1}
OBSERVE = """() => {
  window.shift = 0;
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shift += entry.value;
  }).observe({type: "layout-shift", buffered: true});
}"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo_paint", description=__doc__)
    parser.add_argument("address")
    address = parser.parse_args().address
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, speed in SPEEDS.items():
            page = chromium.new_context(locale="en-US").new_page()
            session = page.context.new_cdp_session(page)
            session.send("Network.enable")
            limits = {"offline": False, "latency": 100, "downloadThroughput": speed, "uploadThroughput": speed}
            session.send("Network.emulateNetworkConditions", limits)
            received = [0]
            session.on("Network.dataReceived", lambda event, total=received: add(total, event))
            page.add_init_script(f"({OBSERVE})()")
            start = time.perf_counter()
            page.goto(address, wait_until="commit", timeout=300_000)
            page.wait_for_selector("#labels textarea", timeout=300_000)
            usable = time.perf_counter() - start
            page.wait_for_timeout(3000)
            paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? 0") / 1000
            shift = page.evaluate("window.shift")
            print(
                f"{name:10} first paint {paint:5.1f} s, labels can be typed after {usable:5.1f} s, "
                f"{received[0] / 1000:,.0f} kB, layout shift {shift:.3f}",
                flush=True,
            )
            page.context.close()
        chromium.close()


def add(total: list[int], event: dict[str, int]) -> None:
    total[0] += event["encodedDataLength"] or 0


if __name__ == "__main__":
    main()
