from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from tests.evaluation.scorers import tiny_scorers
from unigame.errors import UserError
from unigame.evaluation.scorers.colours import CLIPColours, cut_out
from unigame.evaluation.scorers.detectors import Detection, SegmentationDetector, geneval_name
from unigame.evaluation.tasks.geneval.rules import CLASSES, COLOURS


def noise(size, seed=0):
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def detector():
    return SegmentationDetector(tiny_scorers.mask2former(), short_edge=32, device="cpu")


def test_coco_labels_are_spelled_as_geneval_spells_them(detector):
    assert tuple(detector._class_names) == CLASSES
    assert geneval_name("Mouse") == "computer mouse"
    assert geneval_name("aeroplane") == "airplane"


def test_detections_of_a_batch_are_those_of_each_picture(detector):
    images = [noise((40, 64), 0), noise((48, 32), 1), noise((40, 64), 2), noise((40, 64), 3)]
    detector._batch_size = 2
    together = detector.detect(images)
    assert all(together)
    for image, found in zip(images, together, strict=True):
        (alone,) = detector.detect([image])
        assert [each.class_name for each in found] == [each.class_name for each in alone]
        np.testing.assert_allclose(
            [each.score for each in found], [each.score for each in alone], rtol=1e-4
        )
        for each in found:
            assert each.mask.shape == (image.height, image.width)
            rows, columns = np.nonzero(each.mask)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert each.box == box


def outputs(detector, monkeypatch, classes_BQC, masks_BQHW):
    """Make the network say this, whatever it sees."""
    model = lambda pixel_values: SimpleNamespace(  # noqa: E731
        class_queries_logits=classes_BQC, masks_queries_logits=masks_BQHW
    )
    monkeypatch.setattr(detector.checkpoint, "load", lambda: model)


def test_scores_are_those_of_transformers_where_masks_are_not_squeezed(detector, monkeypatch):
    """An independent count: transformers' own inference agrees if everything is 384 px."""
    torch.manual_seed(0)
    classes = torch.randn(1, 10, len(CLASSES) + 1) * 4
    masks = torch.nn.functional.avg_pool2d(torch.randn(1, 10, 96, 96) * 20, 9, 1, 4)
    outputs(detector, monkeypatch, classes, masks)
    detector._short_edge = 384
    (found,) = detector.detect([noise((384, 384))])

    processor = detector.checkpoint.processor
    said = SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)
    (theirs,) = processor.post_process_instance_segmentation(
        said, threshold=0.05, target_sizes=[(384, 384)], return_binary_maps=True
    )
    expected = sorted(
        (
            (segment["score"], CLASSES[segment["label_id"]], int(mask.sum()))
            for segment, mask in zip(theirs["segments_info"], theirs["segmentation"], strict=True)
        ),
        reverse=True,
    )
    assert len(expected) > 5
    ours = [(round(each.score, 6), each.class_name, int(each.mask.sum())) for each in found]
    assert [each[1:] for each in ours] == [each[1:] for each in expected]
    np.testing.assert_allclose(
        [each[0] for each in ours], [each[0] for each in expected], atol=2e-6
    )


def test_a_block_of_the_mask_is_that_block_of_a_wide_picture(detector, monkeypatch):
    # 128 x 64 px become 64 x 32 at a short edge of 32, and masks are a quarter of that.
    classes = torch.full((1, 10, len(CLASSES) + 1), -20.0)
    classes[..., -1] = 0.0
    classes[0, 3, CLASSES.index("dog")] = 20.0
    masks = torch.full((1, 10, 8, 16), -30.0)
    masks[0, 3, 2:6, 8:12] = 30.0
    outputs(detector, monkeypatch, classes, masks)
    ((found,),) = detector.detect([noise((128, 64))])
    assert found.class_name == "dog"
    assert found.score == pytest.approx(1.0, abs=0.05)
    np.testing.assert_allclose(found.box, (64, 16, 96, 48), atol=1)


def test_overlapping_masks_are_all_kept(detector, monkeypatch):
    classes = torch.full((1, 10, len(CLASSES) + 1), -20.0)
    classes[..., -1] = 0.0
    classes[0, :4, CLASSES.index("dog")] = 20.0
    outputs(detector, monkeypatch, classes, torch.full((1, 10, 8, 8), 30.0))
    (found,) = detector.detect([noise((32, 32))])
    assert [each.box for each in found] == [(0.0, 0.0, 32.0, 32.0)] * 4


def test_padding_is_cut_off_for_types_without_a_pixel_mask(detector, monkeypatch):
    """EoMT's processor pads to a square and says nothing of where the picture ends."""
    detector._short_edge = None
    pixels = torch.zeros(1, 3, 32, 32)
    monkeypatch.setattr(detector.checkpoint, "pixels", lambda images: {"pixel_values": pixels})
    monkeypatch.setattr(detector.checkpoint.processor, "do_pad", True, raising=False)
    classes = torch.full((1, 10, len(CLASSES) + 1), -20.0)
    classes[..., -1] = 0.0
    classes[0, 0, 16] = 20.0
    masks = torch.full((1, 10, 32, 32), -30.0)
    masks[0, 0, 8:16] = 30.0  # the lower half of the picture, which is 16 rows high here
    outputs(detector, monkeypatch, classes, masks)
    ((found,),) = detector.detect([noise((64, 32))])
    np.testing.assert_allclose(found.box, (0, 16, 64, 32), atol=1)


