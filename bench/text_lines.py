"""Lines of Chinese text as images, for OCR networks: the manual pages that Debian has in Chinese.

Calibration and test lines come from different pages. Needs Pillow, and a font with Chinese
characters: apt install fonts-wqy-zenhei manpages-zh.
"""
import gzip
import re
from pathlib import Path

import numpy as np

PAGES = "/usr/share/man"
FONTS = ("/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc",
         "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc")
MAX_CHARACTERS = 24  # per line, as a detector of text boxes gives them
END_OF_PART = re.compile("(?<=[\u3002\uff1b\uff1a\uff0c])|\\s{2,}")  # full-width stops and commas
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def text_lines(n_calibration, n_test, seed=0):
    """Two lists of lines; no page gives lines to both."""
    pages = [page for folder in ("zh_CN", "zh_TW")
             for page in sorted(Path(PAGES, folder).rglob("*.gz"))]
    order = np.random.default_rng(seed).permutation(len(pages))
    parts = [], []
    wanted = n_calibration, n_test
    for i in order:
        side = int(len(parts[0]) * wanted[1] > len(parts[1]) * wanted[0])
        lines = list(lines_of(pages[i]))
        parts[side].extend(lines[:max(8, sum(wanted) // len(pages) + 1)])
    if any(len(part) < n for part, n in zip(parts, wanted, strict=True)):
        raise SystemExit(f"{PAGES} has only {len(parts[0])} and {len(parts[1])} lines of Chinese; "
                         "apt install manpages-zh")
    return tuple(part[:n] for part, n in zip(parts, wanted, strict=True))


def lines_of(page):
    """The distinct lines of a manual page that have Chinese characters."""
    source = gzip.decompress(page.read_bytes()).decode("utf-8", "replace")
    text = re.sub(r"\\f.|\\&|\\\||\\-|\\\(..|\\[a-zA-Z]\[[^]]*\]|\\\".*", "", source)
    words = " ".join(line for line in text.splitlines() if not line.startswith((".", "'")))
    seen = set()
    for piece in re.split(END_OF_PART, words):
        for start in range(0, len(piece), MAX_CHARACTERS):
            line = piece[start:start + MAX_CHARACTERS].strip()
            if len(CHINESE.findall(line)) >= 4 and line not in seen:
                seen.add(line)
                yield line


def rendered(line, height, seed=0):
    """A gray image (height, width) of a line, uint8: noise, a slope of light, another size."""
    from PIL import Image, ImageDraw, ImageFont

    rng = np.random.default_rng([seed, *line.encode()])
    path = next((font for font in FONTS if Path(font).exists()), None)
    if path is None:
        raise SystemExit("no font with Chinese characters; apt install fonts-wqy-zenhei")
    font = ImageFont.truetype(path, int(height * rng.uniform(0.58, 0.75)))
    left, top, right, bottom = font.getbbox(line)
    image = Image.new("L", (right - left + height // 2, height), int(rng.integers(215, 256)))
    place = height // 4 - left, (height - bottom - top) // 2
    ImageDraw.Draw(image).text(place, line, fill=int(rng.integers(0, 70)), font=font)
    light = np.linspace(-1, 1, image.width) * rng.uniform(-15, 15)
    noisy = np.asarray(image) + light + rng.normal(0, rng.uniform(1, 8), (height, image.width))
    return np.clip(noisy, 0, 255).astype(np.uint8)
