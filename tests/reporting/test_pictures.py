"""Pictures of weights: spectra, filters, colours."""

import base64
import io
import re

import pytest
from markupsafe import Markup
from PIL import Image

from cnncompress.reporting import Report
from cnncompress.reporting.filters import filters_section, mosaic, scatter
from cnncompress.reporting.page import breakable
from cnncompress.reporting.pictures import Filters, Pictures, Spectrum
from cnncompress.reporting.report_page import report_page
from cnncompress.reporting.spectra import HEIGHT, WIDTH, spectrum_chart
from tests.reporting.pages import look_at

EVIL = "<script>alert(1)</script>"
RED, DARK, NONE = [[[1.0]], [[0.0]], [[0.0]]], [[[-1.0]], [[-1.0]], [[-1.0]]], [[[0.0]], [[0.0]], [[0.0]]]


def pixels(drawn):
    """The picture that an element holds."""
    data = re.search(r"base64,([^\"]*)", str(drawn.wide))[1]
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")


def test_a_mosaic_has_grey_for_zero_and_nothing_between_filters():
    found = pixels(mosaic([RED, DARK, NONE], [1.0, 1.0, 1.0], "Filters"))
    row = [found.getpixel((x, 0)) for x in range(found.width)]
    assert row == [(255, 128, 128, 255), (0, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 0), (128, 128, 128, 255)]


def test_a_filter_is_scaled_as_its_original_and_cut_where_it_is_larger():
    found = pixels(mosaic([RED, RED], [2.0, 0.5], "Filters"))
    assert found.getpixel((0, 0)) == (191, 128, 128, 255)  # 0.5 + 1/4 of 255
    assert found.getpixel((2, 0)) == (255, 128, 128, 255)


def test_one_channel_is_grey_and_what_is_no_number_too():
    found = pixels(mosaic([[[[1.0, float("nan")]]]], [1.0], "Filters"))
    assert [found.getpixel((x, 0))[:3] for x in (0, 1)] == [(255, 255, 255), (128, 128, 128)]


def test_colours_lie_where_their_parts_lead():
    drawn = str(scatter([RED, NONE], 1.0, 0.5, "Colours").wide)
    paths = re.findall(r'class="dots"[^>]* d="M(-?[0-9]+) (-?[0-9]+)h0"', drawn)
    assert paths == [("48", "209"), ("150", "150")]  # red is at 118 pixels from the middle, 30 degrees below the left
    assert "holds 50 %" in drawn


def test_a_spectrum_is_filled_up_to_its_rank():
    values = tuple((i, 1 / i) for i in range(1, 6))
    drawn = spectrum_chart(Spectrum("conv", "channel-svd", "3", values, 5, 3, 0.9))
    middle = f"{WIDTH / 2:.1f}"
    assert f'class="joined c1" d="M{middle} ' in drawn.wide
    assert drawn.wide.count(f"L{middle} {HEIGHT - 4}") == 1
    assert drawn.caption == "conv: channel-svd, rank 3 of 5, 90.0 % of the energy"


def test_a_method_without_a_matrix_has_no_rank_in_its_spectrum():
    drawn = spectrum_chart(Spectrum("conv", "cp", "3", ((1, 1.0), (2, 0.5)), 2))
    assert "area" not in drawn.wide
    assert drawn.caption == "conv: cp, rank 3"


@pytest.mark.parametrize("name", ["features.0", EVIL, 'a" onload="alert(1)'])
def test_a_page_with_pictures_is_whole_whatever_layers_are_called(name):
    shown = Pictures((Spectrum(name, name, name, ((1, 1.0),), 1, 1, 1.0),), Filters(name, [RED], [DARK], (1.0, 1.0)))
    page = report_page(Report(), (), {name: shown, "other": Pictures(missing=f"{name} is missing")})
    assert look_at(page).wrong == []
    assert EVIL not in page
    assert len(look_at(page).named("img")) == 2
    assert f"other: {name} is missing" in " ".join(look_at(page).text)


def test_filters_that_stay_or_have_no_kernel_are_shown_once():
    for now, words in ((None, "no kernel of their size"), ([RED], "stayed as they were")):
        (section,) = filters_section(Pictures((), Filters("conv", [RED], now)))
        assert words in section.text
        assert len(section.small) == 1
    assert filters_section(Pictures()) == []


def test_long_names_of_rows_break_after_dots_and_stay_escaped():
    assert breakable("layer1.0.conv") == "layer1.0.<wbr>conv"
    assert breakable("macs=0.5 a.b") == "macs=0.5 a.<wbr>b"
    assert breakable("<b>a.c") == "&lt;b&gt;a.<wbr>c"
    assert breakable(Markup("<b>1.5</b>")) == "<b>1.5</b>"
