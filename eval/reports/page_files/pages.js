"use strict";
/** What browsers of long lists share: elements of text, and turning pages. */
const paged = (() => {
  const number = (value) => value.toLocaleString("en");

  function element(tag, className, ...children) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    made.append(...children.filter((child) => child !== null && child !== ""));
    return made;
  }

  /** Show at which of the pages a list is; `go` is given the next one and `root` is its browser. */
  function turn(nav, page, last, root, go) {
    nav.hidden = last === 1;
    if (!nav.children.length) {
      nav.append(step("Previous", -1, root, go), element("span", "at"), step("Next", 1, root, go));
    }
    nav.dataset.page = page;
    const [previous, at, next] = nav.children;
    at.textContent = `Page ${number(page)} of ${number(last)}`;
    // Not `disabled`, which would take the focus away from the one who presses it.
    previous.setAttribute("aria-disabled", String(page === 1));
    next.setAttribute("aria-disabled", String(page === last));
  }

  function step(title, by, root, go) {
    const made = element("button", "", title);
    made.type = "button";
    made.addEventListener("click", () => {
      if (made.getAttribute("aria-disabled") === "true") return;
      go(Number(made.parentElement.dataset.page) + by);
      root.querySelector(".turn").scrollIntoView({ block: "start" });
    });
    return made;
  }

  return { element, number, turn };
})();
