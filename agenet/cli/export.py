"""`agenet export`: writes a trained network as a file for other runtimes."""

from pathlib import Path

import click

from agenet.cli import options
from agenet.errors import UserError
from agenet.files import check_output

EPILOG = """\
MODEL is "default", a file of weights of agenet, the folder of a run, or the
address of one.

FACES is a folder of images of one face each, cropped as for training, or a prepared data set such
as fairface/partial, of which at most 2,000 test faces are taken. Without --check the answers are
compared on drawn faces. Which images to feed to the file, and how to read its outputs, is written
in it: its description, and the metadata input, crop and labels.

\b
onnx       one file for ONNX Runtime, OpenVINO, TensorRT and others; --half
           stores weights in 16 bits and still computes in single precision
stablehlo  for JAX on CPU, CUDA and TPU, and for compilers of StableHLO
int8       ONNX that computes in 8-bit integers, for CPUs. It needs --check,
           and is written only if at most 0.5 points of accuracy are lost;
           in a folder, without labels, the loss is estimated by the
           network's own probabilities
"""


@click.command(epilog=EPILOG)
@click.argument("model", type=click.Path())
@click.argument("output", type=options.PATH)
@click.option(
    "--format",
    type=click.Choice(["onnx", "stablehlo", "int8"]),
    default="onnx",
    show_default=True,
    help="See below.",
)
@click.option("--check", default="", metavar="FACES", type=click.Path(), help="See below.")
@click.option("--data_dir", default="", metavar="DIR", help="Folder of the prepared data sets.")
@click.option("--half", is_flag=True, help="Store weights in 16 bits (onnx).")
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
def command(
    model: str,
    output: Path,
    format: str,
    check: str,
    data_dir: str,
    half: bool,
    overwrite: bool,
) -> None:
    """Write a trained network as ONNX, 8-bit ONNX or StableHLO.

    The file is written only if its answers are those of the network.
    """
    check_output(output, overwrite)
    if half and format != "onnx":
        raise UserError("--half goes with --format=onnx")
    if format == "int8" and not check:
        raise UserError(
            "--format=int8 needs --check=FACES, a folder or a prepared data set: drawn faces would "
            "not show whether accuracy holds"
        )
    from agenet.inference.export import export_network

    export_network(model, output, format, half=half, check=check, data_dir=data_dir)
