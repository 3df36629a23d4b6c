"""Fetch Fashion-MNIST (Xiao et al. 2017, MIT licence), 30 MB: python -m training.fetch_fashion_mnist data/fashion-mnist

On Debian and Ubuntu `apt install dataset-fashion-mnist` puts the same files into /usr/share/datasets/fashion-mnist.
"""

import argparse
import gzip
import hashlib
import sys
import urllib.request
from pathlib import Path

from vlm import atomic
from vlm.errors import DataError

SITE = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion"
FILES = {  # sha256 of what is inside the .gz
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m training.fetch_fashion_mnist",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="made if it is not there; whole files in it are kept")
    parser.add_argument("--site", default=SITE, metavar="URL", help="a mirror with the four files")
    arguments = parser.parse_args()
    try:
        fetch(arguments.folder, arguments.site)
    except (OSError, ValueError, EOFError) as error:
        print(f"fetch_fashion_mnist: error: {error}", file=sys.stderr)
        return 1
    print(arguments.folder)
    return 0


def fetch(folder: Path, site: str = SITE) -> None:
    """All four files, each looked at before it gets its name; `ValueError` if one is not what was published."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, expected in FILES.items():
        path = folder / name
        if path.exists() and _sum(path.read_bytes()) == expected:
            continue
        print(f"{site}/{name}", file=sys.stderr)
        with urllib.request.urlopen(f"{site}/{name}", timeout=60) as answer:
            data = answer.read()
        if _sum(data) != expected:
            raise DataError(
                f"{site}/{name} is not the file of Fashion-MNIST: its contents differ. Try a mirror, --site."
            )
        atomic.write(path, data)


def _sum(data: bytes) -> str:
    """sha256 of the contents: archives of the same file differ."""
    try:
        return hashlib.sha256(gzip.decompress(data)).hexdigest()
    except (OSError, EOFError, gzip.zlib.error):  # type: ignore[attr-defined]
        return "no gzip file"


if __name__ == "__main__":
    sys.exit(main())
