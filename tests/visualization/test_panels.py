"""From a model and a clip to what people look at: the right tokens where they belong, nothing made
up."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mats_ds import MaskedAutoencoder, TokenGrid, VideoClassifier
from mats_ds.models.vit import split_patches
from mats_ds.visualization.clip_view import look_with_decoder, look_without_decoder
from mats_ds.visualization.page import GAP, GUTTER, MARGIN, NOW, TAKEN, Page, Strip, choose_scale, draw_page, fit_text, load_font
from mats_ds.visualization.panels import UNSEEN, Panel, darken, draw_heat, draw_panels, spread

# 3 tubelets of 4 x 5 tokens, 60 tokens
GRID = TokenGrid(num_frames=6, height=16, width=40, tubelet=(2, 4, 8))
CANDIDATES = GRID.with_tau(5)
SIZES = dict(width=12, depth=2, heads=3)
DECODER = dict(decoder_width=6, decoder_heads=3, decoder_depth=1)


def make_autoencoder(**options) -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(grid=GRID, **SIZES, **DECODER, **options).eval()


def random_clip(grid=GRID) -> torch.Tensor:
    shape = (grid.num_frames, grid.height, grid.width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def token(frames_THWC: np.ndarray, number: int) -> np.ndarray:
    """The pixels of one token."""
    return split_patches(torch.from_numpy(np.ascontiguousarray(frames_THWC))[None], GRID)[0, number].numpy()


class TestClipView:
    def test_masks_motion_and_prediction_are_the_models_own(self):
        model, clip = make_autoencoder(), random_clip()
        view, seen = look_with_decoder(model, clip, seed=5), model.reconstruct(clip[None], torch.tensor([5]))
        assert np.flatnonzero(view.visible_N).tolist() == seen.selection.visible_BV[0].tolist()
        targets = np.flatnonzero(view.kept_N & ~view.visible_N)
        assert targets.tolist() == seen.selection.target_BM[0].tolist() and len(targets) == 12
        assert np.array_equal(view.motion_N, seen.motion_BN[0].numpy())
        assert view.loss == pytest.approx(float(seen.loss))
        assert np.abs(view.predicted_THWC / 255 - seen.predicted_BTHWC[0].numpy()).max() <= 0.5 / 255 + 1e-6
        for number in np.flatnonzero(view.visible_N):
            assert np.array_equal(token(view.predicted_THWC, number), token(clip.numpy(), number))

    def test_adaptive_frames_are_named_by_their_index_among_the_candidates(self):
        model, clip = make_autoencoder(candidate_grid=CANDIDATES), random_clip(CANDIDATES)
        view = look_with_decoder(model, clip, seed=1)
        assert len(view.frame_T) == 6 and (np.diff(view.frame_T) > 0).all()
        assert (view.frame_T[1::2] == view.frame_T[::2] + 1).all() and (view.frame_T[::2] % 2 == 0).all()
        assert np.array_equal(view.frames_THWC, clip.numpy()[view.frame_T])

    def test_a_classifier_sees_all_that_it_keeps_and_predicts_no_pixels(self):
        torch.manual_seed(0)
        model, clip = VideoClassifier(grid=GRID, **SIZES, num_classes=7, keep_ratio=0.4).eval(), random_clip()
        view = look_without_decoder(model, clip, seed=0)
        assert np.flatnonzero(view.kept_N).tolist() == model.encode(clip[None]).index_BK[0].tolist()
        assert np.array_equal(view.kept_N, view.visible_N) and view.predicted_THWC is None

    def test_a_strategy_that_ignores_motion_shows_it_all_the_same(self):
        clip = random_clip()
        expected = look_with_decoder(make_autoencoder(), clip, seed=0).motion_N
        assert np.allclose(look_with_decoder(make_autoencoder(strategy="random_drop"), clip, seed=0).motion_N, expected)
        assert expected.max() > 0


class TestPanels:
    def test_headings_count_and_each_panel_shows_its_tokens(self):
        view = look_with_decoder(make_autoencoder(), random_clip(), seed=0)
        original, motion, kept, visible, rebuilt = draw_panels(view)
        assert kept.name == "kept: 18 of 60 tokens" and visible.name == "visible to the encoder: 6"
        assert rebuilt.name == f"reconstruction, loss {view.loss:.3f}"
        for number in range(60):
            true = token(original.frames_THWC, number)
            assert np.array_equal(token(kept.frames_THWC, number), true) == view.kept_N[number]
            assert np.array_equal(token(visible.frames_THWC, number), true) == view.visible_N[number]
            expected = token(view.predicted_THWC, number) if view.kept_N[number] else np.tile(UNSEEN, 64)
            assert np.array_equal(token(rebuilt.frames_THWC, number), expected)

    def test_without_a_decoder_there_is_no_reconstruction(self):
        model = make_autoencoder()
        names = [panel.name.split()[0] for panel in draw_panels(look_without_decoder(model, random_clip(), seed=0))]
        assert names == ["original", "motion", "kept:", "visible"]
        classifier = VideoClassifier(grid=GRID, **SIZES, num_classes=7).eval()
        assert len(draw_panels(look_without_decoder(classifier, random_clip(), seed=0))) == 3

    def test_heat_rises_with_the_score_and_bears_what_is_not_finite(self):
        heat = draw_heat(np.linspace(0, 3, 60), GRID)
        light = [token(heat, number).sum() for number in range(60)]
        assert light[0] < 1000 and (np.diff(light) >= 0).mean() > 0.95
        assert np.array_equal(token(draw_heat(np.array([np.inf, np.nan] + [1.0] * 58), GRID), 1), token(heat, 0))
        assert draw_heat(np.zeros(60), GRID).shape == (6, 16, 40, 3)

    def test_tokens_keep_sharp_edges_where_they_are(self):
        mask_N = np.zeros(60, bool)
        mask_N[20 + 1 * 5 + 3] = True  # tubelet 1, row 1, column 3
        where = np.argwhere(spread(mask_N, GRID))
        assert where.min(axis=0).tolist() == [2, 4, 24] and where.max(axis=0).tolist() == [3, 7, 31] and len(where) == 64
        frames = np.full((6, 16, 40, 3), 200, np.uint8)
        assert sorted(np.unique(darken(frames, mask_N, GRID))) == [30, 200]


class TestPage:
    def page(self, **changes) -> Page:
        panels = [
            Panel("red", np.full((6, 16, 40, 3), (200, 0, 0), np.uint8)),
            Panel("count", np.zeros((6, 16, 40, 3), np.uint8)),
        ]
        panels[1].frames_THWC[...] = np.arange(6)[:, None, None, None] * 40
        thumbs = Strip(np.full((5, 16, 40, 3), 90, np.uint8), np.array([True, False, True, True, False]))
        values = dict(title="a", panels=panels, seconds_T=np.arange(6) / 5, tubelet_T=np.repeat([0, 2, 3], 2), strip=thumbs)
        return Page(**values | changes)

    def test_a_row_a_frame_each_panel_enlarged_without_smoothing(self):
        scale = choose_scale(16, 40)
        assert scale == 6
        picture = draw_page(self.page(), [1, 4])
        assert (picture == (200, 0, 0)).all(axis=-1).sum() == 2 * 16 * 40 * 36
        second = picture[:, MARGIN + GUTTER + 240 :]
        assert [(second == value).all(axis=-1).sum() for value in (40, 160)] == [16 * 40 * 36] * 2

    def test_the_strip_marks_what_was_taken_and_what_is_shown(self):
        def borders(picture, colour):
            return int((picture == colour).all(axis=-1).sum())

        one, several = draw_page(self.page(), [2]), draw_page(self.page(), [2, 3])
        assert borders(one, NOW) > 0 and borders(one, TAKEN) == 2 * borders(one, NOW)
        assert borders(several, NOW) == 0 and borders(several, TAKEN) == 3 * borders(one, NOW)
        without = draw_page(self.page(strip=None), [2])
        assert borders(without, TAKEN) == 0 and len(without) < len(one)

    def test_all_pages_of_a_video_have_one_size(self):
        assert len({draw_page(self.page(), [frame]).shape for frame in range(6)}) == 1

    def test_headings_are_whole_beside_a_tall_video(self):
        """Of 160 x 90 pixels they were cut off: "kept: 470 ..."."""
        frames = np.zeros((2, 160, 96, 3), np.uint8)
        names = ("motion score, 0 to 1.23e+03", "kept: 1568 of 1568 tokens", "visible to the encoder: 1568")
        page = Page("", [Panel(name, frames) for name in names], tubelet_T=np.zeros(2, int))
        column = (draw_page(page, [0]).shape[1] - 2 * MARGIN - GUTTER - 2 * GAP) // 3
        assert column > 96
        assert [fit_text(name, column) for name in names] == list(names)

    def test_a_text_that_is_too_long_ends_in_dots(self):
        short = fit_text("a video with a very long name indeed", 100)
        assert short.startswith("a video") and short.endswith("...") and load_font().getlength(short) <= 100
        assert fit_text("short", 100) == "short"

    @pytest.mark.parametrize("name", ["two\nlines", "\x1b[2J\x00\udcff", "x" * 10**6, "\u202eabc", "日本\u200d🎬", "שלום", ""])
    def test_any_name_is_one_line_of_its_width(self, name):
        shown = fit_text(name, 100)
        assert load_font().getlength(shown) <= 100 and shown.replace("\u200d", "").isprintable()
        assert draw_page(self.page(title=name, note="n"), [2]).shape == draw_page(self.page(note="n"), [2]).shape


def test_only_the_panels_that_are_wanted_are_drawn_and_a_missing_one_is_named():
    view = look_without_decoder(make_autoencoder(), random_clip(), seed=0)
    assert [panel.name.split()[0] for panel in draw_panels(view, ("kept", "original"))] == ["kept:", "original"]
    with pytest.raises(ValueError, match="reconstruction.*original, motion, kept"):
        draw_panels(view, ("original", "reconstruction"))
