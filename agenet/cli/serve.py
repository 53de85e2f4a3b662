"""`agenet serve`: the predictor over HTTP."""

import re
from pathlib import Path

import click

from agenet.cli import options
from agenet.errors import EXTRAS, UserError, native_messages_hidden, require_packages

EPILOG = """\
\b
curl -F image=@photo.jpg http://127.0.0.1:8000/v1/predict
curl --data-binary @photo.jpg -H "Content-Type: image/jpeg" \\
  "http://127.0.0.1:8000/v1/predict?age_groups=0-17,18-100"

The address is printed on stdout once the server answers, log lines as JSON on stderr. Images are
held in memory until they are answered; nothing of them is kept or logged.

Without --host only programs on this machine reach the server. With one that others reach, clients
need a token, which they send as "Authorization: Bearer TOKEN", in the clear: put a proxy with TLS
in front. The token comes from --token-file or the environment variable AGENET_TOKEN.

SIGTERM and Ctrl-C stop the server once it has answered what it accepted, within --timeout.
"""

_NAMED = re.compile(r"([\w.-]+)=(.+)")


@click.command(epilog=EPILOG)
@click.option(
    "--model",
    "models",
    metavar="[NAME=]WEIGHTS",
    multiple=True,
    help='Weights as for agenet predict, under a name (default: "default"); may be repeated. '
    "Requests choose with ?model=NAME.",
)
@options.engine
@options.selection
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--token-file", type=options.PATH, metavar="FILE", help="Clients need this token.")
@click.option("--insecure-public", is_flag=True, help="Let everyone who reaches --host use it.")
@click.option(
    "--allow-host",
    metavar="NAME",
    multiple=True,
    help="A name by which the server is asked, as behind a proxy; may be repeated.",
)
@click.option(
    "--allow-origin",
    metavar="https://NAME",
    multiple=True,
    help="Pages of this origin may use the server from a browser; may be repeated.",
)
@click.option(
    "--allow-urls", is_flag=True, help="Fetch images by their addresses, from the internet only."
)
@click.option(
    "--max-body",
    type=click.IntRange(min=1),
    metavar="MB",
    default=32,
    show_default=True,
    help="Size of a request.",
)
@click.option(
    "--max-images",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    metavar="N",
    help="Images in a request.",
)
@click.option(
    "--max-pixels",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MILLIONS",
    default=50,
    show_default=True,
    help="Size of an image.",
)
@click.option(
    "--queue",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="Images that may wait; more are refused with status 429.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    metavar="N",
    help="Connections at a time.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1, max=3600),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="For a request to arrive, and again for its answer.",
)
@click.option(
    "--batch-wait",
    type=click.FloatRange(min=0, max=1000),
    default=2,
    show_default=True,
    metavar="MS",
    help="How long a face waits for others to be predicted with.",
)
def command(
    models: tuple[str, ...],
    detector: str,
    engine: str,
    threads: int | None,
    min_score: float,
    min_size: float,
    max_faces: int | None,
    host: str,
    port: int,
    token_file: Path | None,
    insecure_public: bool,
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    allow_urls: bool,
    max_body: int,
    max_images: int,
    max_pixels: float,
    queue: int,
    max_connections: int,
    timeout: float,
    batch_wait: float,
) -> None:
    """Predict age and gender over HTTP."""
    named = _name_models(models)
    require_packages("serve", "agenet serve", *EXTRAS["serve"])
    from agenet.distributed.cores import available_cores
    from agenet.faces.selection import FaceSelection
    from agenet.inference.engines import create_engine
    from agenet.places.weights import find_weights
    from agenet.server import access, run
    from agenet.server.app import create_app
    from agenet.server.decoders import Decoders
    from agenet.server.fetch import Fetcher
    from agenet.server.limits import MEGABYTE, Limits
    from agenet.server.logs import log_json
    from agenet.server.metrics import Metrics
    from agenet.server.service import Service

    token = access.read_token(token_file)
    bound = run.bind(host, port)
    if not (run.is_private(bound) or token or insecure_public):
        raise UserError(
            f"--host {host}: others reach it: add --token-file FILE, or --insecure-public to let "
            "everyone in"
        )
    hosts = (*access.LOOPBACK_NAMES, *allow_host) if run.is_private(bound) else allow_host
    limits = Limits(
        body=max_body * MEGABYTE,
        images=max_images,
        pixels=round(max_pixels * MEGABYTE),
        queue=queue,
        seconds=timeout,
        body_seconds=timeout,
        head_seconds=min(Limits.head_seconds, timeout),
        connections=max_connections,
        batch_seconds=batch_wait / 1000,
    )
    with native_messages_hidden():
        log_json()
        engines = {
            name: create_engine(find_weights(weights), engine, threads)
            for name, weights in named.items()
        }
        metrics = Metrics()
        decoders = Decoders(threads or available_cores(), detector, metrics.restarts.inc)
        select = FaceSelection(min_score, min_size, max_faces)
        fetcher = Fetcher(limits.body) if allow_urls else None
        service = Service(engines, decoders, limits, select, metrics, fetcher)
        app = create_app(service, access.Access(token, hosts, allow_origin))
        run.serve(app, bound, limits, list(engines))


def _name_models(models: tuple[str, ...]) -> dict[str, str]:
    """Weights by the names under which requests choose them."""
    named: dict[str, str] = {}
    for given in models or ("default",):
        found = _NAMED.fullmatch(given)
        name, weights = found.groups() if found else ("default", given)
        if name in named:
            raise UserError(f"--model {given}: {name} is named twice: write NAME=WEIGHTS")
        named[name] = weights
    return named
