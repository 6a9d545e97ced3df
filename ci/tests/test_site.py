"""The site: what is generated for it, and a small build without warnings."""

import hashlib
import json
import re
from importlib.util import find_spec

import pytest
import yaml

from ci.pages import citations, scoreboard, sources
from ci.pages.anchors import anchored, ids_of
from ci.pages.citations import Paper, bibtex, papers_of
from ci.pages.names import Names, Scope
from ci.pages.scoreboard import rows_of
from ci.tools import site
from ci.tools.browser import CHROMIUM, NO_CHROMIUM
from ci.tools.notebooks import every_notebook
from lib.kit.results import Recorded
from lib.kit.start import ROOT

DOCS = all(map(find_spec, ("sphinx", "myst_nb", "sphinx_book_theme")))
needs_docs = pytest.mark.skipif(
    not DOCS, reason="the site's packages are missing: ./ci/setup --extra docs"
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
NAMES = Names()
SCAN = ROOT / "notebooks" / "13_scan_kernels.ipynb"


# -- names ---------------------------------------------------------------------------


def test_a_name_is_followed_to_where_it_is_defined():
    assert NAMES.resolve("lib.scan.selective_scan") == "lib.scan.api.selective_scan"
    assert NAMES.resolve("lib.kit.Claims.trend") == "lib.kit.claims.Claims.trend"
    assert NAMES.resolve("lib.kit.figures") == "lib.kit.figures"
    assert NAMES.resolve("lib.kit.no_such_thing") is None
    assert NAMES.resolve("numpy.linalg") is None


def test_a_notebook_is_read_by_its_imports():
    scope = Scope(NAMES, "objective_soup")
    scope.read("from lib import kit\nfrom lib import objective_soup as soup")
    scope.read("claims = kit.Claims('42')")
    world = "lib.objective_soup.world.shipped_world"
    assert scope.code("soup.shipped_world") == scope.prose("shipped_world()") == world
    assert scope.code("claims.trend") == "lib.kit.claims.Claims.trend"
    assert scope.prose("kit.show(fig, ...)") == "lib.kit.figures.show"
    assert scope.prose("speech") is scope.prose("x @ y") is scope.prose("None") is None


def test_a_notebook_hides_a_name_by_its_own():
    scope = Scope(NAMES)
    scope.read("from lib.hippo import transition")
    assert scope.code("transition") == "lib.hippo.transition"
    scope.read("def transition(x):\n    return x")
    assert scope.code("transition") is None


def test_every_exported_name_is_found():
    for room in NAMES.rooms:
        package = NAMES.members(room)[0]
        for name in package.exported:
            assert NAMES.resolve(f"{package.name}.{name}"), (room, name)


@needs_docs
def test_code_gets_links_where_names_are_known():
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    from ci.pages.links import linked

    known = {"kit.show": "show.html", "hippo": "hippo.html"}
    code = "kit.show(hippo.N.size, fig.hippo, hippo=3)"
    made = linked(highlight(code, PythonLexer(), HtmlFormatter()), known.get)
    links = re.findall(r'<a class="ours" href="([\w.]+)">(.*?)</a>', made)
    plain = [(where, re.sub("<.*?>", "", inside)) for where, inside in links]
    assert plain == [("show.html", "kit.show"), ("hippo.html", "hippo")]
    assert re.sub("<.*?>", "", made).strip() == code


@needs_docs
def test_a_notebook_is_adapted_to_its_page():
    from ci.pages.links import adapt

    picture = {"data": {"image/png": ""}, "metadata": {"image/png": {"alt": "A line."}}}
    cells = [
        {
            "cell_type": "markdown",
            "source": "# T\n\n[Source](x)\n\nText",
            "metadata": {},
        },
        {"cell_type": "code", "source": "", "metadata": {}, "outputs": [picture]},
        {"cell_type": "markdown", "source": "[`f`](../lib/a/b.py#L7)", "metadata": {}},
    ]
    title, drawn, link = adapt({"cells": cells})["cells"]
    assert "Source" not in title["source"]
    assert drawn["metadata"]["mystnb"]["image"]["alt"] == "A line."
    assert link["source"] == '<a href="../source/a.b.html#L-7"><code>f</code></a>'


# -- docstrings ----------------------------------------------------------------------


def rst(text, arguments=()):
    from ci.pages.docstrings import to_rst

    known = {"scan": "lib.scan.api.scan"}
    lines = "\n".join(to_rst(text, list(arguments), known.get))
    return lines.replace("\\ ", "")


@needs_docs
def test_a_docstring_keeps_its_words_and_gets_its_markup():
    text = """One sentence about `scan` and `None`.

    x: (batch, length); gamma: at least 1. More about both. Returns y, x_{k-1}^2 and
    e^{tA}B. Raises ValueError for *bad* x. Source: 2008.07669.
    """
    made = rst(text, ["x", "gamma"])
    assert ":py:obj:`scan <lib.scan.api.scan>`" in made
    assert "``None``" in made
    assert "* **x**: (batch, length)" in made
    assert "* **gamma**: at least 1" in made
    assert "\nMore about both.\n" in made
    assert "**Returns** y, x:sub:`k-1`:sup:`2` and e:sup:`tA`B." in made
    assert "**Raises** ValueError for *bad* x." in made
    assert "`2008.07669 <https://arxiv.org/abs/2008.07669>`__" in made


@needs_docs
@pytest.mark.parametrize(
    ("typed", "made"),
    [
        ("N^-1/2 and (1-c)^(1/4)", "N:sup:`-1/2` and (1-c):sup:`1/4`"),
        ("mu_i, A_k^f, grad_x f", "mu:sub:`i`, A:sub:`k`:sup:`f`, grad:sub:`x` f"),
        ("legs_scan of *args", r"legs\_scan of \*args"),
        ("to_end and n_steps", r"to\_end and n\_steps"),
        ("sigma^2/tau^2", "sigma:sup:`2`/tau:sup:`2`"),
        ("|x| <= y'_{n+1}", r"\|x\| <= y':sub:`n+1`"),
    ],
)
def test_formulas_are_read_as_they_are_typed(typed, made):
    assert rst(typed).strip() == made


@needs_docs
def test_an_indented_formula_stays_as_it_stands():
    made = rst("Text::\n\n    a_t  =  b\n\nMore.")
    assert "::\n\n       a_t  =  b\n" in made
    assert "Text:\n" not in made


# -- scoreboard ----------------------------------------------------------------------


def run_of(profile, *claims, notebook="11_hippo"):
    provenance = {"hash": "0", "parameters": {}, "processor": "", "cores": 1}
    return Recorded(notebook, profile, provenance | {"date": ""}, list(claims), {})


def claim(id, verdict="seen", **more):
    fields = {"id": id, "kind": "trend", "statement": f"a < {id}", "read": "paper"}
    fields |= {"source": "2008.07669, Table 1", "measured": "1.0", "verdict": verdict}
    fields |= {"expected": "> 0; published: 3 points", "value": 1.0, "details": {}}
    return fields | more


def test_the_profiles_of_a_claim_stand_in_one_row():
    runs = [
        run_of("long", claim("C2", measured="2.0"), claim("C10")),
        run_of("default", claim("C2", "not judged (1 seed)")),
        run_of("default", claim("C1"), notebook="00_start_here"),
    ]
    first, second = rows_of(runs)
    assert (first.id, second.id) == ("C2", "C10")
    assert first.measured == {"default": "1.0", "long": "2.0"}
    assert first.outcomes == ["not judged", "seen"]
    assert (first.expected, first.published) == ("> 0", "3 points")
    assert first.papers == ["2008.07669"]


def test_the_table_reads_without_a_script():
    rows = rows_of([run_of("default", claim("C1")), run_of("full", claim("C1"))])
    made = scoreboard.table(rows, {("11_hippo", "full")})
    assert made.count("<tr ") == 1
    assert "measured, full" in made
    assert "measured, long" not in made
    assert '<a href="notebooks/11_hippo.html#claims">11 C1</a>' in made
    assert '<a href="https://arxiv.org/abs/2008.07669">' in made
    assert "a &lt; C1" in made
    assert made.count("older than its code") == 1
    form = scoreboard.filters(rows, {"2008.07669": "HiPPO"})
    assert re.findall(r'name="(\w+)"', form) == [
        "notebook",
        "paper",
        "kind",
        "verdict",
        "words",
    ]
    assert "2008.07669 HiPPO" in form


# -- from a claim to its cell ----------------------------------------------------------


def test_claims_are_found_where_they_are_made():
    two = 'claims.trend("C2", "C3 is text", x)\nclaims.identity("C10", "a")'
    assert ids_of(two) == ["C2", "C10"]
    made = 'for key, x in {"C4": 1, "C5": 2}.items():\n    claims.theorem(key, "b")'
    assert ids_of(made) == ["C4", "C5"]
    assert ids_of('print("C6")') == []
    assert ids_of("%pip install x") == []
    assert ids_of('claims.trend(f"C{7}", "b")') == []


def test_a_place_stands_before_each_cell_that_makes_claims_and_the_table_leads_there():
    table = '<table class="claims"><tr><th scope="row" style="a">C1</th></tr>'
    table += '<tr><th scope="row" style="a">C9</th></tr></table>'
    cells = [
        {"cell_type": "code", "source": ['claims.trend("C1", "a")'], "outputs": []},
        {"cell_type": "markdown", "source": ["C1"]},
        {
            "cell_type": "code",
            "source": ['claims.trend("C1", "again")', "claims.show()"],
            "outputs": [{"data": {"text/html": [table]}}, {"text": "C1"}],
        },
    ]
    before = json.dumps(cells)
    made = anchored({"cells": cells})["cells"]
    assert json.dumps(cells) == before
    assert [cell["cell_type"] for cell in made] == ["markdown", "code"] * 2
    assert made[0]["source"] == ['<span id="C1"></span>']
    shown = made[3]["outputs"][0]["data"]["text/html"]
    assert '<th scope="row" style="a"><a href="#C1">C1</a></th>' in shown
    assert '<th scope="row" style="a">C9</th>' in shown


def test_the_scoreboard_leads_to_the_code_of_a_claim():
    rows = rows_of([run_of("default", claim("C1"), claim("C2"))])
    made = scoreboard.table(rows, set(), {("11_hippo", "C2")})
    assert 'href="notebooks/11_hippo.html#C2"' in made
    assert 'href="notebooks/11_hippo.html#C1"' not in made
    known = scoreboard.coded()
    assert {("12_ssm_init", "C6"), ("51_speculative", "C24")} <= known


# -- citations -----------------------------------------------------------------------


def test_a_reference_becomes_an_entry():
    (paper,) = papers_of(
        "A. Gu, C. Ré et al. *Draft & Verify: x.* (DV). "
        "[arXiv:2008.07669](https://arxiv.org/abs/2008.07669)"
    )
    assert (paper.title, paper.arxiv, paper.year) == (
        "Draft & Verify: x",
        "2008.07669",
        "2020",
    )
    assert paper.people == ["A. Gu", "C. Ré", "others"]
    assert citations.keys([paper, paper]) == ["gu2020draft", "gu2020draftb"]
    entry = bibtex(paper, "gu2020draft")
    assert entry.startswith("@misc{gu2020draft,\n  title = {{Draft \\& Verify: x}},")
    assert "author = {A. Gu and C. Ré and others}" in entry


def test_an_item_may_name_several_papers_or_none():
    several = papers_of(
        "*First.* [arXiv:2411.19455](https://arxiv.org/abs/2411.19455); the other "
        "[2604.01168](https://arxiv.org/abs/2604.01168)"
    )
    assert [(p.title, p.arxiv) for p in several] == [
        ("First", "2411.19455"),
        ("", "2604.01168"),
    ]
    (book,) = papers_of("A. Voelker. *Legendre Memory Units.* NeurIPS 2019.")
    assert (book.arxiv, book.where, book.year) == ("", "NeurIPS 2019", "2019")
    assert papers_of("papermill, <https://papermill.readthedocs.io>") == []


def test_every_paper_of_the_front_matter_is_cited():
    papers = citations.all_papers()
    known = {paper.arxiv for paper in papers}
    for notebook in every_notebook():
        assert set(notebook.front["papers"]) <= known
    assert len(citations.keys(papers)) == len(set(citations.keys(papers)))
    page = citations.page([Paper("A < B", arxiv="2008.07669", notebooks=["11_x"])])
    assert "A &lt; B" in page
    assert "@software{" in page


# -- pages ---------------------------------------------------------------------------


def test_every_section_of_the_readme_is_on_one_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _, found = sources.sections(readme)
    landing, guide = sources.landing(readme, []), sources.guide(readme)
    for name in found:
        assert (f"\n## {name}\n" in landing) != (f"\n## {name}\n" in guide), name
    assert set(sources.LANDING) <= set(found)


def test_links_to_files_that_are_no_pages_are_dropped():
    text = "[a](ci/x.py) [b](notebooks/11_hippo.ipynb) [c](https://x.org) [d](#e)"
    assert sources.local(text) == text.replace("[a](ci/x.py)", "a")


def test_the_vendored_scripts_are_those_of_the_table():
    folder = ROOT / "ci" / "pages" / "vendor"
    table = (folder / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w./-]+) \|.*\| ([0-9a-f]{64}) \|$", table, flags=re.M)
    there = {path for path in folder.rglob("*") if path.suffix in (".js", ".woff2")}
    assert {folder / name for name, _ in rows} == there
    for name, expected in rows:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == expected


