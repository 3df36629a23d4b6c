// The page's language: what the visitor chose, else --lang, else the browser's.  Gradio keeps <html lang> at it.
// `page` is {start: language or null, tabs: [{en, ja}, ...], parts: [{en, ja}, ...]}, from app.py.
const CHOICE = "vlm-demo-language";

async function speak(language) {
  for (const { name } of performance.getEntriesByType("resource")) {
    if (/\/assets\/core-[^/]*\.js$/.test(name)) await (await import(name)).changeLocale?.(language); // Gradio's own words
  }
  document.documentElement.lang = language;
  nameTabs();
  nameParts();
}

function spoken() {
  return document.documentElement.lang.startsWith("ja") ? "ja" : "en";
}

// Gradio translates the name of a tab only once it has been opened.
function nameTabs() {
  const language = spoken();
  for (const tab of document.querySelectorAll(".tab-wrapper button")) {
    const label = [...tab.childNodes].find((node) => node.nodeType === Node.TEXT_NODE && node.nodeValue.trim());
    const said = page.tabs.find((names) => Object.values(names).includes(label?.nodeValue.trim()));
    if (said) label.nodeValue = said[language];
  }
}

document.addEventListener("click", (event) => {
  const language = event.target.closest?.("[data-language]")?.dataset.language;
  if (!language) return;
  sessionStorage.setItem(CHOICE, language);
  speak(language);
});

// What Gradio leaves without a name: panels get their tab's, groups of boxes their title; drawings in buttons are no
// images.  What it names in English only is named in the page's language.
function nameParts() {
  for (const panel of document.querySelectorAll('[role="tabpanel"][id]'))
    panel.setAttribute("aria-labelledby", `${panel.id}-button`);
  for (const group of document.querySelectorAll("fieldset[id]:not([aria-labelledby])")) {
    const title = group.querySelector('[data-testid="block-info"]');
    if (!title) continue;
    title.id = `${group.id}-title`;
    group.setAttribute("aria-labelledby", title.id);
  }
  for (const drawing of document.querySelectorAll("svg:not([aria-hidden])")) drawing.setAttribute("aria-hidden", "true");
  for (const part of document.querySelectorAll("main :is(button, input)[aria-label]")) {
    const label = part.getAttribute("aria-label").replace(/^(number input|range slider) for /, "");
    const named = page.parts.find((names) => Object.values(names).includes(label))?.[spoken()] ?? label;
    if (named !== part.getAttribute("aria-label")) part.setAttribute("aria-label", named);
    if (named !== label && part.title) part.title = named;
  }
}

// Arrows go from tab to tab, as in any row of tabs.
document.addEventListener("keydown", (event) => {
  const tab = event.target.closest?.('[role="tab"]');
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!tab || !step) return;
  const tabs = [...tab.parentElement.querySelectorAll('[role="tab"]')];
  const next = tabs[(tabs.indexOf(tab) + step + tabs.length) % tabs.length];
  event.preventDefault();
  next.focus();
  next.click();
});

// On a small screen an answer may appear out of sight: it is then brought into view.
const ANSWERS = "#ranking, #where, #table, #found, #classifier-answer, #look-attention, #compared, #model-card";

function showAnswers(changes) {
  const changed = changes.map(({ target }) => (target.closest ? target : target.parentElement)); // a text has no closest
  const parts = changed.map((part) => part?.closest(".html-container")); // not Gradio's sign of waiting
  for (const answer of new Set(parts.map((part) => part?.closest(ANSWERS)))) {
    if (!answer?.textContent.trim() || answer.querySelector(".nothing-yet")) continue;
    const { top, bottom, height } = answer.getBoundingClientRect();
    const above = answer.id === "found" ? top < 0 : bottom < 80; // a new list is read from its beginning
    if (height && (top > innerHeight - 80 || above)) answer.scrollIntoView({ block: "start" });
  }
}

new MutationObserver((changes) => {
  if (changes.some(({ type }) => type !== "characterData")) {
    nameTabs();
    nameParts();
  }
  showAnswers(changes.filter(({ type }) => type !== "attributes"));
}).observe(document.body, { childList: true, subtree: true, characterData: true, attributeFilter: ["aria-label"] });
const language = sessionStorage.getItem(CHOICE) ?? page.start;
if (language) speak(language);
