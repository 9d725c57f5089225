"""Builds the embedded data set, ``clipkit/demo/emoji.zip``, from seven npm packages.

For maintainers only: the built file is committed, and nothing in clipkit imports this one. It needs cairosvg (and
Debian's ``libcairo2``) and the packages, unpacked side by side::

    mkdir packages && cd packages && npm install --no-save \
        @iconify-json/noto@1.2.9 @iconify-json/noto-v1@1.2.5 @iconify-json/fxemoji@1.2.2 @iconify-json/twemoji@1.2.5 \
        @iconify-json/emojione@1.2.3 @iconify-json/fluent-emoji-flat@1.2.6 emojibase-data@17.0.0 && cd ..
    python -m clipkit.demo.build_data --packages packages/node_modules --out clipkit/demo/emoji.zip

The folders that ``npm pack`` and ``tar`` leave (``iconify-json-noto``, ...) are found too. In the zip stand
``images/STYLE/HEXCODE.webp`` and ``concepts.json``. The bytes are the same for the same packages, cairo and libwebp:
entries are stored, sorted and dated 1980. Of pictures that are equal within a style, one is kept.
"""

import argparse
import hashlib
import io
import json
import re
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

from clipkit.demo.fxemoji_names import NAMES

STYLES = ("noto", "noto-v1", "fxemoji", "twemoji", "emojione", "fluent-emoji-flat")
LANGUAGES = ("de", "es", "fr", "hi", "it", "ja", "ko", "pt", "ru", "zh")
SIZE, QUALITY = 64, 90
LEFT_OUT_GROUPS = (None, 2, 9)  # regional indicators, components (skin tones, hair), flags

# drawings that cairo renders wrongly or that show something else than the label says
LEFT_OUT_DRAWINGS = {
    ("emojione", "rolling on the floor laughing"),
    ("fxemoji", "blue heart"),
    ("fxemoji", "game die"),
    ("fxemoji", "tram car"),
    ("fxemoji", "water pistol"),
    ("fxemoji", "window"),
    ("noto-v1", "keycap: #"),
    ("noto-v1", "keycap: *"),
}

Json = dict[str, Any]


def slug(name: str) -> str:
    """Letters and digits only, so that ``Mrs. Claus``, ``mrs-claus`` and ``mrs_claus`` are one name."""
    plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", plain)


def is_concept(entry: Json) -> bool:
    """Whether an emojibase entry is a concept: no flags, no components, and one drawing of people, animals and things.

    Skin tones are nested in the entries and never reached. Variants by gender (``man running``, ``woman cook``, couples
    and families spelled out) and by direction (``facing right``) look the same at 32 pixels: their base stands in.
    """
    code: str = entry["hexcode"]
    variant = any(sign in code for sign in ("200D-2640", "200D-2642", "200D-27A1"))
    return (
        entry.get("group") not in LEFT_OUT_GROUPS and not variant and not code.startswith(("1F468-200D", "1F469-200D"))
    )


def is_held_out(hexcode: str) -> bool:
    """A tenth of the concepts, by the SHA-256 of the hexcode: no random state, the same for every reader."""
    return int(hashlib.sha256(hexcode.encode()).hexdigest()[:8], 16) % 10 == 0


def without_selector(hexcode: str) -> str:
    """``2764-FE0F`` as the icon sets write it, ``2764``: they leave out the variation selector."""
    return hexcode.upper().replace("-FE0F", "")


def package(packages: Path, name: str) -> Path:
    """The folder of an npm package, as ``npm install`` or as ``npm pack`` and ``tar`` leave it."""
    folders = [packages / name, packages / name.removeprefix("@").replace("/", "-")]
    for folder in folders:
        if (folder / "package.json").is_file():
            return folder
    raise ValueError(f"npm package {name} is neither at {folders[0]} nor at {folders[1]}: npm install it there")


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def names_of_concepts(
    emojibase: Path, entries: list[Json], icons: dict[str, Json], chars: dict[str, Json]
) -> dict[str, str]:
    """Every name we know for a concept, slugged: labels first, then icon names, Unicode names and shortcodes."""
    known = {without_selector(entry["hexcode"]) for entry in entries}
    names: dict[str, str] = {}

    def add(name: str, hexcode: str) -> None:
        if without_selector(hexcode) in known:
            names.setdefault(slug(name), without_selector(hexcode))

    for entry in entries:
        add(entry["label"], entry["hexcode"])
    for style, table in chars.items():
        aliases: dict[str, list[str]] = {}
        for alias, target in icons[style].get("aliases", {}).items():
            aliases.setdefault(target["parent"], []).append(alias)
        for hexcode, name in table.items():
            for one in (name, *aliases.get(name, ())):
                add(one, hexcode)
    for hexcode, name in read(emojibase / "meta/unicode-names.json").items():
        add(name, hexcode)
    for source in ("cldr", "emojibase", "github", "iamcal", "joypixels", "emojibase-legacy"):
        for hexcode, codes in read(emojibase / f"en/shortcodes/{source}.json").items():
            for code in [codes] if isinstance(codes, str) else codes:
                add(code, hexcode)
    return names


