// The page's language: what the visitor chose, else --lang, else the browser's.  Gradio keeps <html lang> at it.
// `page` is {start: language or null, tabs: [{en, ja}, ...]}, from app.py.
const CHOICE = "vlm-demo-language";

async function speak(language) {
  for (const { name } of performance.getEntriesByType("resource")) {
    if (/\/assets\/core-[^/]*\.js$/.test(name)) await (await import(name)).changeLocale?.(language); // Gradio's own words
  }
  document.documentElement.lang = language;
  nameTabs();
}

// Gradio translates the name of a tab only once it has been opened.
function nameTabs() {
  const language = document.documentElement.lang.startsWith("ja") ? "ja" : "en";
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

new MutationObserver(nameTabs).observe(document.body, { childList: true, subtree: true });
const language = sessionStorage.getItem(CHOICE) ?? page.start;
if (language) speak(language);
