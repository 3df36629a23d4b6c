// Tabs: arrow keys, an address for each, Back and Forward; Ctrl+Enter presses the main button.
const tabs = () => [...document.querySelectorAll('[role="tab"]')];
const tabNamed = (name) => tabs().find((tab) => tab.dataset.tabId === name);
const openTab = () => tabs().find((tab) => tab.getAttribute("aria-selected") === "true")?.dataset.tabId;

document.addEventListener("keydown", (event) => {
  const tab = event.target.closest?.('[role="tab"]');
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!tab || !step) return;
  const next = tabs()[(tabs().indexOf(tab) + step + tabs().length) % tabs().length];
  event.preventDefault();
  next.focus();
  next.click();
});

document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  const panel = event.target.closest?.('[role="tabpanel"]');
  const button = event.target.closest?.("#images") ?? panel?.querySelector("button.primary");
  if (!button) return;
  event.preventDefault();
  event.target.dispatchEvent(new Event("input", { bubbles: true }));
  setTimeout(() => button.click(), 50); // after Gradio has read the box
});

let byHistory = false;
document.addEventListener("click", (event) => {
  const name = event.target.closest?.('[role="tab"]')?.dataset.tabId;
  if (name && !byHistory && location.hash.slice(1) !== name) history.pushState(null, "", `#${name}`);
});

function followAddress() {
  const tab = tabNamed(location.hash.slice(1) || page.first);
  if (!tab || tab.dataset.tabId === openTab()) return;
  byHistory = true;
  tab.click();
  byHistory = false;
}
addEventListener("popstate", followAddress);

// Commands are copied by a button.
document.addEventListener("click", async (event) => {
  const button = event.target.closest?.("[data-copy]");
  if (!button) return;
  await navigator.clipboard.writeText(button.dataset.copy);
  const line = document.getElementById("announcer");
  if (line) line.textContent = page.notes.copied[language];
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1500);
});

// Buttons that lead to another tab.
document.addEventListener("click", (event) => {
  const name = event.target.closest?.("[data-open-tab]")?.dataset.openTab;
  if (name) tabNamed(name)?.click();
});
