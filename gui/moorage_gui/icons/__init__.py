"""Icons of our own, drawn as SVG and coloured for the theme when asked for."""

from __future__ import annotations

from importlib import resources

from PySide6.QtCore import QByteArray, QRectF, QSize, Qt
from PySide6.QtGui import QColor, QIcon, QImage, QPainter, QPixmap
from PySide6.QtSvg import QSvgRenderer

_SIZES = (16, 22, 24, 32, 48, 64, 128, 256)


def svg(name: str, colour: str, mark: str = "none") -> bytes:
    """The drawing `name` with its line colour and the colour of its mark (a dot that says a state) filled in."""
    text = resources.files(__package__).joinpath(f"{name}.svg").read_text()
    return text.replace("currentColor", colour).replace("markColor", mark).encode()


def pixmap(name: str, colour: str, size: QSize, mark: str = "none") -> QPixmap:
    """The drawing at a size in device pixels."""
    renderer = QSvgRenderer(QByteArray(svg(name, colour, mark)))
    image = QImage(size, QImage.Format.Format_ARGB32_Premultiplied)
    image.fill(QColor(Qt.GlobalColor.transparent))
    painter = QPainter(image)
    renderer.render(painter, QRectF(0, 0, size.width(), size.height()))
    painter.end()
    return QPixmap.fromImage(image)


def icon(name: str, colour: str, mark: str = "none") -> QIcon:
    """The drawing at every size that a desktop asks for."""
    found = QIcon()
    for size in _SIZES:
        found.addPixmap(pixmap(name, colour, QSize(size, size), mark))
    return found
