"""Where packages lie, which depends on how the project is installed; all else stands in pyproject.toml.

A clone has the packages `neurotwin` and `training` side by side, and an editable install makes both importable. A wheel
has `training` as `neurotwin.training`, because a user may well have a package or a script called `training`.
"""

import sys

from setuptools import find_packages, setup

packages = find_packages(include=["neurotwin*", "training*"])
if "editable_wheel" in sys.argv:
    # This mapping makes setuptools put the clone's folder on Python's path. Its other way, a finder that is asked after
    # the path, loses against any folder called neurotwin in the working folder: a script beside a clone of that name
    # would import the clone's folder, which is no package.
    setup(packages=packages, package_dir={"": "."})
else:
    inside = [f"neurotwin.{name}" if name.split(".")[0] == "training" else name for name in packages]
    setup(packages=inside, package_dir={"neurotwin.training": "training"})
