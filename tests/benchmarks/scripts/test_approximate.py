"""Tests of the table of approximations: every setting has a row, and the first is the base of the speed."""

from calotype.benchmarks.scripts.approximate import SETTINGS, ApproximationRow, measure, table


def test_every_setting_has_speed_and_quality():
    assert SETTINGS[0] == {}
    exact, *others = measure(["demo"], images=1, steps=4, settings=SETTINGS[:2])
    assert exact.psnr_db[0] > 50, "an exact setting"
    assert [row.setting for row in others] == ["`cache_interval=2`"]
    assert others[0].psnr_db[0] < exact.psnr_db[0]
    assert others[0].ssim[0] < exact.ssim[0]


def test_the_table_has_ratios_and_the_worst_image():
    exact = ApproximationRow(plan="p", setting="none", seconds=[2.0] * 6, psnr_db=[50.0] * 6, ssim=[1.0] * 6)
    half = ApproximationRow(
        plan="p", setting="`x=2`", seconds=[1.0] * 6, psnr_db=[30.0] * 5 + [20.0], ssim=[0.9] * 5 + [0.5]
    )
    *_, last = table([exact, half]).splitlines()
    assert last == "| p | `x=2` | 1.000 | 2.00 (2.00–2.00) | 20.0 | 30.0 | 0.500 |"
