"""Packages that a plain install lacks are imported under a guard."""

from __future__ import annotations

from tests.imports import PACKAGE, files_of, imports_of, package_of, within

OPTIONAL = ("torchvision", "open_clip")


def test_optional_packages_are_imported_under_a_guard():
    for file in files_of("unigame"):
        for item in imports_of(file.read_text(encoding="utf-8"), package_of(file)):
            if within(item.module, OPTIONAL):
                assert item.guarded, f"{file.relative_to(PACKAGE)}:{item.line}: {item.module}"


def test_a_guard_must_catch_the_failure_to_import():
    sources = [
        "try:\n    import torchvision\nexcept ImportError:\n    torchvision = None",
        "try:\n    import torchvision\nexcept ValueError:\n    pass",
        "try:\n    pass\nexcept ImportError:\n    import torchvision",
    ]
    assert [imports_of(source, "unigame")[0].guarded for source in sources] == [True, False, False]
