"""This tree: its release build, and which commit it is."""

import subprocess

from .servers import ROOT, WORK


def build():
    """The release build of this tree."""
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet"], cwd=ROOT, check=True)
    return WORK.parent / "release/fanwire"


def commit():
    """Its short hash, and whether there is more than that."""

    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()

    # What is written by these programs themselves is no change of what they measure.
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":!docs")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+changes" if changed else "")