def match_icons(
    packages: Path, emojibase: Path, entries: list[Json], icons: dict[str, Json]
) -> dict[str, dict[str, str]]:
    """For every style, hexcode (without selector) to icon name.

    noto, twemoji and fluent say which character an icon draws. noto-v1 and emojione carry CLDR names, some of them old.
    fxemoji has names of its own: a table by hand goes first, and a name that it uses up is matched to nothing else.
    """
    folders = {style: package(packages, f"@iconify-json/{style}") for style in STYLES}
    chars = {style: read(folder / "chars.json") for style, folder in folders.items()}
    concepts = {without_selector(entry["hexcode"]): entry["label"] for entry in entries if is_concept(entry)}
    names = names_of_concepts(emojibase, entries, icons, {style: table for style, table in chars.items() if table})
    hexcodes = {slug(label): hexcode for hexcode, label in concepts.items()}
    by_hand = {"fxemoji": {icon: hexcodes[slug(label)] for icon, label in NAMES.items()}}
    matched: dict[str, dict[str, str]] = {}
    for style in STYLES:
        hand = by_hand.get(style, {})
        found = {hexcode: icon for icon, hexcode in hand.items()}
        if chars[style]:
            pairs = [(hexcode.upper(), icon) for hexcode, icon in chars[style].items()]
        else:
            pairs = [(names.get(slug(icon), ""), icon) for icon in icons[style]["icons"] if icon not in hand]
        for hexcode, icon in pairs:
            code = without_selector(hexcode)
            if code in concepts and (style, concepts[code]) not in LEFT_OUT_DRAWINGS:
                found.setdefault(code, icon)
        matched[style] = found
    return matched


def draw(icons: Json, name: str) -> bytes:
    """One icon on white, as the bytes of a WebP."""
    import cairosvg
    from PIL import Image

    alias = icons.get("aliases", {}).get(name, {})
    icon = icons["icons"][alias.get("parent", name)]
    box = [
        icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    ]
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{" ".join(map(str, box))}">{icon["body"]}</svg>'
    )
    png = cairosvg.svg2png(bytestring=svg.encode(), output_width=SIZE, output_height=SIZE, background_color="white")
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if alias.get("hFlip"):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=QUALITY, method=6)
    return out.getvalue()


def draw_all(
    icons: dict[str, Json], matched: dict[str, dict[str, str]], names: dict[str, str]
) -> dict[str, dict[str, bytes]]:
    """Every drawing, by style and hexcode; of drawings equal to the byte within a style, the first by hexcode."""
    drawings: dict[str, dict[str, bytes]] = {}
    for style, found in matched.items():
        seen: dict[bytes, str] = {}
        drawings[style] = {}
        for code in sorted(found):
            picture = draw(icons[style], found[code])
            if picture in seen:
                print(f"{style}: {names[code]} is drawn like {names[seen[picture]]}: left out")
                continue
            seen[picture] = code
            drawings[style][code] = picture
    return drawings


def describe(emojibase: Path, entries: list[Json], drawings: dict[str, dict[str, bytes]]) -> list[Json]:
    """The concepts that a training style draws, with their words."""
    groups = read(emojibase / "meta/groups.json")
    others = {lang: {e["hexcode"]: e["label"] for e in read(emojibase / lang / "data.json")} for lang in LANGUAGES}
    concepts = []
    for entry in filter(is_concept, entries):
        code = without_selector(entry["hexcode"])
        styles = [style for style in STYLES if code in drawings[style]]
        if not set(styles) - {STYLES[-1]}:
            continue
        concepts.append(
            {
                "hexcode": code,
                "label": entry["label"],
                "tags": entry.get("tags", []),
                "group": groups["groups"][str(entry["group"])],
                "subgroup": groups["subgroups"][str(entry["subgroup"])],
                "held_out": is_held_out(code),
                "styles": styles,
                "labels": {
                    lang: table[entry["hexcode"]] for lang, table in others.items() if entry["hexcode"] in table
                },
            }
        )
    labels = [concept["label"].casefold() for concept in concepts]
    assert len(set(labels)) == len(labels), "two concepts share a label"
    return sorted(concepts, key=lambda concept: str(concept["hexcode"]))


def write_zip(out: Path, concepts: list[Json], drawings: dict[str, dict[str, bytes]]) -> None:
    """Stored, sorted, dated 1980-01-01: the same bytes for the same contents."""
    entries = {"concepts.json": (json.dumps(concepts, ensure_ascii=False, separators=(",", ":")) + "\n").encode()}
    for concept in concepts:
        for style in concept["styles"]:
            entries[f"images/{style}/{concept['hexcode']}.webp"] = drawings[style][concept["hexcode"]]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            info.create_system = 3
            archive.writestr(info, entries[name])


def main() -> None:
    """Reads the packages, draws, writes the zip and says what is in it."""
    parser = argparse.ArgumentParser(description="Build clipkit's embedded emoji data set.")
    parser.add_argument("--packages", type=Path, required=True, help="folder of the unpacked npm packages")
    parser.add_argument("--out", type=Path, required=True, help="the zip to write")
    arguments = parser.parse_args()
    emojibase = package(arguments.packages, "emojibase-data")
    entries: list[Json] = read(emojibase / "en/data.json")
    icons = {style: read(package(arguments.packages, f"@iconify-json/{style}") / "icons.json") for style in STYLES}
    matched = match_icons(arguments.packages, emojibase, entries, icons)
    labels = {without_selector(entry["hexcode"]): entry["label"] for entry in entries}
    drawings = draw_all(icons, matched, labels)
    concepts = describe(emojibase, entries, drawings)
    write_zip(arguments.out, concepts, drawings)
    held_out = sum(concept["held_out"] for concept in concepts)
    print(f"{len(entries)} emoji, {len(concepts)} concepts, {held_out} of them held out")
    print(", ".join(f"{style} {sum(style in concept['styles'] for concept in concepts)}" for style in STYLES))
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
