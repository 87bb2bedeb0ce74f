"""Conversion between workdirs and other formats; each module is a command, `python -m convert.to_hf --help`."""
