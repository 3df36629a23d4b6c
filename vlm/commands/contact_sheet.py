"""Search results as one HTML page with small copies of the images inside: it needs no other file."""

import base64
import html
import io
from collections.abc import Sequence

from vlm.errors import ImageError
from vlm.images.open import open_image
from vlm.index.search import Hit

_SIDE = 320  # pixels of the longer side of a small copy
_PAGE = """<!doctype html>
<html><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem; background: #fafafa; color: #222 }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 1.2rem }}
figure {{ margin: 0 }}
hr {{ grid-column: 1 / -1; width: 100%; border: 0; border-top: 1px solid #ccc }}
img {{ width: 100%; height: 200px; object-fit: contain; background: #eee }}
figcaption {{ overflow-wrap: anywhere; color: #555; font-size: 13px }}
</style></head><body><h1>{title}</h1>{note}<main>
{figures}
</main></body></html>
"""


def contact_sheet(
    groups: Sequence[Sequence[Hit]], title: str, *, no_good_match: bool = False, scores: bool = True
) -> str:
    """Make the page.

    Args:
        groups: hits, one figure each, in order; groups are set apart by a line.
        title: the query.
        no_good_match: say that even the best is none.
        scores: show rank, score and probability.

    Returns:
        HTML; a file that can no longer be opened is named with the reason in place of its image.
    """
    rows = ("\n".join(_figure(hit, scores) for hit in group) for group in groups)
    note = "<p>No good match. The nearest images:</p>" if no_good_match else ""
    return _PAGE.format(title=html.escape(title), note=note, figures="\n<hr>\n".join(rows))


def _figure(hit: Hit, scores: bool) -> str:
    name = html.escape(str(hit.path).encode(errors="backslashreplace").decode())  # not all file names are UTF-8
    try:
        shown = f'<img src="data:image/jpeg;base64,{_small_copy(hit)}" alt="{name}">'
    except ImageError as error:
        shown = f"<p>{error.reason}</p>"
    probability = "" if hit.probability is None else f" &middot; {hit.probability:.1%}"
    about = f"{hit.rank} &middot; {hit.score:.3f}{probability} &middot; " if scores else ""
    return f"<figure>{shown}<figcaption>{about}{name}</figcaption></figure>"


def _small_copy(hit: Hit) -> str:
    image = open_image(hit.path, to_srgb=True)
    image.thumbnail((_SIDE, _SIDE))
    image.info.clear()  # no EXIF: the page does not tell where an image was taken
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()