@pytest.mark.parametrize(
    ("name", "command"), [("ci", "./ci/test"), ("pages", "./ci/site")]
)
def test_a_workflow_runs_just_the_command(name, command):
    path = ROOT / ".github" / "workflows" / f"{name}.yml"
    (job,) = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    ours = [s["run"] for s in job["steps"] if "./ci" in s.get("run", "")]
    assert ours == [command]


def test_without_a_check_there_is_nothing_to_choose(capsys):
    assert site.main(["11"]) == 2
    assert "--check" in capsys.readouterr().err


# -- a small site --------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A notebook, its module's API page and a scoreboard, built as the site is."""
    folder = tmp_path_factory.mktemp("site")
    table = scoreboard.table(rows_of([run_of("long", claim("C1"))]), set())
    entries = ["notebooks/13_scan_kernels", "api/scan", "scoreboard"]
    pages = {
        "index.md": f"# Small\n\n{sources.toctree('All', entries)}",
        "scoreboard.md": f"# Claims\n\n{table.replace('11_hippo', '13_scan_kernels')}",
        "api/scan.rst": sources.api_page("scan", NAMES),
        "notebooks/13_scan_kernels.ipynb": SCAN.read_text(encoding="utf-8"),
    }
    sources.write_pages(folder / "sources", pages)
    made = folder / "site"
    assert site.sphinx(folder / "sources", made, folder / "doctrees", jobs=1)
    return made


