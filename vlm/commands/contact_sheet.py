"""Search results as one HTML page that needs nothing else: small copies of the images are inside."""

import base64
import html
import io
from collections.abc import Sequence

from vlm.errors import ImageError
from vlm.images.open import open_image
from vlm.index.embedding_index import Hit

_SIDE = 320  # pixels of the longer side of a small copy
_PAGE = """<!doctype html>
<html><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem; background: #fafafa; color: #222 }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 1.2rem }}
figure {{ margin: 0 }}
img {{ width: 100%; height: 200px; object-fit: contain; background: #eee }}
figcaption {{ overflow-wrap: anywhere; color: #555; font-size: 13px }}
</style></head><body><h1>{title}</h1>{note}<main>
{figures}
</main></body></html>
"""


def contact_sheet(hits: Sequence[Hit], title: str, *, no_good_match: bool = False) -> str:
    """One figure per hit, in order; a file that can no longer be opened says so in place of its image."""
    figures = "\n".join(_figure(hit) for hit in hits)
    note = "<p>No good match. What is nearest all the same:</p>" if no_good_match else ""
    return _PAGE.format(title=html.escape(title), note=note, figures=figures)


def _figure(hit: Hit) -> str:
    name = html.escape(str(hit.path).encode(errors="backslashreplace").decode())  # not all file names are UTF-8
    try:
        shown = f'<img src="data:image/jpeg;base64,{_small_copy(hit)}" alt="{name}">'
    except ImageError as error:
        shown = f"<p>{error.reason}</p>"
    sure = "" if hit.probability is None else f" &middot; {hit.probability:.1%}"
    return f"<figure>{shown}<figcaption>{hit.rank} &middot; {hit.score:.3f}{sure} &middot; {name}</figcaption></figure>"


def _small_copy(hit: Hit) -> str:
    image = open_image(hit.path)
    image.thumbnail((_SIDE, _SIDE))
    image.info.clear()  # no EXIF: where an image was taken stays at home
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return base64.b64encode(file.getvalue()).decode()
