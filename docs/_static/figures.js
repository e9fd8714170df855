// A box around each figure of the gallery, for pages.css to let it scroll.
document.addEventListener("DOMContentLoaded", () => {
  for (const figure of document.querySelectorAll("img.sphx-glr-single-img")) {
    const box = document.createElement("div");
    box.className = "figure-box";
    figure.replaceWith(box);
    box.append(figure);
  }
});
