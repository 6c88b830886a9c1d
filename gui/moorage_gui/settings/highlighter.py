"""Colours for JSON: keys, strings, numbers and words. Judges nothing; marks of faults are the editor's."""

from __future__ import annotations

import re

from PySide6.QtGui import QColor, QSyntaxHighlighter, QTextCharFormat, QTextDocument

from moorage_gui.theme import Theme

_TOKEN = re.compile(
    r'(?P<text>"(?:[^"\\]|\\.)*"?)(?P<colon>\s*:)?|(?P<number>-?\d[\d.eE+-]*)|(?P<word>\b(?:true|false|null)\b)'
)


class JsonHighlighter(QSyntaxHighlighter):
    """Works line by line: no JSON token spans two."""

    def __init__(self, document: QTextDocument, theme: Theme) -> None:
        super().__init__(document)
        self._formats: dict[str, QTextCharFormat] = {}
        self.wear(theme)

    def wear(self, theme: Theme) -> None:
        """Take the colours of a theme."""
        colours = {
            "key": theme.syntax_key,
            "text": theme.syntax_text,
            "number": theme.syntax_number,
            "word": theme.syntax_word,
        }
        for name, colour in colours.items():
            shape = QTextCharFormat()
            shape.setForeground(QColor(colour))
            self._formats[name] = shape
        self.rehighlight()

    def highlightBlock(self, text: str) -> None:
        """Colour one line; called by Qt."""
        for match in _TOKEN.finditer(text):
            kind = match.lastgroup or ""
            if kind == "colon":
                kind = "key"
            start, end = match.span("text" if kind in ("key", "text") else kind)
            # Qt counts UTF-16 units, Python characters
            before = len(text[:start].encode("utf-16-le")) // 2
            self.setFormat(before, len(text[start:end].encode("utf-16-le")) // 2, self._formats[kind])
