// The page's language: what the visitor chose, else --lang, else the browser's.  Gradio keeps <html lang> at it.
const CHOICE = "vlm-demo-language";

async function speak(language) {
  for (const { name } of performance.getEntriesByType("resource")) {
    if (/\/assets\/core-[^/]*\.js$/.test(name)) (await import(name)).changeLocale?.(language); // Gradio's own words
  }
  document.documentElement.lang = language;
}

document.addEventListener("click", (event) => {
  const language = event.target.closest?.("[data-language]")?.dataset.language;
  if (!language) return;
  sessionStorage.setItem(CHOICE, language);
  speak(language);
});

const language = sessionStorage.getItem(CHOICE) ?? START;
if (language) speak(language);
