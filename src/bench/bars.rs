//! A report as an SVG file: how much of its bound each row reaches, as bars, grouped by kernel.

use super::{Report, Row, sizes};
use crate::train::chart::{Unit, escape, number};
use std::fmt::Write;

const WIDTH: f64 = 960.0;
const LINE: f64 = 19.0;
const FIRST: f64 = 92.0;
/// Where a row's name begins, its bar, and what is beyond the longest bar.
const NAME: f64 = 28.0;
const LEFT: f64 = 440.0;
const RIGHT: f64 = 780.0;

const STYLE: &str = "\
svg{--paper:#ffffff;--ink:#1c2128;--soft:#66707d;--rule:#d5dae0;--bytes:#2563eb;--flops:#d9772b;--bad:#d1383d}\
@media(prefers-color-scheme:dark){svg{--paper:#171c23;--ink:#e8edf3;--soft:#93a0b0;--rule:#39434f;--bytes:#6ea2ff;--flops:#f5a15d;--bad:#ff6b6b}}\
text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:var(--ink)}.soft{fill:var(--soft);font-size:11px}\
.title{font-size:16px;font-weight:600}.kernel{font-weight:600}.end{text-anchor:end}.middle{text-anchor:middle}\
.paper{fill:var(--paper)}.rule{stroke:var(--rule)}.bytes{fill:var(--bytes)}.flops{fill:var(--flops)}.wrong{fill:var(--bad)}";

/// The picture.
pub fn svg(report: &Report) -> String {
    let shares = report.rows.iter().filter_map(|row| row.percent_of_bound);
    let most = shares.filter(|share| share.is_finite()).fold(100.0, f64::max);
    let x = |percent: f64| LEFT + percent / most * (RIGHT - LEFT);
    let mut body = String::new();
    let (mut y, mut kernel) = (FIRST, "");
    for row in &report.rows {
        if row.kernel != kernel {
            kernel = row.kernel;
            let _ = writeln!(
                body,
                "<text class=\"kernel\" x=\"16\" y=\"{y}\">{}</text>",
                escape(kernel)
            );
            y += LINE;
        }
        bar(&mut body, row, y, &x);
        y += LINE;
    }
    let height = y + 8.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\">\n<title>Percent of the bound</title>\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\" rx=\"10\"/>\n\
         <text class=\"title\" x=\"16\" y=\"28\">Percent of the bound: {}</text>\n",
        escape(&report.machine.computes())
    );
    let bounds = &report.bounds;
    let product = |name: &str, rate: Option<f64>| {
        rate.map_or(String::new(), |rate| {
            format!(", {name} product {} TFLOP/s", number(rate, Unit::Plain))
        })
    };
    let _ = writeln!(
        out,
        "<rect class=\"bytes\" x=\"16\" y=\"40\" width=\"10\" height=\"10\"/><text class=\"soft\" x=\"31\" y=\"49\">bytes, of a copy</text>\
         <rect class=\"flops\" x=\"130\" y=\"40\" width=\"10\" height=\"10\"/><text class=\"soft\" x=\"145\" y=\"49\">FLOPs, of a product</text>\
         <text class=\"soft end\" x=\"{:.1}\" y=\"49\">copy {} GB/s{}{}</text>",
        WIDTH - 16.0,
        number(bounds.copy_gb_s, Unit::Plain),
        product("f32", bounds.product_f32_tflops),
        product("bf16", bounds.product_bf16_tflops),
    );
    for percent in [0.0, 50.0, 100.0] {
        let _ = writeln!(
            out,
            "<line class=\"rule\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <text class=\"soft middle\" x=\"{at:.1}\" y=\"{:.1}\">{percent} %</text>",
            FIRST - LINE,
            height - 8.0,
            FIRST - LINE - 5.0,
            at = x(percent),
        );
    }
    out + &body + "</svg>\n"
}

fn bar(out: &mut String, row: &Row, y: f64, x: &dyn Fn(f64) -> f64) {
    let name = escape(&format!("{} {} {}", row.part, sizes::text(&row.shape), row.dtype));
    let _ = write!(out, "<text class=\"soft\" x=\"{NAME}\" y=\"{y:.1}\">{name}</text>");
    let (class, unit) = if row.flops > 0.0 { ("flops", "TFLOP/s") } else { ("bytes", "GB/s") };
    let class = if row.correct { class } else { "wrong" };
    let rate = format!(
        "{} {unit}{}",
        number(row.rate, Unit::Plain),
        if row.correct { "" } else { ", WRONG" }
    );
    let said = match row.percent_of_bound.filter(|percent| percent.is_finite()) {
        Some(percent) => {
            let _ = write!(
                out,
                "<rect class=\"bar {class}\" x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"12\" rx=\"2\"/>",
                y - 10.0,
                x(percent) - LEFT
            );
            format!("{percent:.0} %, {rate}")
        }
        None => format!("{rate}, no bound here"),
    };
    let at = x(row.percent_of_bound.filter(|percent| percent.is_finite()).unwrap_or(0.0)) + 7.0;
    let _ = writeln!(out, "<text class=\"soft\" x=\"{at:.1}\" y=\"{y:.1}\">{said}</text>");
}
