//! What surrounds every page: its head, its style, and at its end the script that shows values under a pointer.

use crate::train::chart::{HOVER, STYLE, escape};

const PAGE: &str = include_str!("page.css");

/// The beginning of a page, up to its heading inside `<header>`.
pub(in crate::train) fn begin(brand: &str, title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title} · gradstone</title>\n\
         <style>{STYLE}{PAGE}</style>\n</head>\n<body>\n<main>\n<header>\n<p class=\"brand\">{brand}</p>\n<h1>{title}</h1>\n",
        title = escape(title)
    )
}

/// The end of a page.
pub(in crate::train) fn end() -> String {
    format!("</main>\n<script>\n{HOVER}</script>\n</body>\n</html>\n")
}

/// The line that names what was zero in every step, in place of its charts.
pub(in crate::train) fn zero(names: &[String]) -> String {
    match names {
        [] => String::new(),
        names => {
            format!("<p class=\"note\">Zero in every step: {}.</p>\n", escape(&names.join(", ")))
        }
    }
}
