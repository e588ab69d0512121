"""Encoding of text files: UTF-8, or UTF-16 if its byte order mark says so."""

from __future__ import annotations

import codecs


def text_encoding(head: bytes) -> str:
    """Return the encoding of a text file by its first bytes; its codec drops a byte order mark.

    Editors of Windows and PowerShell mark UTF-16; all other files are UTF-8, with a mark or without.
    """
    return "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
