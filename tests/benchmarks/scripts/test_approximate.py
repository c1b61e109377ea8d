"""The table of approximations: every setting has its row, and the first is what the others are held against."""

from calotype.benchmarks.scripts.approximate import SETTINGS, Row, measure, table


def test_every_setting_is_painted_and_judged():
    assert SETTINGS[0] == {}
    exact, *others = measure(["demo"], pictures=1, steps=4, settings=SETTINGS[:2])
    assert exact.psnr_db[0] > 50, "nothing was approximated"
    assert [row.setting for row in others] == ["`cache_interval=2`"]
    assert others[0].psnr_db[0] < exact.psnr_db[0]
    assert others[0].ssim[0] < exact.ssim[0]


def test_the_table_has_ratios_picture_by_picture_and_the_worst_of_them():
    exact = Row(plan="p", setting="as it is", seconds=[2.0] * 6, psnr_db=[50.0] * 6, ssim=[1.0] * 6)
    half = Row(plan="p", setting="`x=2`", seconds=[1.0] * 6, psnr_db=[30.0] * 5 + [20.0], ssim=[0.9] * 5 + [0.5])
    *_, last = table([exact, half]).splitlines()
    assert last == "| p | `x=2` | 1.000 | 2.00 (2.00–2.00) | 20.0 | 30.0 | 0.500 |"
