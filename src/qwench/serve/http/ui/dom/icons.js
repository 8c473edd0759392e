// The page's pictures: strokes on a field of 24 by 24, in the colour of the text around them.

const NAMESPACE = "http://www.w3.org/2000/svg";
const STROKES = {
  branch: "M6 3v12M18 9a3 3 0 1 0 0-6 3 3 0 0 0 0 6ZM6 21a3 3 0 1 0 0-6 3 3 0 0 0 0 6ZM18 9a9 9 0 0 1-9 9",
  check: "M5 12.5 10 17.5 19 7",
  clip: "m20 11-8.6 8.6a5.5 5.5 0 0 1-7.8-7.8L12.2 3.2a3.7 3.7 0 0 1 5.2 5.2l-8.6 8.6a1.8 1.8 0 0 1-2.6-2.6L14 6.6",
  close: "M6 6l12 12M18 6 6 18",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  down: "M12 5v14M6 13l6 6 6-6",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  file: "M6 3h8l5 5v13H6zM14 3v5h5",
  left: "M14 6l-6 6 6 6",
  menu: "M4 7h16M4 12h16M4 17h10",
  plus: "M12 5v14M5 12h14",
  redo: "M20 11a8 8 0 1 0-2.3 6.3M20 5v6h-6",
  right: "M10 6l6 6-6 6",
  send: "M12 19V5M6 11l6-6 6 6",
  sliders: "M4 7h9M19 7h1M4 17h1M11 17h9M16 4.5v5M8 14.5v5",
  stop: "M7 7h10v10H7z",
  tokens: "M4 6h6M14 6h6M4 18h6M14 18h6M4 12h16",
  tool: "M5 7l5 5-5 5M12 18h7",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  upload: "M12 16V5M7 9l5-5 5 5M5 20h14",
};

export function icon(name) {
  const picture = document.createElementNS(NAMESPACE, "svg");
  picture.setAttribute("viewBox", "0 0 24 24");
  picture.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(NAMESPACE, "path");
  path.setAttribute("d", STROKES[name]);
  picture.append(path);
  return picture;
}

/** Puts their pictures into the buttons that the document has from the start. */
export function drawIcons() {
  for (const place of document.querySelectorAll("[data-icon]")) place.prepend(icon(place.dataset.icon));
}