def test_eomt_looks_at_its_own_size():
    eomt = SegmentationDetector(tiny_scorers.eomt(), device="cpu")
    assert " px" not in eomt.name
    (found,) = eomt.detect([noise((64, 40))])
    assert found
    assert {each.mask.shape for each in found} == {(40, 64)}


def test_no_pictures_no_detections(detector):
    assert detector.detect([]) == []


def test_a_detector_of_other_classes_is_refused():
    with pytest.raises(UserError, match=r"does not know 78 of GenEval's 80 classes \(bicycle, car"):
        SegmentationDetector(tiny_scorers.mask2former(("person", "dog")))


def test_another_kind_of_model_is_refused():
    with pytest.raises(UserError, match="model of type 'dinov2'; give an instance-seg"):
        SegmentationDetector(tiny_scorers.dinov2())
    with pytest.raises(UserError, match="model of type 'dinov2'; give a CLIP"):
        CLIPColours(tiny_scorers.dinov2())


def test_broken_weights_are_found_before_any_picture(tmp_path):
    for file in tiny_scorers.mask2former().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:1000])
    broken = SegmentationDetector(tmp_path, device="cpu")
    with pytest.raises(UserError, match="its weights cannot be had"):
        broken.check()


def test_the_name_tells_weights_and_size_apart(detector):
    other = SegmentationDetector(tiny_scorers.mask2former(), short_edge=64)
    changed = SegmentationDetector(tiny_scorers.mask2former(queries=11), short_edge=32)
    assert len({detector.name, other.name, changed.name}) == 3


# ---- colours -------------------------------------------------------------------------------------


def test_an_object_is_cut_out_on_grey():
    image = Image.new("RGB", (8, 6), (10, 20, 30))
    mask = np.zeros((6, 8), dtype=bool)
    mask[2:4, 3:6] = True
    mask[2, 3] = False
    cut = np.asarray(cut_out(image, Detection("dog", 1.0, (3.0, 2.0, 6.0, 4.0), mask)))
    assert cut.shape == (2, 3, 3)
    assert tuple(cut[0, 0]) == (0x99, 0x99, 0x99)
    assert (cut.reshape(-1, 3)[1:] == (10, 20, 30)).all()


def test_an_object_without_a_mask_keeps_its_surroundings():
    image = noise((8, 6))
    cut = cut_out(image, Detection("dog", 1.0, (1.0, 1.0, 4.0, 3.0)))
    assert (np.asarray(cut) == np.asarray(image)[1:3, 1:4]).all()
    assert cut_out(image, Detection("dog", 1.0, (2.0, 2.0, 2.0, 2.0))).size == (1, 1)


def nearest_colour(class_name):
    """The reference's classifier, written out: one sentence at a time, CLIP's own forward pass."""
    folder = tiny_scorers.clip()
    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    blank = processor(images=Image.new("RGB", (8, 8)), return_tensors="pt")
    means = []
    for colour in COLOURS:
        vectors = []
        for sentence in (
            f"a photo of a {colour} {class_name}",
            f"a photo of a {colour}-colored {class_name}",
            f"a photo of a {colour} object",
        ):
            said = model(**tokenizer(sentence, return_tensors="pt"), **blank).text_embeds[0]
            vectors.append(said / said.norm())
        means.append(torch.stack(vectors).mean(0))

    def nearest(image, detection):
        seen = processor(images=cut_out(image, detection), return_tensors="pt")
        said = model(**tokenizer("a", return_tensors="pt"), **seen).image_embeds[0]
        return COLOURS[int(np.argmax([float(said @ mean / mean.norm()) for mean in means]))]

    return nearest


@torch.no_grad()
def test_colours_are_those_of_the_written_out_classifier():
    nearest = nearest_colour("tv remote")
    colours = CLIPColours(tiny_scorers.clip(), batch_size=2, device="cpu")
    images = [noise((40, 40), seed) for seed in range(3)]
    images += [Image.new("RGB", (40, 40), rgb) for rgb in ((255, 0, 0), (0, 0, 255))]
    mask = np.zeros((40, 40), dtype=bool)
    mask[5:30, 8:25] = True
    seen = set()
    for image in images:
        one = Detection("tv remote", 1.0, (8.0, 5.0, 25.0, 30.0), mask)
        two = Detection("tv remote", 1.0, (0.0, 0.0, 40.0, 12.0))
        three = Detection("tv remote", 1.0, (20.0, 0.0, 40.0, 40.0))
        named = colours.classify(image, [one, two, three], "tv remote")
        assert named == [nearest(image, each) for each in (one, two, three)]
        seen.update(named)
    assert len(seen) > 1, "a classifier that always says the same would pass too"
    assert colours.classify(images[0], [], "dog") == []
