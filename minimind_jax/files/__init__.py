"""Files of records, whatever their form: each is read as jsonl, one record a line. Needs no other room, and no JAX."""

from minimind_jax.files.lines import MAX_LINE_BYTES, VERSION, Lines, locate, open_lines, recognise, unit
from minimind_jax.files.recognise import Form

__all__ = ["MAX_LINE_BYTES", "VERSION", "Form", "Lines", "locate", "open_lines", "recognise", "unit"]
