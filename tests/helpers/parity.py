"""The figures of the parity tests: PSNR of our images to those of diffusers, and the page that lists them."""

from calotype.export.quality.metrics import psnr

MIN_DB = {"eager": 60, "onnxruntime": 50, "openvino": 50}


def half_of(cases):
    """Return half of the product of any list, a pair and a pair, in which every two values still meet."""
    return [case for number, case in enumerate(cases) if number % 4 in ((0, 3) if number // 4 % 2 else (1, 2))]


class Figures:
    """PSNR of our images to those of diffusers: each must reach the minimum, and goes into the table."""

    def __init__(self):
        self.lowest = {}  # (model, task, scheduler) -> backend -> the lowest dB

    def hold(self, cell, backend, got, expected, peak=1.0):
        figure = psnr(got, expected, peak)
        row = self.lowest.setdefault(cell, {})
        row[backend] = min(figure, row.get(backend, figure))
        assert figure >= MIN_DB[backend], (cell, backend)

    def table(self) -> str:
        schedulers = list(dict.fromkeys(scheduler for _, _, scheduler in self.lowest))
        lines = [f"| model | task | {' | '.join(schedulers)} |", "| --- " * (2 + len(schedulers)) + "|"]
        for model, task in dict.fromkeys(cell[:2] for cell in self.lowest):
            cells = [self._cell(self.lowest.get((model, task, s), {})) for s in schedulers]
            lines.append(f"| {model} | {task} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    @staticmethod
    def _cell(figures) -> str:
        return " / ".join(f"{figures[b]:.0f}" if b in figures else "-" for b in MIN_DB) if figures else ""


PARITY = """# Parity with diffusers

Peak signal-to-noise ratio (PSNR), in dB, of our images to those of diffusers 0.42 with the same weights and seeds, in
float32. The three numbers are the backends `eager`, `onnxruntime` and `openvino`: the lowest value that the tests saw.
The tests require 60, 50 and 50 dB. An empty cell was not compared. All models except the demonstration model are tiny
and have random weights.

`pytest --parity docs/parity.md` compares every cell and writes this page; name test files to run a part. Without
`--parity`, the tests compare fewer cells, in which every two of model, task and scheduler meet.

[Pipeline classes](classes.md) lists the folders of diffusers' pipelines that open.

{table}"""
