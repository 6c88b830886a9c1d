"""Colours and shapes, light and dark. Everything that paints for itself asks `theme_for` with its own palette."""

from __future__ import annotations

from dataclasses import dataclass

from PySide6.QtCore import Qt
from PySide6.QtGui import QColor, QFont, QFontDatabase, QPalette
from PySide6.QtWidgets import QApplication


@dataclass(frozen=True)
class Theme:
    """One set of colours."""

    dark: bool
    window: str
    surface: str
    sunken: str
    border: str
    text: str
    muted: str
    accent: str
    accent_hover: str
    on_accent: str
    selection: str
    good: str
    warning: str
    bad: str
    gauge: str
    good_soft: str
    warning_soft: str
    bad_soft: str
    info_soft: str
    syntax_key: str
    syntax_text: str
    syntax_number: str
    syntax_word: str


LIGHT = Theme(
    dark=False,
    window="#f3f5f8",
    surface="#ffffff",
    sunken="#f8fafc",
    border="#d8dee6",
    text="#17222f",
    muted="#5a6878",
    accent="#0b6e8f",
    accent_hover="#095b77",
    on_accent="#ffffff",
    selection="#d5e9f0",
    good="#18794e",
    warning="#9a5b00",
    bad="#c0262d",
    gauge="#d88a06",
    good_soft="#e2f4ea",
    warning_soft="#fdf0d7",
    bad_soft="#fde7e7",
    info_soft="#e3f1f6",
    syntax_key="#0b5c86",
    syntax_text="#2d7a3a",
    syntax_number="#a6480a",
    syntax_word="#8a2f8f",
)

DARK = Theme(
    dark=True,
    window="#12181f",
    surface="#1b232c",
    sunken="#151c24",
    border="#303b48",
    text="#e6ecf2",
    muted="#9aa8b7",
    accent="#2f9fc4",
    accent_hover="#47b3d6",
    on_accent="#04151c",
    selection="#1f4657",
    good="#5ac98f",
    warning="#f0b354",
    bad="#ff7f7f",
    gauge="#f0b354",
    good_soft="#16352a",
    warning_soft="#3a2d14",
    bad_soft="#43201f",
    info_soft="#163441",
    syntax_key="#7fc7e8",
    syntax_text="#93d39b",
    syntax_number="#f2a66b",
    syntax_word="#d9a0e0",
)


def theme_for(palette: QPalette) -> Theme:
    """The theme that a widget with this palette is in."""
    return DARK if palette.color(QPalette.ColorRole.Window).lightness() < 128 else LIGHT


def monospace(size: float) -> QFont:
    """The system's font of fixed width, at a size in points."""
    font = QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont)
    font.setStyleHint(QFont.StyleHint.Monospace)
    font.setPointSizeF(size)
    return font


def follow_system(app: QApplication) -> None:
    """Dress the application and change clothes with the system."""
    app.setStyle("Fusion")
    dress(app, app.styleHints().colorScheme() is Qt.ColorScheme.Dark)
    app.styleHints().colorSchemeChanged.connect(lambda scheme: dress(app, scheme is Qt.ColorScheme.Dark))


def dress(app: QApplication, dark: bool) -> None:
    """Put palette and style sheet of one theme in force."""
    theme = DARK if dark else LIGHT
    app.setPalette(_palette(theme))
    app.setStyleSheet(_style(theme))


def _palette(theme: Theme) -> QPalette:
    palette = QPalette()
    role = QPalette.ColorRole
    colours = {
        role.Window: theme.window,
        role.WindowText: theme.text,
        role.Base: theme.surface,
        role.AlternateBase: theme.sunken,
        role.Text: theme.text,
        role.Button: theme.surface,
        role.ButtonText: theme.text,
        role.ToolTipBase: theme.surface,
        role.ToolTipText: theme.text,
        role.PlaceholderText: theme.muted,
        role.Highlight: theme.selection,
        role.HighlightedText: theme.text,
        role.Link: theme.accent,
        role.Mid: theme.border,
        role.Dark: theme.border,
        role.Light: theme.surface,
    }
    for which, colour in colours.items():
        palette.setColor(which, QColor(colour))
    for which in (role.WindowText, role.Text, role.ButtonText):
        palette.setColor(QPalette.ColorGroup.Disabled, which, QColor(theme.muted))
    return palette


