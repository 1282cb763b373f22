"""The looks that figures share: one colour a class, everywhere."""

HARMFUL_COLOUR = "#D55E00"
HARMLESS_COLOUR = "#0072B2"
"""Vermillion and blue of Okabe and Ito (2008): told apart by colour-blind readers too."""

NEUTRAL_COLOUR = "#767676"
"""Thresholds and bands; readable on white and on black."""

LINE_COLOURS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#9467BD", "#8C8C00")
LINE_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")
"""Lines of a profile: colours that stand for no class, and a symbol beside each."""
