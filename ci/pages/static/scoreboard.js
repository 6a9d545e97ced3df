// The scoreboard's filters: each row carries what it is filtered by. The choice stands
// in the address, so that a filtered table can be linked to.
document.addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("claim-filters");
  if (!form) return;
  const rows = [...document.querySelectorAll("#claims-table tbody tr")];
  const fields = ["notebook", "paper", "kind", "verdict", "words"];

  function fits(row, asked) {
    const { notebook, papers, kind, verdicts } = row.dataset;
    const words = asked.words.toLowerCase().split(/\s+/).filter(Boolean);
    const text = row.textContent.toLowerCase();
    return (
      (!asked.notebook || asked.notebook === notebook) &&
      (!asked.kind || asked.kind === kind) &&
      (!asked.paper || papers.split(" ").includes(asked.paper)) &&
      (!asked.verdict || verdicts.split("|").includes(asked.verdict)) &&
      words.every((word) => text.includes(word))
    );
  }

  function apply() {
    const asked = Object.fromEntries(fields.map((f) => [f, form.elements[f].value]));
    let shown = 0;
    for (const row of rows) {
      row.hidden = !fits(row, asked);
      shown += !row.hidden;
    }
    form.querySelector("output").value = `${shown} of ${rows.length} claims`;
    const chosen = Object.entries(asked).filter(([, value]) => value);
    const query = new URLSearchParams(chosen).toString();
    if (location.protocol === "file:") return; // such an address cannot be changed
    history.replaceState(null, "", query ? `?${query}` : location.pathname);
  }

  const given = new URLSearchParams(location.search);
  for (const field of fields) {
    if (given.has(field)) form.elements[field].value = given.get(field);
  }
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply)); // after the fields are empty
  apply();
});
