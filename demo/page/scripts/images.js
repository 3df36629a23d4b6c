// The image: pasted, taken from the camera, and kept in this browser over a reload or a restart of the server.
const BOXES = ".image:not(#tab-search .image)"; // all show one image
const KEPT_TEXTS = ["labels", "templates", "query", "look-text", "compare-labels"];
const KEPT_HOURS = 24;

// ---- notes below a box ---------------------------------------------------------------------------------------------

function note(box, key) {
  box.parentElement.querySelector(".image-note")?.remove();
  if (!key) return;
  const line = document.createElement("div");
  line.className = "notice image-note";
  line.setAttribute("role", "alert");
  for (const [lang, words] of Object.entries(page.notes[key])) {
    const said = Object.assign(document.createElement("p"), { className: "said", lang, textContent: words });
    line.append(said);
  }
  box.after(line);
}

function giveFile(box, file) {
  const files = new DataTransfer();
  files.items.add(file);
  const input = box.querySelector('input[type="file"]');
  input.files = files.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

// ---- clipboard and camera ------------------------------------------------------------------------------------------

const isNamed = (button, key) => Object.values(page.notes[key]).includes(button?.getAttribute("aria-label"));

document.addEventListener(
  "click",
  async (event) => {
    const button = event.target.closest?.(".source-selection button");
    if (!button) return;
    const box = button.closest(".image");
    note(box, null);
    if (!isNamed(button, "part_paste")) return;
    event.stopImmediatePropagation();
    event.preventDefault();
    try {
      for (const item of await navigator.clipboard.read()) {
        const type = item.types.find((name) => name.startsWith("image/"));
        if (type) return giveFile(box, new File([await item.getType(type)], `pasted.${type.slice(6)}`, { type }));
      }
      note(box, "paste_no_image");
    } catch {
      note(box, "paste_refused");
    }
  },
  true,
);

document.addEventListener(
  "paste",
  (event) => {
    if (event.target.closest?.("input:not([type=file]), textarea")) return;
    const box = [...document.querySelectorAll(".image")].find((one) => one.checkVisibility());
    const file = [...(event.clipboardData?.files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (!box) return;
    event.stopImmediatePropagation();
    event.preventDefault();
    note(box, file ? null : "paste_no_image");
    if (file) giveFile(box, file);
  },
  true,
);

async function findCamera() {
  const devices = (await navigator.mediaDevices?.enumerateDevices().catch(() => [])) ?? [];
  const found = devices.some(({ kind }) => kind === "videoinput");
  document.documentElement.classList.toggle("no-camera", !found);
  for (const button of document.querySelectorAll(".source-selection button"))
    button.classList.toggle("camera", isNamed(button, "part_camera"));
}
navigator.mediaDevices?.addEventListener?.("devicechange", findCamera);

// ---- images that a browser cannot show -----------------------------------------------------------------------------

document.addEventListener(
  "error",
  (event) => event.target.matches?.(".image img") && event.target.closest(".image").classList.add("not-shown"),
  true,
);
document.addEventListener(
  "load",
  (event) => event.target.matches?.(".image img") && event.target.closest(".image").classList.remove("not-shown"),
  true,
);

// ---- kept over a reload --------------------------------------------------------------------------------------------

const database = () =>
  new Promise((done, failed) => {
    const opening = indexedDB.open("vlm-demo", 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("images");
    opening.onsuccess = () => done(opening.result);
    opening.onerror = () => failed(opening.error);
  });

async function inStore(mode, action) {
  const store = (await database()).transaction("images", mode).objectStore("images");
  return new Promise((done, failed) => {
    const request = action(store);
    request.onsuccess = () => done(request.result);
    request.onerror = () => failed(request.error);
  });
}

const visit = (sessionStorage["vlm-demo-visit"] ??= crypto.randomUUID?.() ?? String(Math.random()));
let keptSource = null;

async function keepImage() {
  const shown = document.querySelector(`:is(${BOXES}) img`);
  const source = shown?.getAttribute("src") ?? null;
  if (source === keptSource) return;
  keptSource = source;
  if (source === null) return inStore("readwrite", (store) => store.delete(visit));
  const answer = await fetch(source);
  if (!answer.ok) return undefined;
  const name = decodeURIComponent(new URL(source, location.href).pathname.split("/").pop()) || "image";
  const kept = { blob: await answer.blob(), name, time: Date.now() };
  return inStore("readwrite", (store) => store.put(kept, visit));
}

async function restoreImage() {
  const oldest = Date.now() - KEPT_HOURS * 3600e3;
  for (const key of await inStore("readonly", (store) => store.getAllKeys())) {
    const one = await inStore("readonly", (store) => store.get(key));
    if (one.time < oldest) await inStore("readwrite", (store) => store.delete(key));
  }
  const kept = await inStore("readonly", (store) => store.get(visit));
  const box = document.querySelector(BOXES);
  if (kept && box && !box.querySelector("img"))
    giveFile(box, new File([kept.blob], kept.name, { type: kept.blob.type }));
}

const boxNamed = (name) => document.querySelector(`#${name} :is(textarea, input)`);

function keepTexts() {
  const kept = JSON.parse(sessionStorage["vlm-demo-texts"] ?? "{}");
  for (const name of KEPT_TEXTS) if (boxNamed(name)) kept[name] = boxNamed(name).value;
  sessionStorage["vlm-demo-texts"] = JSON.stringify(kept);
}

const toRestore = new Map(Object.entries(JSON.parse(sessionStorage["vlm-demo-texts"] ?? "{}")));

// Tabs are built when they are opened first: their boxes are filled then.
function restoreTexts() {
  for (const [name, value] of toRestore) {
    const box = boxNamed(name);
    if (!box) continue;
    toRestore.delete(name);
    if (!value || box.value) continue;
    box.value = value;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  }
}

addEventListener("pagehide", keepTexts);

// ---- start ---------------------------------------------------------------------------------------------------------

let started = false;
let planned = 0;

function update() {
  planned = 0;
  if (!document.querySelector(BOXES)) return;
  if (!started) {
    started = true;
    followAddress();
    restoreImage().catch(() => null); // a browser without storage
  }
  restoreTexts();
  findCamera();
  keepImage().catch(() => null);
}

new MutationObserver(() => {
  planned ||= setTimeout(update, 150);
}).observe(document.body, { childList: true, subtree: true, attributeFilter: ["src"] });
