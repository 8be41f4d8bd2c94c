//! Figures as SVG: throughput and p99 against connections, and what is drawn over time.

use std::fmt::Write as _;

use crate::report::{Figures, Row};

/// What is drawn: the row, and whose figures.
const SERIES: [(&str, bool, &str, &str); 6] = [
    ("reserve", false, "Reserve, keypool", "#1f5fa8"),
    ("reserve", true, "Reserve, bare SQL", "#8fb8e3"),
    ("pairs", false, "Reserve and Spend, keypool", "#b3441f"),
    ("pairs", true, "Reserve and Spend, bare SQL", "#eab396"),
    ("upload", false, "Upload, KeyPackages, keypool", "#2c7a4b"),
    ("upload", true, "openmls's validation of the same", "#9bd0ae"),
];
/// Of one panel's axes, pixels.
const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 40.0;
/// From one panel to the next.
const STEP: f64 = 440.0;

/// The two panels.
pub(crate) fn svg(rows: &[Row]) -> String {
    let mut connections: Vec<usize> = drawn(rows).map(|row| row.connections).collect();
    connections.sort_unstable();
    connections.dedup();
    let mut svg = begin(2.0 * STEP, TOP + HEIGHT + 132.0);
    panel(&mut svg, rows, &connections, LEFT, "operations a second", |figures| figures.ops_per_s);
    panel(&mut svg, rows, &connections, LEFT + STEP, "p99, ms", |figures| figures.p99_ms);
    for (n, (_, _, label, color)) in (0_u8..).zip(SERIES) {
        let (x, y) =
            (LEFT + f64::from(n % 2) * 240.0, TOP + HEIGHT + 66.0 + f64::from(n / 2) * 22.0);
        key(&mut svg, x, y, label, color);
    }
    svg + "</svg>\n"
}

fn drawn(rows: &[Row]) -> impl Iterator<Item = &Row> {
    rows.iter().filter(|row| SERIES.iter().any(|(name, ..)| row.name == *name))
}

fn panel(
    svg: &mut String,
    rows: &[Row],
    connections: &[usize],
    left: f64,
    title: &str,
    figure: fn(&Figures) -> f64,
) {
    // A figure that was not measured is 0, such as a latency of openmls's validation.
    let figures = |row: &Row, reference: bool| {
        let figures = if reference { row.reference.as_ref() } else { Some(&row.keypool) };
        figures.map(figure).filter(|figure| *figure > 0.0)
    };
    let all = drawn(rows).flat_map(|row| [figures(row, false), figures(row, true)]).flatten();
    let (top, step) = scale(all.fold(0.0, f64::max));
    // Evenly spaced: the numbers grow by a factor.
    let x = |at: usize| left + WIDTH * (at as f64 + 0.5) / connections.len().max(1) as f64;
    let y = |value: f64| TOP + HEIGHT * (1.0 - value / top);

    grid(svg, (left, TOP), title, top, step);
    for (at, connections) in connections.iter().enumerate() {
        x_tick(svg, x(at), TOP, &connections.to_string());
    }
    x_title(svg, (left, TOP), "connections");
    for (name, reference, _, color) in SERIES {
        let points: Vec<(f64, f64)> = connections
            .iter()
            .enumerate()
            .filter_map(|(at, connections)| {
                let row =
                    rows.iter().find(|row| row.name == name && row.connections == *connections)?;
                Some((x(at), y(figures(row, reference)?)))
            })
            .collect();
        polyline(svg, points.iter().copied(), color);
        for (x, y) in points {
            element(
                svg,
                format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>"),
            );
        }
    }
}

/// What is drawn over time, in one panel.
#[derive(Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) x_title: &'static str,
    pub(crate) x: Vec<f64>,
    /// The name of each line, its colour and its values, one for each of `x`.
    pub(crate) lines: Vec<(String, &'static str, Vec<f64>)>,
}

/// Panels, so many beside each other, each with its key below it.
pub(crate) fn document(panels: &[Panel], columns: usize) -> String {
    let keys = |panel: &Panel| panel.lines.len().div_ceil(2) as f64 * 18.0;
    let heights = panels
        .chunks(columns)
        .map(|row| TOP + HEIGHT + 66.0 + row.iter().map(keys).fold(0.0, f64::max));
    let heights: Vec<f64> = heights.collect();
    let mut svg = begin(columns as f64 * STEP, heights.iter().sum());
    let mut above = 0.0;
    for (row, height) in panels.chunks(columns).zip(heights) {
        for (column, panel) in row.iter().enumerate() {
            panel.draw(&mut svg, (LEFT + STEP * column as f64, TOP + above));
        }
        above += height;
    }
    svg + "</svg>\n"
}

