"""Pictures of a topology: SVG or PNG through matplotlib, and a sketch for a terminal."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from p2pfed.topology.topology import Topology

if TYPE_CHECKING:
    import networkx as nx

SKETCH_COLUMNS = 72
SKETCH_ROWS = 24
SKETCH_PEERS = 24  # more do not fit on a terminal; they are listed instead
BRAILLE_BASE = 0x2800
# Bit of each dot of a braille cell, by row and column (Unicode chart U+2800).
BRAILLE_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def draw(topology: Topology, path: Path, form: Literal["svg", "png"]) -> None:
    """Write a picture of the first round's graph, sites on a circle in the file's order."""
    import matplotlib as mpl  # noqa: PLC0415 - costs half a second

    mpl.use("Agg")
    import networkx as nx  # noqa: PLC0415
    from matplotlib import pyplot  # noqa: PLC0415

    graph = topology.graph()
    side = max(5.0, 0.45 * len(topology.names) ** 0.5 * 4)
    figure, axes = pyplot.subplots(figsize=(side, side))
    nx.draw_networkx(
        graph,
        pos=nx.circular_layout(graph),
        ax=axes,
        node_color="#2f6f9f",
        edge_color="#8a8f98",
        font_color="black",
        node_size=350,
        verticalalignment="bottom",
    )
    axes.set_title(f"{topology.file.federation.name}: {topology.file.graph.kind}")
    axes.margins(0.2)
    axes.axis("off")
    # No date in the file: the same topology gives the same bytes.
    figure.savefig(path, format=form, metadata={"Date": None} if form == "svg" else {})
    pyplot.close(figure)


def sketch(topology: Topology) -> str:
    """The graph in text: a drawing for a few sites, and every site's neighbours."""
    graph = topology.graph()
    parts = []
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
    """Edges as braille dots, two by four to a character, with the names over them."""
    label_room = max(map(len, names)) + 1
    columns, rows = SKETCH_COLUMNS - 2 * label_room, SKETCH_ROWS
    places = {
        name: (
            label_room + (columns - 1) * (0.5 + 0.5 * math.sin(2 * math.pi * i / len(names))),
            (rows - 1) * (0.5 - 0.5 * math.cos(2 * math.pi * i / len(names))),
        )
        for i, name in enumerate(names)
    }
    cells = [[0] * SKETCH_COLUMNS for _ in range(rows)]
    for a, b in graph.edges:
        (x0, y0), (x1, y1) = places[a], places[b]
        steps = int(max(abs(x1 - x0) * 2, abs(y1 - y0) * 4)) + 1
        for step in range(steps + 1):
            x = 2 * (x0 + (x1 - x0) * step / steps)
            y = 4 * (y0 + (y1 - y0) * step / steps)
            column, row = int(x) // 2, int(y) // 4
            cells[row][column] |= BRAILLE_BITS[int(y) % 4][int(x) % 2]
    lines = [[chr(BRAILLE_BASE + cell) if cell else " " for cell in row] for row in cells]
    for name, (x, y) in places.items():
        start = int(x) - (len(name) - 1 if x < SKETCH_COLUMNS / 2 else 0)
        start = min(max(0, start), SKETCH_COLUMNS - len(name))
        lines[int(y)][start : start + len(name)] = list(name)
    return "\n".join("".join(line).rstrip() for line in lines)
