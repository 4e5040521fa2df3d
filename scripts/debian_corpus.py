"""Plain text of Debian packages: a Russian and an English corpus for `rsg-harness adapt`, nothing to sign or crawl.

    apt-get download libreoffice-help-ru gimp-help-ru fortunes-ru …
    for f in *.deb; do dpkg -x $f unpacked/${f%%_*}; done
    python scripts/debian_corpus.py unpacked corpus

Writes corpus/ru/PACKAGE.txt and corpus/en/PACKAGE.txt, by the letters of each package's text. Every line once.
"""

from __future__ import annotations

import argparse
import gzip
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from harness.data.corpus import russian_share

_BLOCK_TAGS = {"p", "div", "li", "td", "th", "tr", "h1", "h2", "h3", "h4", "h5", "dt", "dd", "br", "title", "pre"}
_HIDDEN_TAGS = {"script", "style"}
_SUFFIXES = {".html", ".htm", ".txt", ".dic", ".gz", ""}
_SKIPPED = re.compile(r"changelog|copyright|\.dat$|\.u8$|README\.Debian")
_ROFF = re.compile(r"^[.']\S*.*$|\\f[BIRP]|\\-|\\\(..|\\&", re.MULTILINE)


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._hidden += tag in _HIDDEN_TAGS
        if tag in _BLOCK_TAGS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in _HIDDEN_TAGS
        if tag in _BLOCK_TAGS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data.replace("\n", " "))


def _plain(file: Path) -> str:
    content = file.read_bytes()
    if file.suffix == ".gz":
        content = gzip.decompress(content)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return ""
    if ".htm" in file.name:
        parser = _Text()
        parser.feed(text)
        return "".join(parser.parts)
    if "/man/" in str(file):
        return _ROFF.sub("", text)
    if file.suffix == ".dic":  # hunspell: word/flags
        return "\n".join(line.partition("/")[0] for line in text.splitlines()[1:])
    return text.replace("\n%\n", "\n") if "fortunes" in str(file) else text


def _files(package: Path) -> Iterator[Path]:
    for file in sorted(package.rglob("*")):
        is_text = "/fortunes/" in str(file) or file.suffix in _SUFFIXES
        if is_text and file.is_file() and not file.is_symlink() and not _SKIPPED.search(file.name):
            yield file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("unpacked", type=Path)
    parser.add_argument("corpus", type=Path)
    args = parser.parse_args()
    for package in sorted(path for path in args.unpacked.iterdir() if path.is_dir()):
        lines: dict[str, None] = {}
        for file in _files(package):
            for line in _plain(file).splitlines():
                line = re.sub(r"\s+", " ", line).strip()
                if re.search(r"\w{2}", line):
                    lines[line] = None
        text = "\n".join(lines)
        if not text:
            continue
        share = russian_share([text])
        target = args.corpus / ("ru" if share > 0.3 else "en") / f"{package.name}.txt"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text + "\n", encoding="utf-8")
        print(f"{package.name}: {len(text) / 1e6:.1f} million characters, {100 * share:.0f}% Cyrillic letters")


if __name__ == "__main__":
    main()