impl Panel {
    fn draw(&self, svg: &mut String, (left, above): (f64, f64)) {
        let all = self.lines.iter().flat_map(|(_, _, values)| values);
        let (top, step) = scale(all.copied().fold(0.0, f64::max));
        grid(svg, (left, above), &self.title, top, step);
        let (end, step) = scale(self.x.last().copied().unwrap_or_default());
        let x = |value: f64| left + WIDTH * value / end;
        for tick in ticks(end, step) {
            x_tick(svg, x(tick), above, &tick_text(tick));
        }
        x_title(svg, (left, above), self.x_title);
        let y = |value: f64| above + HEIGHT * (1.0 - value / top);
        for (at, (name, color, values)) in self.lines.iter().enumerate() {
            let points = self.x.iter().zip(values).map(|(at, value)| (x(*at), y(*value)));
            polyline(svg, points, color);
            let place = (left + (at % 2) as f64 * 190.0, above + HEIGHT + 62.0);
            key(svg, place.0, place.1 + (at / 2) as f64 * 18.0, name, color);
        }
    }
}

fn begin(width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#333\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    )
}

/// The title of a panel at a place, and the lines of its vertical axis.
fn grid(svg: &mut String, (left, above): (f64, f64), title: &str, top: f64, step: f64) {
    element(
        svg,
        format_args!(
            "<text x=\"{left:.1}\" y=\"{:.1}\" font-weight=\"bold\">{title}</text>",
            above - 16.0
        ),
    );
    for tick in ticks(top, step) {
        let y = above + HEIGHT * (1.0 - tick / top);
        element(
            svg,
            format_args!(
                "<line x1=\"{left:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left + WIDTH,
                left - 8.0,
                y + 4.0,
                tick_text(tick)
            ),
        );
    }
}

fn ticks(top: f64, step: f64) -> impl Iterator<Item = f64> {
    (0..=(top / step).round() as u32).map(move |n| f64::from(n) * step)
}

/// Without what sums leave behind the last digit.
fn tick_text(tick: f64) -> String {
    format!("{}", (tick * 1e6).round() / 1e6)
}

fn x_tick(svg: &mut String, x: f64, above: f64, text: &str) {
    let y = above + HEIGHT + 20.0;
    element(
        svg,
        format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{text}</text>"),
    );
}

fn x_title(svg: &mut String, (left, above): (f64, f64), text: &str) {
    x_tick(svg, left + WIDTH / 2.0, above + 20.0, text);
}

fn polyline(svg: &mut String, points: impl Iterator<Item = (f64, f64)>, color: &str) {
    let line: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    element(
        svg,
        format_args!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
            line.join(" ")
        ),
    );
}

/// What a colour means.
fn key(svg: &mut String, x: f64, y: f64, label: &str, color: &str) {
    element(
        svg,
        format_args!(
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"18\" height=\"4\" fill=\"{color}\"/>\
             <text x=\"{:.1}\" y=\"{y:.1}\">{label}</text>",
            y - 6.0,
            x + 26.0
        ),
    );
}

/// A round number at or above `largest`, and the step of some four to ten lines up to it.
fn scale(largest: f64) -> (f64, f64) {
    let magnitude = 10_f64.powf(largest.max(1e-3).log10().floor());
    let step = [0.2, 0.5, 1.0].map(|part| part * magnitude);
    let step = step.into_iter().find(|step| largest / step <= 8.0).unwrap_or(magnitude * 2.0);
    ((largest / step).ceil().max(1.0) * step, step)
}

fn element(svg: &mut String, element: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(svg, "{element}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axis_ends_at_or_above_the_largest_figure_with_few_lines() {
        for largest in [0.02, 0.7, 1.0, 3.3, 9.99, 10.0, 47.0, 16_330.0, 81_000.0] {
            let (top, step) = scale(largest);
            assert!(top >= largest, "{largest}");
            assert!((3.0..=9.0).contains(&(top / step)), "{largest}: {top} by {step}");
        }
    }

    #[test]
    fn every_series_has_a_point_for_each_number_of_connections() {
        let sample = |n| crate::sample::Sample {
            operations: n,
            elapsed: std::time::Duration::from_secs(1),
            latencies: vec![1000],
            ..Default::default()
        };
        let rows: Vec<Row> = [("reserve", 1), ("reserve", 64), ("pairs", 1), ("pairs", 64)]
            .map(|(name, connections)| Row::new(name, connections, &[sample(1000)], &[sample(500)]))
            .to_vec();
        let svg = svg(&rows);
        // Two panels, two rows of two series, two numbers of connections.
        assert_eq!(svg.matches("<circle ").count(), 16);
        assert!(svg.contains(">operations a second<") && svg.contains(">p99, ms<"));
    }

    #[test]
    fn what_was_not_measured_is_not_drawn() {
        let keypool = crate::sample::Sample {
            operations: 10,
            elapsed: std::time::Duration::from_secs(1),
            latencies: vec![1000],
            ..Default::default()
        };
        let reference = crate::sample::Sample { latencies: Vec::new(), ..keypool.clone() };
        let svg = super::svg(&[Row::new("upload", 16, &[keypool], &[reference])]);
        // The rates of both, the p99 of one.
        assert_eq!(svg.matches("<circle ").count(), 3);
    }
}
