"""The look: paper, ink and indigo, on the fonts of the visitor's own system.  Layout is `style.css`."""

from gradio.themes import Base, Color, Font

_INDIGO = Color(
    c50="#eef3f8", c100="#dbe6f0", c200="#bccfe1", c300="#93b1cd", c400="#6890b5", c500="#46739d",
    c600="#305b85", c700="#264a6e", c800="#203d5a", c900="#1b324a", c950="#122132", name="indigo",
)  # fmt: skip
_PAPER = Color(
    c50="#faf9f6", c100="#f3f1ec", c200="#e5e2da", c300="#cfcbc1", c400="#9c9a93", c500="#74736f",
    c600="#585855", c700="#3a3c40", c800="#24272c", c900="#1a1d21", c950="#131518", name="paper",
)  # fmt: skip
_SANS = ("system-ui", "Hiragino Sans", "Yu Gothic UI", "Noto Sans JP", "Noto Sans CJK JP", "sans-serif")
_MONO = ("ui-monospace", "Consolas", "Noto Sans Mono", "monospace")

THEME = Base(
    primary_hue=_INDIGO,
    secondary_hue=_INDIGO,
    neutral_hue=_PAPER,
    radius_size="md",
    font=[Font(name) for name in _SANS],
    font_mono=[Font(name) for name in _MONO],
).set(
    body_background_fill="*neutral_50",
    body_background_fill_dark="*neutral_950",
    body_text_color="*neutral_800",
    body_text_color_dark="*neutral_200",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_400",
    block_background_fill="white",
    block_background_fill_dark="*neutral_900",
    block_border_width="1px",
    block_border_color="*neutral_200",
    block_border_color_dark="*neutral_700",
    block_title_text_weight="600",
    block_title_text_color="*body_text_color",
    block_title_text_color_dark="*body_text_color",
    block_label_text_color="*body_text_color",
    block_label_text_color_dark="*body_text_color",
    block_shadow="none",
    input_background_fill="white",
    input_background_fill_dark="*neutral_900",
    input_border_width="1px",
    input_border_color="*neutral_300",
    input_border_color_dark="*neutral_700",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_500",
    button_primary_background_fill="*primary_600",
    button_primary_background_fill_hover="*primary_700",
    button_primary_background_fill_dark="*primary_300",
    button_primary_background_fill_hover_dark="*primary_200",
    button_primary_text_color="white",
    button_primary_text_color_dark="*neutral_950",
    block_radius="10px",
    block_label_radius="0 0 8px 0",
    input_radius="8px",
    button_large_radius="10px",
    button_primary_border_color="transparent",
    button_primary_border_color_dark="transparent",
    layout_gap="20px",
)
