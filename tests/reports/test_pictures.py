import numpy as np
import pytest
from matplotlib import colors
from PIL import Image

from unigame.errors import UserError
from unigame.reports import style
from unigame.reports.curves import PANELS, save_curves
from unigame.reports.gallery import enlarge, save_gallery


def row(**changes):
    picture = np.full((8, 8, 3), 0.2)
    entry = {
        "clean": picture,
        "drawn": picture,
        "adversarial": picture,
        "question": "how many objects ?",
        "answer": "2",
        "said_clean": "2",
        "said_drawn": "2",
        "said_adversarial": "2",
    }
    return {**entry, **changes}


def pixels_of(path, colour):
    """How many pixels have exactly this colour."""
    wanted = np.round(np.array(colors.to_rgb(colour)) * 255).astype(np.uint8)
    return int((np.asarray(Image.open(path).convert("RGB")) == wanted).all(-1).sum())


def test_gallery_frames_say_right_and_wrong(tmp_path):
    right = save_gallery([row(said_clean=" 2 ")], tmp_path / "right.png")
    assert pixels_of(right, style.RIGHT) > 0
    assert pixels_of(right, style.WRONG) == 0
    wrong = save_gallery([row(said_adversarial="3")], tmp_path / "sub" / "wrong.png")
    assert pixels_of(wrong, style.WRONG) > 0
    assert pixels_of(wrong, style.RIGHT) > pixels_of(wrong, style.WRONG)


def test_gallery_shows_the_pictures_themselves_unsmoothed(tmp_path):
    picture = np.zeros((4, 4, 3))
    picture[::2, ::2] = (1.0, 0.0, 1.0)
    path = save_gallery([row(adversarial=picture)], tmp_path / "gallery.png")
    magenta = pixels_of(path, (1.0, 0.0, 1.0))
    assert magenta > 1000
    seen = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    blended = ((seen[:, 0] == seen[:, 2]) & (seen[:, 1] == 0) & (seen[:, 0] % 255 > 0)).sum()
    assert blended < 0.2 * magenta  # a smoothed 4 x 4 picture would be mostly blends


def test_gallery_grows_by_rows_of_cards(tmp_path):
    def size(count, columns):
        path = save_gallery([row()] * count, tmp_path / "g.png", columns=columns)
        return Image.open(path).size

    one, two, four = size(1, 2), size(2, 2), size(4, 2)
    assert two[0] > 1.8 * one[0]
    assert four[1] > 1.8 * two[1]


def test_a_free_drawing_stands_beside_the_others_where_there_is_one(tmp_path):
    picture = np.zeros((4, 4, 3))
    picture[:2] = (1.0, 0.0, 1.0)
    plain = save_gallery([row()], tmp_path / "plain.png")
    styled = row(styled=picture, said_styled="3", style="faint")
    path = save_gallery([styled], tmp_path / "styled.png")
    assert pixels_of(plain, (1.0, 0.0, 1.0)) == 0 < pixels_of(path, (1.0, 0.0, 1.0))
    assert Image.open(path).size[0] > 1.2 * Image.open(plain).size[0]


def test_a_picture_that_shows_something_else_is_marked(tmp_path):
    same = save_gallery([row(changed=frozenset())], tmp_path / "same.png")
    other = save_gallery([row(changed=frozenset({"adversarial"}))], tmp_path / "other.png")
    assert pixels_of(same, style.HARD) == 0 < pixels_of(other, style.HARD)


def test_enlarge_repeats_whole_pixels():
    picture = np.arange(12, dtype=float).reshape(2, 2, 3) / 12
    large = enlarge(picture, min_side=5)
    assert large.shape == (6, 6, 3)
    assert (large[:3, :3] == picture[0, 0]).all()
    assert enlarge(np.zeros((500, 400, 3)), min_side=384).shape == (500, 400, 3)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([row(drawn=np.zeros((3, 8, 8)))], r"'drawn' has shape \(3, 8, 8\)"),
        ([row(clean=np.full((8, 8, 3), 255.0))], "spans"),
    ],
)
def test_bad_gallery_input_is_named(rows, message, tmp_path):
    with pytest.raises(UserError, match=message):
        save_gallery(rows, tmp_path / "g.png")


GAME_LOG = [
    {"step": step, **{line.key: 0.1 * step for panel in PANELS for line in panel.lines}}
    for step in (1, 2, 3)
]


def test_curves_draw_every_line_of_a_game_and_leave_out_what_was_not_logged(tmp_path):
    game = Image.open(save_curves(GAME_LOG, tmp_path / "game.png")).size
    sft = Image.open(
        save_curves([{"step": s, "clean_ce": 1 / s} for s in (1, 2)], tmp_path / "sft.png")
    ).size
    assert game[0] > 2.5 * sft[0]
    assert game[1] > 1.7 * sft[1]


def test_every_figure_of_the_attack_has_the_redrawing_beside_it():
    panels = {
        line.key: {other.key for other in panel.lines} for panel in PANELS for line in panel.lines
    }
    for attack, redrawn in {
        "adversarial_ce": "redrawn_ce",
        "attack_success_rate": "redrawn_success_rate",
        "codes_changed": "redrawn_codes_changed",
        "similarity": "redrawn_similarity",
    }.items():
        assert redrawn in panels[attack]


def test_curves_skip_gaps_and_figures_that_are_not_finite(tmp_path):
    log = [
        {"step": 1, "clean_ce": 1.0},
        {"step": 2, "clean_ce": float("nan")},
        {"eval_loss": 0.3},
        {"step": 3},
    ]
    assert save_curves(log, tmp_path / "c.png").is_file()
    with pytest.raises(UserError, match=r"nothing to draw.*'loss', 'step'"):
        save_curves([{"step": 1, "loss": 0.2}], tmp_path / "none.png")


def test_the_same_log_gives_the_same_bytes(tmp_path):
    first = save_curves(GAME_LOG, tmp_path / "a.png").read_bytes()
    assert save_curves(GAME_LOG, tmp_path / "b.png").read_bytes() == first
