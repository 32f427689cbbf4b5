//! Costs against those of one, as SVG: a panel for each thing that becomes many.

use std::fmt::Write as _;

/// A line of a panel.
pub(crate) struct Line {
    name: &'static str,
    points: Vec<(usize, f64)>,
}

impl Line {
    /// Of points: how many, and the cost then.
    pub(crate) fn new(name: &'static str, points: Vec<(usize, f64)>) -> Self {
        Self { name, points }
    }
}

const COLOURS: [&str; 2] = ["#1f77b4", "#d62728"];
/// Width and height of a panel, and what surrounds its axes.
const PANEL: [f64; 2] = [300.0, 240.0];
const MARGIN: f64 = 40.0;
/// What is between the bottom and the top of a panel.
const RANGE: [f64; 2] = [0.0, 2.0];

/// Draws panels side by side: the axis below is logarithmic, the other one is not.
pub(crate) fn draw(panels: &[(String, [Line; 2])]) -> String {
    let (width, height) = (PANEL[0] * panels.len() as f64, PANEL[1] + 20.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"10\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for (number, (title, lines)) in panels.iter().enumerate() {
        panel(&mut svg, PANEL[0] * number as f64, title, lines);
    }
    for ((line, colour), at) in panels.iter().flat_map(|(_, l)| l).zip(COLOURS).zip(0..) {
        let (x, name) = (MARGIN + 100.0 * f64::from(at), line.name);
        let y = height - 6.0;
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{y}\" fill=\"{colour}\">{name}</text>"
        );
    }
    svg + "</svg>\n"
}

fn panel(svg: &mut String, left: f64, title: &str, lines: &[Line]) {
    let most = lines.iter().flat_map(|line| &line.points).map(|(n, _)| *n);
    let most = most.max().unwrap_or(1).max(2) as f64;
    let (inner, bottom) = (PANEL[0] - 1.5 * MARGIN, PANEL[1] - MARGIN);
    let x = |n: usize| left + MARGIN + inner * (n as f64).ln() / most.ln();
    let y = |cost: f64| {
        let part = (cost.clamp(RANGE[0], RANGE[1]) - RANGE[0]) / (RANGE[1] - RANGE[0]);
        bottom - (bottom - MARGIN) * part
    };
    let (start, end) = (x(1), x(most as usize));
    let _ = writeln!(
        svg,
        "<text x=\"{start}\" y=\"20\" font-size=\"12\">Cost per packet: {title}</text>"
    );
    for cost in [0.0, 0.5, 1.0, 1.15, 1.5, 2.0] {
        let (y, wanted) = (y(cost), cost == 1.15);
        let style = if wanted {
            " stroke-dasharray=\"4\""
        } else {
            ""
        };
        let _ = writeln!(
            svg,
            "<line x1=\"{start}\" x2=\"{end}\" y1=\"{y}\" y2=\"{y}\" stroke=\"#ccc\"{style}/>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"end\">{cost}</text>",
            start - 4.0,
            y + 3.0
        );
    }
    for (n, _) in lines.first().map_or(&[][..], |line| &line.points) {
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{n}</text>",
            x(*n),
            bottom + 14.0
        );
    }
    for (line, colour) in lines.iter().zip(COLOURS) {
        let points = line.points.iter();
        let points: Vec<_> = points
            .map(|(n, cost)| format!("{:.1},{:.1}", x(*n), y(*cost)))
            .collect();
        let points = points.join(" ");
        let _ = writeln!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        );
    }
}
