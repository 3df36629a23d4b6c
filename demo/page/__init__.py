"""Parts of the page that all tabs share: texts, components, events, theme."""
