//! The roofline of a report as an SVG file: what each kernel reaches beside what its bound allows.

use super::{Report, Row};
use std::fmt::Write;

const WIDTH: f64 = 840.0;
/// Of the plot; the list beside it may need more.
const LEAST_HEIGHT: f64 = 420.0;
const FIRST_LINE: f64 = 60.0;
const LINE: f64 = 15.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 372.0;
const RIGHT: f64 = 560.0;

const STYLE: &str = "\
svg{--paper:#ffffff;--ink:#1c2128;--soft:#66707d;--rule:#e7eaee;--roof:#2563eb;--dot:#d9772b;--bad:#d1383d}\
@media(prefers-color-scheme:dark){svg{--paper:#171c23;--ink:#e8edf3;--soft:#93a0b0;--rule:#29313b;--roof:#6ea2ff;--dot:#f5a15d;--bad:#ff6b6b}}\
text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:var(--ink)}.soft{fill:var(--soft);font-size:11px}\
.title{font-size:16px;font-weight:600}.paper{fill:var(--paper)}.rule{stroke:var(--rule)}\
.roof{stroke:var(--roof);stroke-width:2;fill:none}.dot{fill:var(--dot)}.wrong{fill:var(--bad)}";

/// A row's arithmetic intensity (FLOPs a byte) and rate (FLOP/s). Work that bytes bound is drawn at one FLOP a byte.
fn place(row: &Row, balance: f64) -> (f64, f64) {
    let seconds = row.cold_ms * 1e-3;
    if row.flops > 0.0 {
        // Products are far to the right of the ridge whatever their exact intensity; their rate is what counts.
        (4.0 * balance, row.flops / seconds)
    } else {
        (1.0, row.bytes / seconds)
    }
}

/// The picture.
pub fn svg(report: &Report) -> String {
    let bandwidth = report.bounds.copy_gb_s * 1e9;
    let products = [report.bounds.product_f32_tflops, report.bounds.product_bf16_tflops];
    let peak = products.into_iter().flatten().fold(bandwidth * 1e-12, f64::max) * 1e12;
    let balance = (peak / bandwidth).max(2.0);
    let points: Vec<(&Row, (f64, f64))> =
        report.rows.iter().map(|row| (row, place(row, balance))).collect();
    let rates = points.iter().map(|(_, (_, rate))| *rate);
    let low = rates.fold(bandwidth * 0.25, f64::min).log10().floor();
    let high = (peak * 1.2).log10().ceil().max(low + 1.0);
    let (from, to) = (-1.0, (16.0 * balance).log10().ceil());
    let x = |intensity: f64| LEFT + (intensity.log10() - from) / (to - from) * (RIGHT - LEFT);
    let y = |rate: f64| BOTTOM - (rate.log10() - low) / (high - low) * (BOTTOM - TOP);

    let height = (FIRST_LINE + LINE * points.len() as f64).max(LEAST_HEIGHT);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         role=\"img\">\n<title>Roofline</title>\n<style>{STYLE}</style>\n\
         <rect class=\"paper\" width=\"{WIDTH}\" height=\"{height}\" rx=\"10\"/>\n\
         <text class=\"title\" x=\"16\" y=\"28\">Roofline of {}</text>\n",
        escape(&report.device)
    );
    for power in (low as i32)..=(high as i32) {
        let at = y(10f64.powi(power));
        let _ = writeln!(
            out,
            "<line class=\"rule\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">10^{power}</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    for power in (from as i32)..=(to as i32) {
        let at = x(10f64.powi(power));
        let _ = writeln!(
            out,
            "<text class=\"soft\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">10^{power}</text>",
            BOTTOM + 16.0
        );
    }
    let _ = writeln!(
        out,
        "<text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">operations a byte</text>\
         <text class=\"soft\" x=\"16\" y=\"46\">operations a second</text>",
        (LEFT + RIGHT) / 2.0,
        BOTTOM + 34.0
    );
    let start = 10f64.powf(from);
    let _ = writeln!(
        out,
        "<path class=\"roof\" d=\"M{:.1} {:.1}L{:.1} {:.1}L{RIGHT} {:.1}\"/>\
         <text class=\"soft\" x=\"{:.1}\" y=\"{:.1}\">copy {:.0} GB/s</text>\
         <text class=\"soft\" x=\"{RIGHT}\" y=\"{:.1}\" text-anchor=\"end\">product {:.2} TFLOP/s</text>",
        x(start),
        y((bandwidth * start).max(10f64.powf(low))),
        x(balance),
        y(peak),
        y(peak),
        x(1.0) + 8.0,
        y(bandwidth * 0.55),
        report.bounds.copy_gb_s,
        y(peak) - 6.0,
        peak * 1e-12
    );
    // Points lie near each other: each has a number, and the list beside names it.
    for (number, (row, (intensity, rate))) in points.iter().enumerate() {
        let shift = (number % 6) as f64 * 5.0;
        let class = if row.correct { "dot" } else { "wrong" };
        let percent = row.percent_of_bound.map_or(String::new(), |p| format!(" {p:.0} %"));
        let about = escape(&format!("{} {} {:?} {}", row.kernel, row.part, row.shape, row.dtype));
        let _ = writeln!(
            out,
            "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\"><title>{about}{percent}</title></circle>",
            x(*intensity) + shift,
            y(*rate)
        );
        let line = FIRST_LINE + LINE * number as f64;
        let name = escape(&format!("{} {} {}", row.kernel, row.part, row.dtype));
        let _ =
            writeln!(out, "<text class=\"soft\" x=\"572\" y=\"{line:.1}\">{name}{percent}</text>");
    }
    out.push_str("</svg>\n");
    out
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
