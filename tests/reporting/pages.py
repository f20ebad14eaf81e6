"""A page of HTML as a parser sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise

VOID = {"meta", "br", "hr", "img", "input", "link", "wbr"}
FETCHING = {"src", "href", "srcset", "data", "action", "poster", "xlink:href"}


@dataclass
class Seen:
    """The elements with their attributes, the text, and what is wrong with the page."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def embedded(place):
    """True for a picture that stands in the page itself, and runs nothing."""
    return place is not None and place.startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))


class _Parser(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.seen, self.open, self.broken = Seen(), [], False

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.broken = tag == "wbr"
        self.seen.elements.append((tag, attributes))
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)
        self.seen.wrong += [
            f"{tag} fetches {attributes[name]}" for name in FETCHING & set(attributes) if not embedded(attributes[name])
        ]
        self.seen.wrong += [f"{tag} has {name}" for name in attributes if name.startswith("on")]
        if tag in ("script", "iframe", "object", "embed", "link", "base", "form"):
            self.seen.wrong.append(f"there is a {tag}")

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag):
        self.broken = False
        if not self.open or self.open.pop() != tag:
            self.seen.wrong.append(f"{tag} ends where it has not begun")

    def handle_data(self, data):
        if self.broken:  # within a word
            self.seen.text[-1] += data
        else:
            self.seen.text.append(data)
        self.broken = False
        if self.open and self.open[-1] == "style" and ("url(" in data or "@import" in data):
            self.seen.wrong.append("the style fetches something")


def look_at(page: str) -> Seen:
    """The page as it is read, with what is wrong in it: elements that do not close, fetch, run or have no name."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    seen = parser.seen
    seen.wrong += [f"{tag} is not closed" for tag in parser.open]
    for attributes in seen.named("svg"):
        if not attributes.get("aria-label") and attributes.get("aria-hidden") != "true":
            seen.wrong.append("a picture has no name")
    seen.wrong += ["a picture has no words" for attributes in seen.named("img") if not attributes.get("alt")]
    seen.wrong += ["a header of a table has no scope" for attributes in seen.named("th") if "scope" not in attributes]
    headings = [int(tag[1]) for tag, _ in seen.elements if tag in ("h1", "h2", "h3")]
    if headings.count(1) != 1 or any(b - a > 1 for a, b in pairwise(headings)):
        seen.wrong.append("headings leave levels out")
    labels = [attributes["aria-label"] for _, attributes in seen.elements if attributes.get("role") == "region"]
    seen.wrong += ["two regions have one name"] * (len(set(labels)) < len(labels))
    return seen
