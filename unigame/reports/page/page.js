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
  const filter = (kind) => {
    for (const card of cards) card.hidden = kind !== "" && card.dataset.kind !== kind;
    status.textContent = cards.filter((card) => !card.hidden).length + " of " + cards.length + " pictures shown";
  };
  for (const button of gallery.querySelectorAll(".filter input"))
    button.addEventListener("change", () => filter(button.value));
  const chosen = gallery.querySelector(".filter input:checked"); // a browser may remember it
  if (chosen && chosen.value) filter(chosen.value);
}
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
