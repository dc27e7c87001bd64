"""The world draws what it says, and the analytic reader reads exactly that."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unigame.synthetic.reader import exact_match, object_match, read, shows, truth
from unigame.synthetic.world import (
    CELLS,
    COLOURS,
    HELD_OUT,
    SHAPES,
    TEXTURES,
    Scene,
    Thing,
    caption,
    parse_caption,
    random_scene,
    render,
)


def scenes(count: int, **settings: object) -> list[Scene]:
    rng = np.random.default_rng(3)
    return [random_scene(rng, **settings) for _ in range(count)]  # type: ignore[arg-type]


def test_the_same_scene_gives_the_same_pixels() -> None:
    scene = scenes(1, texture="striped", corruption="noise")[0]
    assert np.array_equal(render(scene), render(scene))


def test_the_reader_recovers_every_object_of_clean_pictures() -> None:
    drawn = scenes(150, combinations="all")
    assert exact_match([read(render(s)) for s in drawn], [truth(s) for s in drawn]) == 1.0


@pytest.mark.parametrize("texture", TEXTURES)
def test_textures_hardly_disturb_the_reader(texture: str) -> None:
    drawn = scenes(60, combinations="all", texture=texture)
    assert object_match([read(render(s)) for s in drawn], [truth(s) for s in drawn]) >= 0.95


def test_the_reader_reads_through_noise() -> None:
    drawn = scenes(100, combinations="all", corruption="noise")
    assert object_match([read(render(s)) for s in drawn], [truth(s) for s in drawn]) >= 0.99


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_reader_tells_every_combination_in_every_cell(colour: str, shape: str) -> None:
    for cell in range(len(CELLS)):
        scene = Scene((Thing(cell, colour, shape, radius=5.6, dx=0.6, dy=-0.7),))
        assert read(render(scene)) == {(cell, colour, shape)}


def test_the_reader_sees_a_deleted_a_recoloured_and_an_invented_object() -> None:
    first, second = Thing(0, "red", "disc"), Thing(4, "blue", "cross")
    image = render(Scene((first, second)))
    assert read(render(Scene((first,)))) == {(0, "red", "disc")}
    image[:16, :16] = render(Scene((Thing(0, "green", "disc"),)))[:16, :16]
    image[32:, 32:] = render(Scene((Thing(8, "pink", "square"),)))[32:, 32:]
    assert read(image) == {(0, "green", "disc"), (4, "blue", "cross"), (8, "pink", "square")}


def test_a_faint_picture_shows_its_objects_and_a_trace_of_another_is_none() -> None:
    scene = Scene((Thing(0, "red", "disc"),))
    empty, whole = render(Scene(())), render(scene)
    both = render(Scene((*scene.things, Thing(8, "blue", "cross"))))
    faint = empty + np.float32(0.25) * (whole - empty)
    assert not read(faint) and shows(faint, scene) and shows(whole, scene)
    assert not shows(empty, scene) and not shows(both, scene)
    assert shows(whole + np.float32(0.2) * (both - whole), scene)


def test_half_drawn_ghosts_do_not_count() -> None:
    scene = Scene((Thing(4, "yellow", "disc"),))
    empty = render(Scene(()))
    assert read(empty + 0.3 * (render(scene) - empty)) == set()


def test_seen_scenes_never_hold_a_held_out_combination_and_held_out_ones_always_do() -> None:
    def held(scene: Scene) -> bool:
        return any((t.colour, t.shape) in HELD_OUT for t in scene.things)

    assert not any(held(s) for s in scenes(300))
    assert all(held(s) for s in scenes(100, combinations="held_out"))


def test_objects_differ_and_have_cells_of_their_own() -> None:
    for scene in scenes(300, combinations="all"):
        assert len({(t.colour, t.shape) for t in scene.things}) == len(scene.things)
        assert len({t.cell for t in scene.things}) == len(scene.things)


@pytest.mark.parametrize("texture", [*TEXTURES, "plain"])
def test_captions_name_the_objects_and_the_style(texture: str) -> None:
    for scene in scenes(30, texture=texture):
        text = caption(scene)
        assert parse_caption(text) == truth(scene)
        assert text.startswith(f"{texture}:") == (texture != "plain")


def test_words_that_are_no_object_are_skipped_in_captions() -> None:
    assert parse_caption("north red red disc, south blue cross, west green") == {
        (CELLS.index("south"), "blue", "cross")
    }


@pytest.mark.parametrize("corruption", ["noise", "contrast", "occlusion", "blur"])
def test_corruptions_change_the_picture_and_stay_in_range(corruption: str) -> None:
    from dataclasses import replace

    for scene in scenes(10):
        clean, bad = render(scene), render(replace(scene, corruption=corruption))
        assert bad.min() >= 0 and bad.max() <= 1 and bad.dtype == np.float32
        assert np.abs(bad - clean).mean() > 0.003


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ValueError, match="unknown shape 'hexagon'"):
        render(Scene((Thing(0, "red", "hexagon"),)))
    with pytest.raises(ValueError, match="unknown texture"):
        render(Scene((), texture="tartan"))


def test_far_noise_is_grey_clouds_and_strong_noise_coloured_pixels() -> None:
    scene = random_scene(np.random.default_rng(4), corruption="noise", counts=(1,))
    clean = render(replace(scene, corruption="none"))
    for severity, grey in (("far", True), ("strong", False)):
        added = render(replace(scene, severity=severity)) - clean
        inside = (added + clean > 0.02).all(-1) & (added + clean < 0.98).all(-1)  # not clipped
        assert (added[inside].std(-1).max() < 1e-4) == grey
        steps = np.abs(np.diff(added, axis=0)).mean() / added.std()
        assert (steps < 0.5) == grey


def test_far_textures_are_twice_as_coarse() -> None:
    scene = random_scene(np.random.default_rng(4), texture="checkered").with_things(())
    edges = {
        severity: (np.abs(np.diff(render(replace(scene, severity=severity)), axis=0)) > 0.05).sum()
        for severity in ("strong", "far")
    }
    assert 0.35 < edges["far"] / edges["strong"] < 0.7
