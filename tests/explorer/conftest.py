"""A run that is explored: what its page asks for, and the page itself."""

import contextlib
import threading

import pytest

from afactl.evaluation.segmentation import evaluate_segmentation
from afactl.explorer.server import address, listen, server
from afactl.explorer.session import Place, Session
from afactl.inference.trained_run import open_split


@pytest.fixture
def session(run):
    """The tiny run, with scores of its validation split."""
    evaluate_segmentation(run, open_split(run, "val", None, masks=True))
    return Session(run)


@contextlib.contextmanager
def page_of(session):
    """The address of a session's page, as long as the block lasts."""
    with listen(None) as bound:
        serving = server(session)
        thread = threading.Thread(target=serving.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield address(bound)
        finally:
            serving.should_exit = True
            thread.join(20)


@pytest.fixture
def served(session):
    """The address of a session's page."""
    with page_of(session) as url:
        yield url


def first(session, split="val"):
    """The photo at the head of the list."""
    return Place(split, session.photos(split)["photos"][0]["id"])
