// Answers: those of an earlier question are marked, new ones are announced and brought into view.
// Each answer: what it depends on, and what asks for it anew.
const ANSWERS = {
  ranking: {
    on: ".image:not(#tab-search .image), #labels, #templates",
    asked: "#classify-button, #tab-classify .examples button",
  },
  where: {
    on: ".image:not(#tab-search .image), #labels, #templates",
    asked: "#classify-button, #tab-classify .examples button, #ranking .label",
  },
  table: { on: "#labels, #templates, #images", asked: "#classify-all-button" },
  found: {
    on: ".image, #query, #styles, #name-filter, #since, #until, #min-side",
    asked: "#search-button, #tab-search .suggestions button, #found .cards button, #query",
  },
  "classifier-answer": {
    on: ".image:not(#tab-search .image), #classifier-choice",
    asked: "#classifier-button, #tab-classifier .examples button",
  },
  "look-figures": {
    on: ".image:not(#tab-search .image), #look-text",
    asked: "#look-button, #tab-look .examples button, #look-text",
  },
  "look-attention": {
    on: ".image:not(#tab-search .image)",
    asked: "#look-button, #tab-look .examples button, #look-text",
  },
  compared: {
    on: ".image:not(#tab-search .image), #compare-labels, #first-model, #second-model",
    asked: "#compare-button, #tab-models .examples button",
  },
  "model-card": { on: "#first-model", asked: "#card-button" },
};
let moment = 0; // counts edits and questions
const edited = {};
const asked = {};

function markStale(name) {
  const answer = document.getElementById(name);
  if (!answer) return;
  const content = answer.querySelector(".answer");
  const stale = Boolean(content) && (edited[name] ?? 0) > (asked[name] ?? 0);
  answer.classList.toggle("stale", stale);
  for (const part of content?.children ?? []) if (!part.matches(".stale-note")) part.inert = stale;
}

// A changed input, unless the same action asks for the answer.
function edit(part, asking) {
  moment += 1;
  for (const [name, { on, asked: asks }] of Object.entries(ANSWERS)) {
    if (!part.closest(on) || asking?.closest(asks)) continue;
    edited[name] = moment;
    markStale(name);
  }
}

function ask(part) {
  moment += 1;
  for (const [name, { asked: asks }] of Object.entries(ANSWERS)) if (part.closest(asks)) asked[name] = moment;
}

const lastValue = new WeakMap(); // box -> its value at the last edit: "change" comes once more when a box is left

for (const type of ["input", "change", "drop", "paste"])
  document.addEventListener(
    type,
    ({ target }) => {
      if (!target.closest) return;
      if (target.matches("textarea, input:not([type=file], [type=checkbox], [type=radio])")) {
        if (type === "change" && lastValue.get(target) === target.value) return;
        lastValue.set(target, target.value);
      }
      edit(target);
    },
    true,
  );
document.addEventListener(
  "click",
  (event) => {
    const button = event.target.closest?.("button");
    if (!button) return;
    const image = button.closest(".image");
    if (image && !button.closest(".source-selection, .upload-container")) edit(image); // removed, or taken by the camera
    if (button.closest(".examples, #found .cards"))
      edit(button.closest('[role="tabpanel"]').querySelector(".image"), button);
    if (button.closest(".option, [role=option]")) edit(button);
    if (button.matches("[data-template]")) edit(document.getElementById("templates"));
    if (!button.closest("#query, #look-text")) ask(button);
  },
  true,
);
document.addEventListener(
  "keydown",
  (event) => event.key === "Enter" && event.target.closest?.("#query, #look-text") && ask(event.target),
  true,
);

// One line for screen readers: the summary of each new answer.
function announce(answer) {
  const line = answer.querySelector(`.summary .said[lang="${language}"]`)?.textContent ?? "";
  const announcer = document.getElementById("announcer");
  if (announcer && line) announcer.textContent = line;
}

// On a small screen an answer may appear out of sight.
function bringIntoView(answer) {
  if (!answer.textContent.trim() || answer.querySelector(".nothing-yet")) return;
  const { top, bottom, height } = answer.getBoundingClientRect();
  const above = answer.id === "found" ? top < 0 : bottom < 80; // a new list is read from its beginning
  const narrow = innerWidth <= 640 && bottom > innerHeight && height < innerHeight; // the whole of a map
  const below = top > innerHeight - 80 || narrow;
  if (height && (below || above)) answer.scrollIntoView({ block: "start" });
}

new MutationObserver((changes) => {
  const parts = changes.map(({ target }) => (target.closest ? target : target.parentElement)); // a text has no closest
  const selector = Object.keys(ANSWERS).map((name) => `#${name}`).join(", ");
  // only the HTML of the answer, not Gradio's sign of waiting
  for (const answer of new Set(parts.map((part) => part?.closest(".html-container")?.closest(selector)))) {
    if (!answer) continue;
    markStale(answer.id);
    if (answer.id !== "look-figures") bringIntoView(answer);
    announce(answer);
  }
}).observe(document.body, { childList: true, subtree: true, characterData: true });

// Another model: the answers are those of the model before.
let answeringModel = null;
new MutationObserver(() => {
  const name = document.querySelector("#model-note strong")?.textContent;
  if (!name || name === answeringModel) return;
  const switched = answeringModel !== null;
  answeringModel = name;
  if (!switched) return;
  moment += 1;
  for (const answer of ["ranking", "where", "table", "found", "look-figures", "look-attention"]) {
    edited[answer] = moment;
    markStale(answer);
  }
}).observe(document.body, { childList: true, subtree: true, characterData: true });
