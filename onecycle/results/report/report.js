"use strict";
(() => {
  // Charts: the point nearest to the pointer, or the one that the arrow keys chose.
  for (const plot of document.querySelectorAll(".plot")) {
    const points = JSON.parse(plot.dataset.points);
    const readout = plot.parentElement.querySelector(".readout");
    const isFirst = plot === document.querySelector(".plot");
    const hint = isFirst ? "Point at a chart, or use the arrow keys, to read its values." : "";
    const cross = document.createElement("div");
    cross.className = "cross";
    cross.hidden = true;
    plot.append(cross);
    let chosen = points.length - 1;

    const show = (index) => {
      chosen = Math.max(0, Math.min(points.length - 1, index));
      const [x, text, heights] = points[chosen];
      cross.hidden = false;
      cross.style.left = x + "%";
      cross.replaceChildren(
        ...heights.map((height) => {
          const dot = document.createElement("i");
          dot.style.bottom = height + "%";
          return dot;
        }),
      );
      readout.textContent = text;
      plot.setAttribute("aria-valuenow", chosen);
      plot.setAttribute("aria-valuetext", text);
    };
    const hide = () => {
      if (document.activeElement === plot && plot.matches(":focus-visible")) return;
      cross.hidden = true;
      readout.textContent = hint;
    };
    const nearest = (event) => {
      const box = plot.getBoundingClientRect();
      const at = (100 * (event.clientX - box.left)) / box.width;
      let best = 0;
      points.forEach(([x], i) => {
        if (Math.abs(x - at) < Math.abs(points[best][0] - at)) best = i;
      });
      return best;
    };
    plot.addEventListener("pointermove", (event) => show(nearest(event)));
    plot.addEventListener("pointerdown", (event) => show(nearest(event)));
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("focus", () => plot.matches(":focus-visible") && show(chosen));
    plot.addEventListener("blur", hide);
    plot.addEventListener("keydown", (event) => {
      const page = Math.max(1, Math.round(points.length / 10));
      const moves = {
        ArrowLeft: chosen - 1, ArrowDown: chosen - 1,
        ArrowRight: chosen + 1, ArrowUp: chosen + 1,
        PageDown: chosen - page, PageUp: chosen + page,
        Home: 0, End: points.length - 1,
      };
      if (!(event.key in moves)) return;
      event.preventDefault();
      show(moves[event.key]);
    });
    hide();
  }

  // The gallery: two choices, and so many pictures at a time.
  const form = document.querySelector(".filter");
  if (!form) return;
  const STEP = 60;
  const tiles = [...document.querySelectorAll("#errors .tile")];
  const count = document.querySelector(".count");
  const more = document.querySelector(".more");
  const selects = [form.elements.true, form.elements.predicted];
  const total = Number(form.dataset.total);
  let limit = STEP;

  const apply = () => {
    const [truth, predicted] = selects.map((select) => select.value);
    let matching = 0;
    for (const tile of tiles) {
      const fits =
        (truth === "" || tile.dataset.true === truth) &&
        (predicted === "" || tile.dataset.predicted === predicted);
      tile.hidden = !(fits && matching < limit);
      matching += fits;
    }
    const shown = Math.min(limit, matching);
    const number = (n) => n.toLocaleString("en");
    const what = matching === 1 ? "error" : "errors";
    const kept =
      tiles.length < total ? ` among the ${number(tiles.length)} most confident` : "";
    count.textContent =
      shown < matching
        ? `${number(shown)} of ${number(matching)} errors${kept} shown`
        : `${number(matching)} ${what}${kept}`;
    more.hidden = shown >= matching;
    more.textContent = `Show ${number(Math.min(4 * STEP, matching - shown))} more`;
  };
  const restart = () => {
    limit = STEP;
    apply();
  };
  form.hidden = false;
  form.addEventListener("change", restart);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(restart));
  more.addEventListener("click", () => {
    const next = tiles.filter((tile) => !tile.hidden).length;
    limit += 4 * STEP;
    apply();
    const first = tiles.filter((tile) => !tile.hidden)[next];
    if (first && more.hidden) {
      first.tabIndex = -1;
      first.focus({ preventScroll: true });
    }
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-true]");
    if (!link) return;
    selects[0].value = link.dataset.true;
    selects[1].value = link.dataset.predicted ?? "";
    restart();
  });
  apply();
})();
