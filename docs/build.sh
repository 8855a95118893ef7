#!/usr/bin/env bash
# Build the documentation as a site into site/VERSION, and run the scripts of its gallery. Takes a few minutes.
#
#   bash docs/build.sh                 build; then open site/VERSION/index.html, which needs no server and no network
#   GALLERY=no bash docs/build.sh      build without running the gallery, for a quick look at the text
#
# A warning, such as a link that leads nowhere, fails the build. To have several versions beside one another, check out
# the tag of each and build: site/index.html lists what is there. Other arguments go to `mkdocs build`.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup_env.sh
python -c 'import mkdocstrings, material, latex2mathml' 2>/dev/null ||
    python -m pip install -qq --disable-pip-version-check --no-build-isolation -c constraints.txt -e '.[docs]'
version="$(python -c 'import neurotwin; print(neurotwin.__version__)')"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" NO_MKDOCS_2_WARNING=1
# Not --quiet: it hides warnings from --strict as well.
python -m mkdocs build --strict --site-dir "site/$version" "$@"
echo "site/$version/index.html"
