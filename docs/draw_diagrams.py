"""Draws the diagrams of ViT and CLIP as SVG, in English and Japanese.

python -m docs.draw_diagrams            writes docs/images/vit-en.svg, vit-ja.svg, clip-en.svg and clip-ja.svg
"""

from html import escape
from pathlib import Path

OUT = Path(__file__).parent / "images"
INK, PALE, BLUE, ORANGE, GREEN = "#1f2933", "#eef2f6", "#dbe9f9", "#fde8d3", "#dff3e4"
FONT = "font-family:'Noto Sans CJK JP','Noto Sans JP','Hiragino Sans','Yu Gothic',Helvetica,Arial,sans-serif"

WORDS = {
    "en": {
        "vit": "Vision Transformer: an image becomes tokens, L blocks transform them, the head reads the class token",
        "clip": "CLIP: two encoders, one embedding space; each image is compared with each text of the batch",
        "image": "image (C, H, W)", "patches": "Np patches", "linear": "linear (3)", "class": "class token (4)",
        "position": "+ position embeddings (5)", "block": "block, L times", "norm": "LayerNorm",
        "attention": "MHSA (10)", "mlp": "MLP", "head": "MLP head (17)", "scores": "M scores",
        "tokens": "tokens z_0 (N, D)",
        "vision": "image encoder (ViT)", "text": "text encoder", "project": "projection, unit length",
        "images": "images (B, 3, H, W)", "texts": "texts, ids (B, T)", "x": "x (B, E)", "y": "y (B, E)",
        "similarity": "similarities exp(t) x yᵀ (B, B)", "loss": "loss: the diagonal holds the matching pairs",
    },
    "ja": {
        "vit": "Vision Transformer：画像をトークンにし、L 個のブロックで変換し、ヘッドがクラストークンを読む",
        "clip": "CLIP：二つのエンコーダーと一つの埋め込み空間。バッチの各画像と各テキストを比べる",
        "image": "画像 (C, H, W)", "patches": "Np 個のパッチ", "linear": "線形変換 (3)", "class": "クラストークン (4)",
        "position": "＋ 位置埋め込み (5)", "block": "ブロック、L 回", "norm": "LayerNorm", "attention": "MHSA (10)",
        "mlp": "MLP", "head": "MLP ヘッド (17)", "scores": "M 個のスコア", "tokens": "トークン z_0 (N, D)",
        "vision": "画像エンコーダー (ViT)", "text": "テキストエンコーダー", "project": "射影、長さ 1",
        "images": "画像 (B, 3, H, W)", "texts": "テキスト、ids (B, T)", "x": "x (B, E)", "y": "y (B, E)",
        "similarity": "類似度 exp(t) x yᵀ (B, B)", "loss": "損失：対角線が対応する組",
    },
}  # fmt: skip


def box(x: int, y: int, width: int, height: int, label: str, fill: str = PALE) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{INK}"/>'
        f'<text x="{x + width / 2}" y="{y + height / 2 + 5}" text-anchor="middle">{escape(label)}</text>'
    )


def note(x: int, y: int, label: str, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(label)}</text>'


def arrow(*points: tuple[int, int]) -> str:
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{INK}" stroke-width="1.5" marker-end="url(#tip)"/>'


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker></defs>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'style="{FONT};font-size:14px;fill:{INK}"><title>{escape(title)}</title>'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>{tip}{"".join(parts)}</svg>\n'
    )


def vit(words: dict[str, str]) -> str:
    """Input layer, one block in detail, head: book equations (3) to (17)."""
    grid = [
        f'<rect x="{20 + 26 * (i % 3)}" y="{120 + 26 * (i // 3)}" width="24" height="24" fill="{BLUE}" stroke="{INK}"/>'
        for i in range(9)
    ]
    tokens = [
        f'<rect x="{300 + 26 * i}" y="146" width="22" height="40" rx="3" fill="{ORANGE if i == 0 else BLUE}" '
        f'stroke="{INK}"/>'
        for i in range(6)
    ]
    parts = [
        note(59, 108, words["image"]), *grid, note(59, 220, words["patches"]),
        arrow((102, 158), (140, 158)), box(142, 140, 118, 40, words["linear"]), arrow((262, 160), (296, 160)),
        *tokens, note(376, 134, words["class"]), note(376, 208, words["position"]), note(376, 228, words["tokens"]),
        arrow((460, 166), (500, 166)),
        f'<rect x="502" y="60" width="330" height="216" rx="8" fill="none" stroke="{INK}" stroke-dasharray="5 4"/>',
        note(667, 50, words["block"]),
        box(520, 146, 86, 40, words["norm"]), box(620, 146, 90, 40, words["attention"], GREEN),
        note(738, 172, "+"),
        arrow((606, 166), (618, 166)), arrow((710, 166), (730, 166)),
        arrow((510, 166), (510, 100), (738, 100), (738, 156)),
        box(520, 216, 86, 40, words["norm"]), box(620, 216, 90, 40, words["mlp"], GREEN), note(738, 242, "+"),
        arrow((738, 178), (738, 200), (512, 200), (512, 236), (518, 236)),
        arrow((606, 236), (618, 236)), arrow((710, 236), (730, 236)),
        arrow((738, 200), (790, 200), (790, 236), (748, 236)),
        arrow((738, 250), (738, 262), (852, 262), (852, 166), (872, 166)),
        box(874, 146, 130, 40, words["head"], ORANGE), arrow((1004, 166), (1036, 166)),
        note(1084, 171, words["scores"]),
    ]  # fmt: skip
    return svg(1140, 300, words["vit"], parts)


def clip(words: dict[str, str]) -> str:
    """Two encoders, two projections, the matrix of similarities. Radford et al. 2021, figures 1 and 3."""
    side = 34
    cells = [
        f'<rect x="{640 + side * column}" y="{92 + side * row}" width="{side - 2}" height="{side - 2}" '
        f'fill="{GREEN if row == column else PALE}" stroke="{INK}"/>'
        for row in range(4)
        for column in range(4)
    ]
    parts = [
        note(84, 84, words["images"]), arrow((150, 80), (176, 80)), box(178, 60, 170, 40, words["vision"], BLUE),
        arrow((348, 80), (372, 80)), box(374, 60, 160, 40, words["project"]), arrow((534, 80), (630, 128)),
        note(584, 84, words["x"]),
        note(80, 234, words["texts"]), arrow((156, 230), (176, 230)), box(178, 210, 170, 40, words["text"], ORANGE),
        arrow((348, 230), (372, 230)), box(374, 210, 160, 40, words["project"]), arrow((534, 230), (630, 190)),
        note(584, 240, words["y"]),
        *cells, note(708, 80, words["similarity"]), note(708, 256, words["loss"]),
    ]  # fmt: skip
    return svg(880, 290, words["clip"], parts)


def main() -> None:
    for language, words in WORDS.items():
        (OUT / f"vit-{language}.svg").write_text(vit(words), encoding="utf-8")
        (OUT / f"clip-{language}.svg").write_text(clip(words), encoding="utf-8")


if __name__ == "__main__":
    main()
