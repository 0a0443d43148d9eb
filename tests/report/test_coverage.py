# SPDX-License-Identifier: Apache-2.0
"""The page of the matrix shows everything, and nothing in it does anything."""

from html.parser import HTMLParser

from ksentinel.level import Level
from ksentinel.report.coverage import coverage_page
from ksentinel.rules import Rule
from ksentinel.rules.coverage import coverage

EVIL = '<script>alert(1)</script><img src="http://192.0.2.1/x">\u202e&amp;'


class Page(HTMLParser):
    """What elements and text a page has; that every one is closed."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], set(), ""

    def handle_starttag(self, tag, attrs):
        """Note what there is."""
        self.seen |= {tag} | {name for name, _ in attrs}
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        """Check that it was open."""
        assert self.open.pop() == tag

    def handle_data(self, data):
        """Note what is shown."""
        self.text += data


def read(rules):
    page = Page()
    page.feed(coverage_page(coverage(rules)))
    assert page.open == []
    return page


def test_escaped():
    """Whatever a rule says is text, in its cell and beside the matrix."""
    tags = ("attack.execution", "attack.t1059<b>")
    page = read([Rule("1", EVIL, Level.HIGH, tags=tags), Rule("2", EVIL, Level.LOW)])

    assert not page.seen & {"script", "img", "b", "src", "href", "link"}
    assert page.text.count("<script>alert(1)</script>") == 2
    assert r"\u202e&amp;" in page.text
    assert "T1059<B>" in page.text


def test_empty():
    """Without rules every tactic says so."""
    assert read([]).text.count("no rule") == 14
