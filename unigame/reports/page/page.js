"use strict";
for (const compare of document.querySelectorAll(".compare")) {
  const slider = compare.querySelector("input");
  const show = () => compare.querySelector(".stack").style.setProperty("--share", slider.value + "%");
  slider.addEventListener("input", show);
  show();
}
for (const gallery of document.querySelectorAll(".gallery")) {
  const cards = [...gallery.querySelectorAll(".card")];
  const status = gallery.querySelector("[role=status]");
  const filters = [...gallery.querySelectorAll(".filter")];
  const filter = () => {
    const chosen = filters.map((one) => [one.dataset.by, one.querySelector("input:checked").value]);
    for (const card of cards) card.hidden = chosen.some(([by, kind]) => kind !== "" && card.dataset[by] !== kind);
    status.textContent = cards.filter((card) => !card.hidden).length + " of " + cards.length + " pictures shown";
  };
  for (const one of filters) one.addEventListener("change", filter);
  if (gallery.querySelector(".filter input:checked:not([value=''])")) filter(); // a browser may remember it
}
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
