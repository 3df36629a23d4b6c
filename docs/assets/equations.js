// Draws the equations that pymdownx.arithmatex marked: \\(...\\) in a span, \\[...\\] in a div.
for (const place of document.querySelectorAll(".arithmatex")) {
  const tex = place.textContent.trim().slice(2, -2);
  katex.render(tex, place, { displayMode: place.tagName === "DIV", throwOnError: true });
}
