"""Pure functions Scored -> Loss. One paper's formula each, per row, never reduced."""
