"""A page of thumbnails, by class and confidence, written as it comes: any number of pictures in little memory."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from pocketformer import files
from pocketformer.report import theme
from pocketformer.report.wording import count, safe

_SIDE = 128  # px

CSS = """
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(130px,1fr));gap:12px;margin:1em 0}
.gallery figure{margin:0}
.gallery img{width:100%;height:128px;object-fit:contain;background:var(--panel);border-radius:6px}
.gallery figcaption{font-size:.8rem;overflow-wrap:anywhere} .gallery b{color:var(--fg);display:block}
"""


class Picture(NamedTuple):
    """`group` is its heading, `name` its file; `texts` stand below it, the first of them bold."""

    group: str
    name: str
    texts: Sequence[str]
    image: Image.Image


def write_gallery(path: Path, title: str, groups: Mapping[str, int], pictures: Iterable[Picture]) -> None:
    """One self-contained HTML page. The pictures of a group follow each other; `groups` says how many images each has
    in all, which may be more than are shown."""
    with files.whole(path) as temporary, open(temporary, "w", encoding="utf-8") as page:
        page.write(
            "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>"
            f"<title>{safe(title)}</title><style>{theme.CSS}{CSS}</style></head>\n<body><main><h1>{safe(title)}</h1>"
        )
        numbers = {name: number for number, name in enumerate(groups)}
        links = (f"<a href='#g{numbers[name]}'>{safe(name)} ({count(n)})</a>" for name, n in groups.items())
        page.write(f"<nav aria-label='Classes'>{''.join(links)}</nav>")
        last = None
        for picture in pictures:
            if picture.group != last:
                page.write("</div>" if last is not None else "")
                number, total = numbers[picture.group], count(groups[picture.group])
                page.write(f"<h2 id='g{number}'>{safe(picture.group)} ({total})</h2><div class='gallery'>")
                last = picture.group
            page.write(_figure(picture))
        page.write("</div>" if last is not None else "")
        page.write("</main></body></html>\n")


def _figure(picture: Picture) -> str:
    image = picture.image.convert("RGB")
    image.thumbnail((_SIDE, _SIDE))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=80)
    source = f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
    first, *more = map(safe, picture.texts)
    below = f"<b>{first}</b>{', '.join(more)}<br>{safe(picture.name)}"
    shown = f"<img loading='lazy' alt='{safe(picture.name)}' src='{source}'>"
    return f"<figure>{shown}<figcaption>{below}</figcaption></figure>"
