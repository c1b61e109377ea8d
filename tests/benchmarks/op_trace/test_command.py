"""The command line of op_trace."""

import json

import pytest

from calotype.benchmarks.op_trace.__main__ import main


def test_it_prints_a_table_and_writes_every_kernel(tmp_path, capsys):
    assert main(["taesd", "--details", "--json", str(tmp_path / "ops.json")]) == 0
    output = capsys.readouterr().out
    assert output.startswith("| Network |")
    assert "cudnn_convolution_add_relu" in output
    ops = json.loads((tmp_path / "ops.json").read_text())["taesd"]
    assert {"kind", "name", "flops", "bytes", "shape", "layer"} == set(ops[0])
    assert f"| {len(ops)} |" in output


def test_an_unknown_network_is_an_error(capsys):
    with pytest.raises(SystemExit):
        main(["sd16"])
    assert "sd15" in capsys.readouterr().err
