"""Small files as commands write them."""

import json

from forecache.evaluate import Estimate
from forecache.fit import search_file as search_file_io


def search_file(path):
    settings = search_file_io.Settings(
        "SmallDiT", "f", "s", "float32", 9, 3, 1, 4, True, "fora", "psnr", "higher", 1.5, 7, 4, (0, 1, 2)
    )
    found = [
        search_file_io.Candidate("#...#..#.", 31.25, 2.9),
        search_file_io.Candidate("#..#..#..", 30.0, None),
    ]
    search_file_io.write(path, settings, found)


def figures_file(path):
    figure = Estimate("psnr", 31.5, 8, (31.0, 32.0), 3)
    path.write_text(json.dumps({"figures": {"psnr": figure.document()}, "sampling_seeds": [7], "samples": "out"}))