@needs_docs
def test_a_small_site_is_whole_and_loads_nothing(small):
    from ci.pages import checks

    page = (small / "notebooks" / SCAN.name).with_suffix(".html").read_text("utf-8")
    api = (small / "api" / "scan.html").read_text(encoding="utf-8")
    anchor = "scan.html#lib.scan.api.selective_scan"
    assert f'<a class="ours" href="../api/{anchor}">' in page
    assert 'href="../source/scan.api.html#L-' in api
    assert "widget-state+json" in page
    assert checks.loaded_from_elsewhere(small) == []
    found = checks.link_findings(small)
    # The listings of all other modules lead to API pages that this site has not.
    assert [line for line in found if not line.startswith("source/")] == []


@needs_docs
def test_links_that_lead_nowhere_are_found(tmp_path):
    from ci.pages import checks

    (tmp_path / "a.html").write_text(
        '<p id="x"><a href="a.html#x">1</a><a href="a.html#y">2</a>'
        '<img src="none.png"><a href="https://arxiv.org">3</a></p>'
        '<script src="https://elsewhere.org/x.js"></script>'
    )
    assert [line.split()[3] for line in checks.link_findings(tmp_path)] == [
        "a.html#y",
        "none.png",
    ]
    assert len(checks.loaded_from_elsewhere(tmp_path)) == 1


