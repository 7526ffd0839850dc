"""`forecache reproduce` on tables: the list, a bundled model, and a pipeline judged by Inception."""

import json

import numpy as np
import torch
from PIL import Image
from support.reproductions import TABLES

from forecache.reproduce.figures import FIGURES


def test_the_command_lists_the_tables(forecache):
    code, out, err = forecache("reproduce")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == [*TABLES, *FIGURES]
    assert "arXiv 2503.05156, table 3" in out
    code, _, err = forecache("reproduce", "--on", "digits")
    assert (code, "need the name of a table" in err) == (1, True)
    code, _, err = forecache("reproduce", "nothing")
    assert (code, "There is no table 'nothing'; there are eoc" in err) == (1, True)


def test_the_command_on_digits(forecache, tmp_path):
    words = ["reproduce", "goc-table-3", "--on", "digits", "--samples", 10, "--batch", 10, "--bootstrap", 20]
    words += ["--row", "fora-50", "--out", tmp_path, "--device", "cpu"]
    code, out, err = forecache(*words)
    assert (code, err) == (0, "")
    assert "| FORA 50 % | 1.9" in out
    assert "| published | 2.0000x | 5.934 |  | 6.857 | 8.757 | 190.046 | 0.739 | 0.524 |" in out
    assert "Not measured yet: FORA 50 % + GOC, eta 1.2" in out
    with Image.open(tmp_path / "quality.png") as picture:
        assert min(picture.size) > 300
    code, out, err = forecache(*words, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["command"].startswith("forecache reproduce goc-table-3 --on digits")
    row = document["rows"][1]
    assert {"accuracy", "psnr", "fid"} <= set(row["figures"])
    assert len(row["figures"]["fid"]["interval"]) == 2
    assert "draws" not in row["figures"]["fid"]
    assert row["sampling_seconds"] > 0
    assert row["environment"]["torch"] == torch.__version__
    code, _, err = forecache(*words, "--seed", 4)
    assert (code, "seed 0, not 4" in err) == (1, True)


def test_the_command_on_a_pipeline_judged_by_inception(forecache, pipe_folder, inception_file, tmp_path):
    """Inception's own code, with random weights in the published file's format."""
    np.savez(tmp_path / "real.npz", np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8))
    words = ["reproduce", "goc-table-1", "--on", pipe_folder, "--row", "FORA 50 %", "--samples", 4, "--batch", 4]
    words += ["--reference", tmp_path / "real.npz", "--weights", inception_file, "--metrics", "prc"]
    words += ["--bootstrap", 0, "--out", tmp_path / "out", "--device", "cpu"]
    code, _, err = forecache(*words)
    assert (code, err) == (0, "")
    document = json.loads((tmp_path / "out/result.json").read_text())
    assert set(document["rows"][1]["figures"]) == {"precision", "recall", "psnr"}
    assert "inception" in document["extractor"].lower()
