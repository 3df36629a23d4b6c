// The language of the page: the visitor's choice, else --lang, else the browser's (Japanese or English).
// `page` comes from app.py: {start, tabs, parts, words, notes}; each text is {en, ja}.
const CHOICE = "vlm-demo-language";
let language = "en";

function preferredLanguage() {
  const known = navigator.languages.find((name) => /^(ja|en)\b/i.test(name)) ?? "en";
  return known.toLowerCase().startsWith("ja") ? "ja" : "en";
}

async function setLanguage(chosen) {
  language = chosen;
  for (const { name } of performance.getEntriesByType("resource")) {
    if (/\/assets\/core-[^/]*\.js$/.test(name)) await (await import(name)).changeLocale?.(language);
  }
  document.documentElement.lang = language;
  renameEverything();
}

document.addEventListener("click", (event) => {
  const chosen = event.target.closest?.("[data-language]")?.dataset.language;
  if (!chosen) return;
  localStorage.setItem(CHOICE, chosen);
  setLanguage(chosen);
});

// Gradio sets the browser's language once more when its texts are loaded.
new MutationObserver(() => {
  if (document.documentElement.lang !== language) setLanguage(language);
}).observe(document.documentElement, { attributeFilter: ["lang"] });

function renameEverything() {
  nameTabs();
  nameParts();
  translateWords(document.body);
}

// Gradio translates the name of a tab only once it has been opened.
function nameTabs() {
  for (const tab of document.querySelectorAll(".tab-wrapper button")) {
    const label = [...tab.childNodes].find((node) => node.nodeType === Node.TEXT_NODE && node.nodeValue.trim());
    const names = Object.values(page.tabs).find((all) => Object.values(all).includes(label?.nodeValue.trim()));
    if (names && label.nodeValue !== names[language]) label.nodeValue = names[language];
  }
}

// Names for screen readers.  Panels get the name of their tab, groups of boxes their title, upload inputs that of their
// box; drawings inside buttons are hidden.  A name in both languages ("Patch 7 / パッチ7") keeps that of the page.
function nameParts() {
  for (const panel of document.querySelectorAll('[role="tabpanel"][id]'))
    panel.setAttribute("aria-labelledby", `${panel.id}-button`);
  for (const group of document.querySelectorAll("fieldset[id]:not([aria-labelledby])")) {
    const title = group.querySelector('[data-testid="block-info"]');
    if (!title) continue;
    title.id = `${group.id}-title`;
    group.setAttribute("aria-labelledby", title.id);
  }
  for (const outer of document.querySelectorAll("main button:has(button)")) {
    // Gradio's upload sign: only the inner button does anything, and a button must not hold another one
    setAttribute(outer, "role", "group");
    setAttribute(outer, "tabindex", "-1");
  }
  for (const drawing of document.querySelectorAll("svg:not([aria-hidden])")) drawing.setAttribute("aria-hidden", "true");
  for (const part of document.querySelectorAll("[data-name-en]"))
    setAttribute(part, "aria-label", language === "ja" ? part.dataset.nameJa : part.dataset.nameEn);
  for (const part of document.querySelectorAll("main :is(button, input)[aria-label]:not([data-name-en])")) {
    const label = part.getAttribute("aria-label").replace(/^(number input|range slider) for /, "");
    const named = page.parts.find((names) => Object.values(names).includes(label))?.[language] ?? label;
    setAttribute(part, "aria-label", named);
    if (named !== label && part.title) part.title = named;
  }
}

function setAttribute(part, name, value) {
  if (part.getAttribute(name) !== value) part.setAttribute(name, value);
}

// Words of Gradio that it has in English only: `page.words` is [[pattern, Japanese], ...].
const WORDS = page.words.map(([pattern, japanese]) => [new RegExp(pattern), japanese]);
const englishOf = new WeakMap(); // text node -> its English

function translateWords(root) {
  const nodes = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  for (let node = nodes.nextNode(); node; node = nodes.nextNode()) translateNode(node);
}

function translateNode(node) {
  const text = node.nodeValue.trim();
  if (!text || text.length > 400 || node.parentElement?.closest(".html-container, textarea, script, style")) return;
  if (language === "ja") {
    const [pattern, japanese] = WORDS.find(([one]) => one.test(text)) ?? [];
    if (!pattern) return;
    englishOf.set(node, node.nodeValue);
    node.nodeValue = node.nodeValue.replace(text, () => text.replace(pattern, japanese));
  } else if (englishOf.has(node)) {
    node.nodeValue = englishOf.get(node);
    englishOf.delete(node);
  }
}

new MutationObserver((changes) => {
  if (changes.some(({ type }) => type !== "characterData")) {
    nameTabs();
    nameParts();
  }
  for (const { type, target, addedNodes } of changes) {
    if (type === "characterData") translateNode(target);
    for (const node of addedNodes) node.nodeType === Node.TEXT_NODE ? translateNode(node) : translateWords(node);
  }
}).observe(document.body, { childList: true, subtree: true, characterData: true, attributeFilter: ["aria-label"] });

setLanguage(localStorage.getItem(CHOICE) ?? page.start ?? preferredLanguage());
