"""Samples the appearance of a drawn person, and the pose and light of one view.

All features that depend on age or gender are sampled here with probabilities that differ between
the groups, so that no single feature determines the label and neighbouring groups overlap.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

Colour = tuple[float, ...]  # RGB, 0 to 255

_SKIN = (
    (255, 226, 205),
    (246, 205, 172),
    (232, 184, 140),
    (206, 150, 104),
    (168, 112, 72),
    (122, 78, 52),
    (84, 54, 40),
)
_DARK_HAIR = ((28, 24, 26), (44, 30, 24), (66, 42, 28))
_LIGHT_HAIR = ((98, 62, 36), (140, 92, 48), (214, 172, 98), (178, 84, 38), (236, 206, 140))
_GREY = (206, 206, 212)
_EYES = ((70, 44, 28), (92, 60, 34), (62, 104, 66), (70, 112, 160), (96, 118, 128))
_CLOTHES = (
    (214, 76, 70),
    (236, 150, 62),
    (240, 200, 84),
    (98, 168, 104),
    (62, 148, 158),
    (76, 112, 188),
    (134, 96, 172),
    (226, 134, 164),
    (236, 234, 226),
    (64, 70, 84),
)

# Chances per age group, in the order of `agenet.labels.AGE_GROUPS`.
_GLASSES = (0.0, 0.04, 0.10, 0.14, 0.16, 0.20, 0.45, 0.70)
_GREYNESS = (0.0, 0.0, 0.0, 0.0, 0.0, 0.2, 0.65, 1.0)
_OUTFITS = (
    {"bib": 0.8, "stripes": 0.1, "round": 0.1},
    {"stripes": 0.65, "round": 0.3, "bib": 0.05},
    {"round": 0.55, "stripes": 0.3, "hood": 0.15},
    {"hood": 0.75, "round": 0.2, "stripes": 0.05},
    {"round": 0.45, "collar": 0.25, "v": 0.25, "hood": 0.05},
    {"collar": 0.6, "v": 0.25, "round": 0.15},
    {"collar": 0.45, "v": 0.2, "cardigan": 0.25, "round": 0.1},
    {"cardigan": 0.75, "collar": 0.2, "v": 0.05},
)
_WOMEN_HAIR = (
    {"wisp": 0.75, "short": 0.1, "pigtails": 0.15},
    {"pigtails": 0.5, "bob": 0.2, "long": 0.25, "short": 0.05},
    {"pigtails": 0.2, "ponytail": 0.25, "bob": 0.15, "long": 0.35, "short": 0.05},
    {"long": 0.65, "ponytail": 0.2, "bob": 0.12, "short": 0.03},
    {"long": 0.6, "ponytail": 0.12, "bob": 0.2, "bun": 0.05, "short": 0.03},
    {"long": 0.45, "bob": 0.4, "bun": 0.1, "short": 0.05},
    {"long": 0.3, "bob": 0.5, "bun": 0.15, "short": 0.05},
    {"long": 0.1, "bob": 0.45, "bun": 0.4, "short": 0.05},
)
_MEN_HAIR = (
    {"wisp": 0.85, "short": 0.15},
    {"short": 0.6, "fringe": 0.35, "bob": 0.05},
    {"short": 0.5, "fringe": 0.35, "spiky": 0.12, "bob": 0.03},
    {"short": 0.35, "spiky": 0.3, "fringe": 0.3, "long": 0.05},
    {"short": 0.6, "spiky": 0.15, "buzz": 0.22, "long": 0.03},
    {"short": 0.75, "buzz": 0.22, "long": 0.03},
    {"short": 0.8, "buzz": 0.2},
    {"short": 0.9, "buzz": 0.1},
)
_YAWS = {-45: 0.01, -30: 0.05, -15: 0.14, 0: 0.6, 15: 0.14, 30: 0.05, 45: 0.01}
_BEARDS = {"none": 0.3, "stubble": 0.15, "full": 0.27, "moustache": 0.15, "goatee": 0.13}
_WOMEN_HEADWEAR = (
    {"none": 0.3, "band": 0.5, "bow": 0.2},
    {"none": 0.4, "band": 0.2, "bow": 0.4},
    {"none": 0.5, "band": 0.2, "bow": 0.25, "scarf": 0.05},
    {"none": 0.8, "band": 0.1, "scarf": 0.1},
    *({"none": 0.9, "scarf": 0.1},) * 4,
)
_MEN_HEADWEAR = (
    {"none": 1.0},
    *({"none": 0.75, "cap": 0.25},) * 4,
    *({"none": 0.92, "cap": 0.08},) * 3,
)


@dataclass(frozen=True)
class Person:
    """The appearance of a person, the same in all views. Lengths are in head units (see draw)."""

    age_group: int
    gender: int
    stage: float  # apparent age on the scale of the group indices
    skin: Colour
    hair: Colour
    grey: float  # share of white hair, 0 to 1
    eyes: Colour
    clothes: Colour
    hairstyle: str
    curly: bool
    parting: float  # side of the parting, -1 to 1
    receding: float  # 0: full hairline, 1: bald on top
    beard: str
    outfit: str
    glasses: bool
    earrings: bool
    lashes: bool
    lipstick: bool
    headwear: str
    freckles: bool
    dummy: bool  # a baby's pacifier
    gap: bool  # a missing milk tooth
    traits: tuple[float, ...]  # width, jaw, eye size, eye distance, nose, mouth: about N(0, 1)


@dataclass(frozen=True)
class View:
    """The pose, expression, light and quality of one image of a person."""

    tilt: float  # degrees
    yaw: float  # degrees, a multiple of 15
    pitch: float  # -1 to 1
    scale: float
    shift: tuple[float, float]
    smile: float  # 0 to 1; above 0.6 the mouth is open
    gaze: float
    light: tuple[float, float]  # change of brightness towards the right and the lower border
    exposure: float
    cast: Colour  # factors per channel
    background: tuple[Colour, Colour]
    blur: float  # standard deviation, in pixels of a 128-pixel image
    noise: float  # standard deviation in grey levels
    seed: int


def create_person(age_group: int, gender: int, rng: Generator) -> Person:
    """Samples the appearance of a person of `AGE_GROUPS[age_group]` and `GENDERS[gender]`."""

    def chance(p: float) -> bool:
        return bool(rng.random() < p)

    def pick(odds: dict[str, float]) -> str:
        return str(rng.choice(list(odds), p=list(odds.values())))

    man = gender == 1
    # One person in thirty looks closer to a neighbouring group: no network can get all ages right,
    # and errors by one group are the most likely.
    stage = float(np.clip(age_group + np.clip(rng.normal(0, 0.23), -0.7, 0.7), -0.3, 7.5))
    tone = rng.random()
    dark = chance(0.35 + 0.9 * tone)
    palette = _DARK_HAIR if dark else _LIGHT_HAIR
    hair = _jitter(palette[rng.integers(len(palette))], 8, rng)
    grey = float(np.clip(np.interp(stage, range(8), _GREYNESS) * rng.normal(1, 0.18), 0, 1))
    if not man and 4 < stage < 7 and chance(0.2):
        grey *= 0.35  # dyed
    receding = 0.0
    if man and stage > 4.2 and chance(0.75):
        receding = float(np.clip(rng.uniform(0.1, 0.5) * (stage - 3.8), 0, 1))
    return Person(
        age_group=age_group,
        gender=gender,
        stage=stage,
        skin=_ramp(_SKIN, tone),
        hair=hair,
        grey=grey,
        eyes=_EYES[rng.integers(2 if dark and tone > 0.4 else len(_EYES))],
        clothes=_jitter(_CLOTHES[rng.integers(len(_CLOTHES))], 12, rng),
        hairstyle=pick((_MEN_HAIR if man else _WOMEN_HAIR)[age_group]),
        curly=chance(0.2 + 0.3 * tone),
        parting=float(rng.uniform(-1, 1)),
        receding=receding,
        beard=pick(_BEARDS) if man and stage > 3.55 else "none",
        outfit=pick(_OUTFITS[age_group]),
        glasses=chance(float(np.interp(stage, range(8), _GLASSES))),
        earrings=chance(0.55 if stage > 2.5 else 0.2) if not man else chance(0.03),
        lashes=not man and chance(0.9),
        lipstick=not man and stage > 2.6 and chance(0.7),
        headwear=pick((_MEN_HEADWEAR if man else _WOMEN_HEADWEAR)[age_group]),
        freckles=chance(0.4 if 0.8 < stage < 3.6 else 0.05),
        dummy=age_group == 0 and chance(0.35),
        gap=age_group in (1, 2) and chance(0.4),
        traits=tuple(rng.normal(0, 1, 6).clip(-2, 2).tolist()),
    )


def create_view(rng: Generator) -> View:
    """Samples pose, light, background and image quality."""
    # Mostly soft colours: a grey between dark and light, tinted.
    base = rng.uniform(80, 225) + rng.uniform(-45, 45, 3)
    return View(
        tilt=float(rng.normal(0, 5)),
        yaw=float(rng.choice(list(_YAWS), p=list(_YAWS.values()))),
        pitch=float(rng.uniform(-1, 1)),
        scale=float(rng.uniform(0.9, 1.08)),
        shift=(float(rng.normal(0, 0.05)), float(rng.normal(0, 0.05))),
        smile=float(rng.random()),
        gaze=float(rng.uniform(-1, 1)),
        light=(float(rng.uniform(-0.22, 0.22)), float(rng.uniform(-0.18, 0.12))),
        exposure=float(rng.uniform(0.85, 1.1)),
        cast=tuple(rng.uniform(0.94, 1.06, 3).tolist()),
        background=(tuple(base.tolist()), tuple((base + rng.uniform(-35, 35, 3)).tolist())),
        blur=float(max(0, rng.normal(0.15, 0.35))),
        noise=float(rng.uniform(0, 5)),
        seed=int(rng.integers(2**31)),
    )


def _jitter(colour: Colour, amount: float, rng: Generator) -> Colour:
    return tuple(np.clip(np.add(colour, rng.normal(0, amount, 3)), 0, 255).tolist())


def _ramp(colours: tuple[Colour, ...], position: float) -> Colour:
    """Colour at `position` (0 to 1) of a ramp."""
    at = np.linspace(0, 1, len(colours))
    return tuple(float(np.interp(position, at, c)) for c in zip(*colours, strict=True))