def _style(theme: Theme) -> str:
    return f"""
QWidget {{ color: {theme.text}; font-size: 10pt; }}
QMainWindow, QDialog {{ background: {theme.window}; }}
QToolTip {{ background: {theme.surface}; color: {theme.text}; border: 1px solid {theme.border}; padding: 4px; }}
QLabel[role="title"] {{ font-size: 17pt; font-weight: 600; }}
QLabel[role="heading"] {{ font-size: 11pt; font-weight: 600; }}
QLabel[role="muted"] {{ color: {theme.muted}; }}
QLabel[role="value"] {{ font-size: 13pt; font-weight: 600; }}
QLabel[chip="good"] {{ background: {theme.good_soft}; color: {theme.good}; }}
QLabel[chip="warning"] {{ background: {theme.warning_soft}; color: {theme.warning}; }}
QLabel[chip="bad"] {{ background: {theme.bad_soft}; color: {theme.bad}; }}
QLabel[chip="info"] {{ background: {theme.info_soft}; color: {theme.accent}; }}
QLabel[chip="plain"] {{ background: {theme.sunken}; color: {theme.muted}; }}
QLabel[chip] {{ border-radius: 9px; padding: 2px 9px; font-size: 9pt; font-weight: 600; }}
QFrame[card="true"] {{ background: {theme.surface}; border: 1px solid {theme.border}; border-radius: 8px; }}
QFrame[banner="good"] {{ background: {theme.good_soft}; border: 1px solid {theme.good}; border-radius: 8px; }}
QFrame[banner="warning"] {{ background: {theme.warning_soft}; border: 1px solid {theme.warning}; border-radius: 8px; }}
QFrame[banner="bad"] {{ background: {theme.bad_soft}; border: 1px solid {theme.bad}; border-radius: 8px; }}
QFrame[banner="info"] {{ background: {theme.info_soft}; border: 1px solid {theme.accent}; border-radius: 8px; }}
QListWidget#navigation {{ background: transparent; border: none; outline: none; font-size: 10.5pt; }}
QListWidget#navigation::item {{ padding: 9px 10px; margin: 1px 8px; border-radius: 6px; }}
QListWidget#navigation::item:hover {{ background: {theme.border}; }}
QListWidget#navigation::item:selected {{ background: {theme.selection}; color: {theme.text}; }}
QListWidget#navigation::item:selected:focus {{ border: 1px solid {theme.accent}; }}
QWidget#side {{ background: {theme.sunken}; border-right: 1px solid {theme.border}; }}
QPushButton {{ background: {theme.surface}; border: 1px solid {theme.border}; border-radius: 6px; padding: 6px 16px; min-height: 18px; }}
QPushButton:hover {{ border-color: {theme.accent}; }}
QPushButton:focus {{ border: 2px solid {theme.accent}; padding: 5px 15px; }}
QPushButton:disabled {{ color: {theme.muted}; background: {theme.window}; }}
QPushButton[primary="true"] {{ background: {theme.accent}; color: {theme.on_accent}; border-color: {theme.accent}; font-weight: 600; }}
QPushButton[primary="true"]:hover {{ background: {theme.accent_hover}; }}
QPushButton[primary="true"]:focus {{ border: 2px solid {theme.text}; }}
QPushButton[primary="true"]:disabled {{ background: {theme.border}; color: {theme.muted}; border-color: {theme.border}; }}
QPlainTextEdit, QTableView, QListWidget#problems {{ background: {theme.surface}; border: 1px solid {theme.border}; border-radius: 6px; }}
QPlainTextEdit:focus, QTableView:focus, QListWidget#problems:focus {{ border: 1px solid {theme.accent}; }}
QPlainTextEdit {{ selection-background-color: {theme.selection}; selection-color: {theme.text}; }}
QTableView {{ gridline-color: transparent; selection-background-color: {theme.selection}; selection-color: {theme.text};
  alternate-background-color: {theme.sunken}; outline: none; }}
QTableView::item {{ padding: 4px 8px; }}
QHeaderView::section {{ background: {theme.surface}; color: {theme.muted}; border: none; border-bottom: 1px solid {theme.border};
  padding: 6px 11px; font-weight: 600; font-size: 9pt; }}
QHeaderView {{ background: {theme.surface}; border: none; }}
QListWidget#problems::item {{ padding: 3px 6px; }}
QLineEdit {{ background: {theme.surface}; border: 1px solid {theme.border}; border-radius: 6px; padding: 5px 8px;
  selection-background-color: {theme.selection}; selection-color: {theme.text}; }}
QLineEdit:focus {{ border: 1px solid {theme.accent}; }}
QSpinBox QLineEdit, QSpinBox QLineEdit:focus {{ border: none; border-radius: 0; padding: 0; background: transparent; }}
QSlider {{ min-height: 24px; }}
QSlider::groove:horizontal {{ height: 4px; border-radius: 2px; background: {theme.border}; }}
QSlider::sub-page:horizontal {{ height: 4px; border-radius: 2px; background: {theme.accent}; }}
QSlider::handle:horizontal {{ width: 16px; height: 16px; margin: -7px 0; border-radius: 9px; background: {theme.surface}; border: 2px solid {theme.accent}; }}
QSlider::handle:horizontal:focus {{ background: {theme.accent}; }}
QListView {{ background: {theme.surface}; border: 1px solid {theme.border}; selection-background-color: {theme.selection}; selection-color: {theme.text}; }}
QSplitter::handle {{ background: transparent; }}
QMenu {{ background: {theme.surface}; border: 1px solid {theme.border}; padding: 4px; }}
QMenu::item {{ padding: 6px 22px; border-radius: 4px; }}
QMenu::item:selected {{ background: {theme.selection}; }}
QMenu::item:disabled {{ color: {theme.muted}; }}
QMenu::separator {{ height: 1px; background: {theme.border}; margin: 4px 8px; }}
QScrollArea {{ background: transparent; border: none; }}
QScrollBar:vertical {{ background: transparent; width: 11px; margin: 2px; }}
QScrollBar:horizontal {{ background: transparent; height: 11px; margin: 2px; }}
QScrollBar::handle {{ background: {theme.border}; border-radius: 3px; min-height: 24px; min-width: 24px; }}
QScrollBar::handle:hover {{ background: {theme.muted}; }}
QScrollBar::add-line, QScrollBar::sub-line, QScrollBar::add-page, QScrollBar::sub-page {{ background: none; border: none; width: 0; height: 0; }}
"""
