"""Recognise files that cannot be what they were given for, and say what to do with them."""

_KINDS = {  # by their first bytes in lower case
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with git lfs pull",
    b"<!doctype": "a web page; download the file itself",
    b"<html": "a web page; download the file itself",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"rar!": "a RAR archive; unpack it",
    b"bzh": "compressed by bzip2; unpack it",
    b"\xfd7zxz": "compressed by xz; unpack it",
    b"%pdf": "a PDF document; save its pictures as images",
}


def describe_start(start: bytes) -> str:
    """Return what a file with these first bytes is, and what to do; "" for an unknown one."""
    plain = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    return next((words for magic, words in _KINDS.items() if plain.startswith(magic)), "")
