"""Pictures of a topology: SVG or PNG through matplotlib, and a sketch for a terminal."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from p2pfed.topology.topology import Topology

if TYPE_CHECKING:
    import networkx as nx

SKETCH_COLUMNS = 78
SKETCH_ROWS = 23
SKETCH_PEERS = 16  # a circle of more is a blot; they are listed instead
SKETCH_LABEL_CHARACTERS = 20  # a longer name is cut in the drawing
NODE_MARK = "●"
INCHES_PER_ROOT_PEER = 1.8
SMALLEST_PICTURE_INCHES = 5.0
LABEL_DISTANCE = 1.12  # of a circle of radius 1
BRAILLE_BASE = 0x2800
# Bit of each dot of a braille cell, by row and column (Unicode chart U+2800).
BRAILLE_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def draw(topology: Topology, path: Path, form: Literal["svg", "png"]) -> None:
    """Write a picture of the first round's graph, sites on a circle in the file's order.

    The same topology gives the same bytes.

    :raises OSError: ``path`` cannot be written.
    """
    import matplotlib as mpl  # noqa: PLC0415 - costs half a second
    import networkx as nx  # noqa: PLC0415
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    graph = topology.graph()
    places = nx.circular_layout(graph)
    side = max(SMALLEST_PICTURE_INCHES, INCHES_PER_ROOT_PEER * math.sqrt(len(graph)))
    figure = Figure(figsize=(side, side))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    nx.draw_networkx_edges(graph, places, ax=axes, edge_color="#8a8f98")
    nx.draw_networkx_nodes(graph, places, ax=axes, node_color="#2f6f9f", node_size=220)
    for name, (x, y) in places.items():
        axes.text(
            x * LABEL_DISTANCE,
            y * LABEL_DISTANCE,
            name,
            ha="center" if abs(x) < 0.2 else "left" if x > 0 else "right",
            va="center" if abs(y) < 0.9 else "bottom" if y > 0 else "top",
        )
    axes.set_title(f"{topology.file.federation.name}: {_round_name(topology)}", pad=24)
    axes.set_aspect("equal")
    axes.axis("off")
    with mpl.rc_context({"svg.hashsalt": topology.digest.hex()}):
        figure.savefig(
            path,
            format=form,
            bbox_inches="tight",
            metadata={"Date": None} if form == "svg" else None,
        )


def _round_name(topology: Topology) -> str:
    kind = topology.file.graph.kind
    return f"{kind}, round 0" if topology.time_varying else kind


def sketch(topology: Topology) -> str:
    """The first round's graph in text: a drawing for a few sites, and every site's
    neighbours."""
    graph = topology.graph()
    parts = [f"{topology.file.federation.name}: {_round_name(topology)}"]
    if len(topology.names) <= SKETCH_PEERS:
        parts.append(_braille(graph, topology.names))
    width = max(map(len, topology.names))
    parts.append(
        "\n".join(
            f"{name:<{width}}  {', '.join(topology.neighbours(name))}" for name in topology.names
        )
    )
    return "\n\n".join(parts)


def _braille(graph: "nx.Graph", names: tuple[str, ...]) -> str:
    """Edges as braille dots, two by four to a character, with the names around them."""
    labels = {name: _shortened(name) for name in names}
    margin = max(map(len, labels.values())) + 2
    columns = SKETCH_COLUMNS - 2 * margin
    places: dict[str, tuple[int, int]] = {}
    for index, name in enumerate(names):
        angle = 2 * math.pi * index / len(names)
        places[name] = (
            margin + round((columns - 1) * (0.5 + 0.5 * math.sin(angle))),
            round((SKETCH_ROWS - 1) * (0.5 - 0.5 * math.cos(angle))),
        )
    cells = [[0] * SKETCH_COLUMNS for _ in range(SKETCH_ROWS)]
    for a, b in graph.edges:
        _line(cells, places[a], places[b])
    rows = [[chr(BRAILLE_BASE + cell) if cell else " " for cell in row] for row in cells]
    for name, (column, row) in places.items():
        rows[row][column] = NODE_MARK
        right = 2 * column >= SKETCH_COLUMNS - 1
        label = f" {labels[name]}" if right else f"{labels[name]} "
        start = column + 1 if right else column - len(label)
        rows[row][start : start + len(label)] = list(label)
    return "\n".join("".join(row).rstrip() for row in rows).rstrip("\n")


def _shortened(name: str) -> str:
    if len(name) <= SKETCH_LABEL_CHARACTERS:
        return name
    return name[: SKETCH_LABEL_CHARACTERS - 1] + "…"


def _line(cells: list[list[int]], start: tuple[int, int], end: tuple[int, int]) -> None:
    """Set the dots between the middles of two cells."""
    (x0, y0), (x1, y1) = ((2 * column, 4 * row + 2) for column, row in (start, end))
    steps = max(abs(x1 - x0), abs(y1 - y0))
    for step in range(steps + 1):
        x, y = x0 + (x1 - x0) * step // steps, y0 + (y1 - y0) * step // steps
        cells[y // 4][x // 2] |= BRAILLE_BITS[y % 4][x % 2]
