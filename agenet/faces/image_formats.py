"""Which image files are read, by suffix and content, and what to do with those that are not."""

from collections import Counter
from collections.abc import Mapping
from functools import cache

from agenet.errors import is_installed, printable

# Pillow's name of the format, by suffix. JPEG includes MPO, the format of stereo cameras: two JPEG
# images in one file, of which the first is read.
FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".mpo": "JPEG",
    ".png": "PNG",
    ".apng": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".dib": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
    ".avif": "AVIF",
    ".heic": "HEIF",
    ".heif": "HEIF",
    ".hif": "HEIF",
}
# What reading a format takes that is not part of every installation.
_NEEDED = {
    "HEIF": ("pillow_heif", "pip install pillow-heif, or convert to JPEG"),
    "AVIF": ("PIL._avif", "pip install --upgrade pillow, or convert to JPEG"),
}
LINKED_FOLDER = "linked folder"
_CONVERT = "convert to JPEG"
_WEBCAM = "use agenet webcam"
# JPEG 2000, XL and XR, raw images of cameras, documents and drawings.
_IMAGES = (
    ".jp2 .j2k .jpx .jpf .j2c .jxl .jxr .wdp .dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf "
    ".rw2 .raf .pef .srw .x3f .3fr .erf .kdc .mrw .iiq .rwl .psd .psb .xcf .svg .svgz .pdf .eps "
    ".ai .ico .icns .tga .ppm .pgm .pbm .pnm .pam .pcx .exr .hdr .dds .qoi .heics .avifs .bpg .djvu"
)
_VIDEOS = ".mp4 .m4v .mov .avi .mkv .webm .mts .m2ts .mpg .mpeg .wmv .flv .3gp .ogv"
_UNREAD = {
    LINKED_FOLDER: "name it to search it",
    **dict.fromkeys(_IMAGES.split(), _CONVERT),
    **dict.fromkeys(_VIDEOS.split(), _WEBCAM),
}
_SHOWN = 5  # suffixes of other files

_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1"}


@cache
def advice(format: str) -> str:
    """What to do before Pillow reads a format; nothing if it does."""
    module, what = _NEEDED.get(format, ("PIL", ""))
    return "" if is_installed(module) else what


def is_read(suffix: str) -> bool:
    """Whether files with this suffix, in small letters, are read."""
    return suffix in FORMATS and not advice(FORMATS[suffix])


def describe_unread(kinds: Mapping[str, int]) -> str:
    """One line on files that are not read, by kind, with what to do; "" if there are none.

    >>> print(describe_unread({".jp2": 2, ".cr2": 1, "linked folder": 1, ".txt": 3, "": 1}))
    2 .jp2, 1 .cr2 (convert to JPEG); 1 linked folder (name it to search it); 4 others (.txt)

    Args:
        kinds: number of files, by suffix in small letters or `LINKED_FOLDER`.
    """
    groups: dict[str, Counter[str]] = {}
    for kind, count in kinds.items():
        what = advice(FORMATS[kind]) if kind in FORMATS else _UNREAD.get(kind, "")
        groups.setdefault(what, Counter())[kind] += count
    others = groups.pop("", Counter())
    parts = [
        f"{', '.join(_counted(kind, count) for kind, count in group.most_common())} ({what})"
        for what, group in sorted(groups.items(), key=lambda item: -item[1].total())
    ]
    if others:
        shown = [printable(kind, 10) for kind, _ in others.most_common(_SHOWN) if kind]
        number = others.total()
        parts.append(
            f"{number:,} other{'s' if number > 1 else ''}"
            + (f" ({', '.join(shown)})" if shown else "")
        )
    return "; ".join(parts)


def _counted(kind: str, count: int) -> str:
    return f"{count:,} {kind}" + ("s" if kind == LINKED_FOLDER and count > 1 else "")


def sniff(head: bytes) -> str:
    """The format that a file's first 64 bytes show, by Pillow's name; of others, what to do.

    "" if they show none of the formats that are known here.
    """
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:2] in (b"II", b"MM") and {42, 43} & {*head[2:4]}:
        return "TIFF"
    if head[4:8] == b"ftyp":  # ISO/IEC 14496-12; the brands follow, of which the second is a number
        size = min(int.from_bytes(head[:4], "big"), len(head))
        brands = {head[at : at + 4] for at in (8, *range(16, size, 4))}
        # Both may name the other's brand mif1, and newer HEIC files that of AVIF's structure.
        if head[8:12] in _AVIF_BRANDS or (_AVIF_BRANDS & brands and head[8:12] == b"mif1"):
            return "AVIF"
        if _HEIF_BRANDS & brands:
            return "HEIF"
        return "a raw image: convert it to JPEG" if b"crx " in brands else f"a video: {_WEBCAM}"
    for start, what in (
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG", "PNG"),
        (b"GIF8", "GIF"),
        (b"BM", "BMP"),
        (b"\0\0\0\x0cjP  ", "a JPEG 2000 image: convert it to JPEG"),
        (b"\xffO\xffQ", "a JPEG 2000 image: convert it to JPEG"),
        (b"\0\0\0\x0cJXL ", "a JPEG XL image: convert it to JPEG"),
        (b"\xff\x0a", "a JPEG XL image: convert it to JPEG"),
        (b"8BPS", "a Photoshop file: convert it to JPEG"),
        (b"%PDF", "a PDF: convert its pages to JPEG"),
        (b"\x1aE\xdf\xa3", f"a video: {_WEBCAM}"),
    ):
        if head.startswith(start):
            return what
    return ""
