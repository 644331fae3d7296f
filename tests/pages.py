"""A page of a run, taken apart."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

SECTIONS = ["learning", "kl", "clip", "steps", "statistics", "settings", "versions"]
_VOID = {"meta", "link", "img", "source", "input", "br", "path"}


class Page(HTMLParser):
    """Its elements with their attributes, the content of its scripts, and the text of each section."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text("utf-8")
        self.elements: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self._texts: dict[str, str] = {}
        self._section = "head"
        self.feed(self.html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in _VOID:
            self._open.append(tag)
        if tag == "section":
            self._section = dict(attributes)["id"]
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self._open.pop() == tag
        if tag == "section":
            self._section = "between"

    def handle_data(self, data):
        if self._open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif self._open[-1:] != ["style"]:
            self._texts[self._section] = self._texts.get(self._section, "") + " " + data

    @property
    def sections(self) -> list[str]:
        return [name for name in self._texts if name not in ("head", "between")]

    def text(self, section: str) -> str:
        return re.sub(r"\s+", " ", self._texts[section]).strip()

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]