@needs_docs
@needs_chromium
@pytest.mark.browser
def test_the_browser_finds_what_is_wrong_and_what_works(small):
    from ci.pages import checks
    from ci.tools.browser import chromium

    broken = '<html lang="en"><title>t</title><main><h1>\\(x</h1><img src="no.png">'
    (small / "broken.html").write_text(broken + "<script>f()</script></main></html>")
    with chromium() as browser, checks.served(small) as address:
        tab = checks.Watched(browser, address)
        assert checks.page_findings(tab, "notebooks/13_scan_kernels.html") == []
        found = " ".join(checks.page_findings(tab, "broken.html"))
    for words in ("not rendered", "without alt text", "error in a script", "axe"):
        assert words in found
    (small / "broken.html").unlink()


@needs_docs
def test_the_download_is_the_committed_notebook(small):
    path = small / "_sources" / "notebooks" / SCAN.name
    assert path.read_bytes() == SCAN.read_bytes()


@needs_docs
def test_buttons_need_the_public_address(monkeypatch):
    from importlib import reload

    monkeypatch.setattr(
        "ci.tools.notebooks.public_url", lambda: "https://github.com/a/b.git"
    )
    from ci.pages import conf

    options = reload(conf).html_theme_options
    assert options["repository_url"] == "https://github.com/a/b"
    assert "colab_url" in options["launch_buttons"]
    monkeypatch.setattr("ci.tools.notebooks.public_url", lambda: "")
    options = reload(conf).html_theme_options
    assert not {"repository_url", "launch_buttons"} & set(options)
