//! Throughput and p99 against connections, as SVG.

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
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{:.0}\" height=\"{:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#333\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        2.0 * STEP,
        TOP + HEIGHT + 132.0
    );
    panel(&mut svg, rows, &connections, LEFT, "operations a second", |figures| figures.ops_per_s);
    panel(&mut svg, rows, &connections, LEFT + STEP, "p99, ms", |figures| figures.p99_ms);
    for (n, (_, _, label, color)) in (0_u8..).zip(SERIES) {
        let (x, y) =
            (LEFT + f64::from(n % 2) * 240.0, TOP + HEIGHT + 66.0 + f64::from(n / 2) * 22.0);
        element(
            &mut svg,
            format_args!(
                "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"18\" height=\"4\" fill=\"{color}\"/>\
             <text x=\"{:.1}\" y=\"{y:.1}\">{label}</text>",
                y - 6.0,
                x + 26.0
            ),
        );
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

    element(
        svg,
        format_args!(
            "<text x=\"{left:.1}\" y=\"{:.1}\" font-weight=\"bold\">{title}</text>",
            TOP - 16.0
        ),
    );
    let mut tick = 0.0;
    while tick <= top * 1.001 {
        element(
            svg,
            format_args!(
                "<line x1=\"{left:.1}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>",
                left + WIDTH,
                y(tick),
                y(tick),
                left - 8.0,
                y(tick) + 4.0
            ),
        );
        tick += step;
    }
    for (at, connections) in connections.iter().enumerate() {
        element(
            svg,
            format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{connections}</text>",
                x(at),
                TOP + HEIGHT + 20.0
            ),
        );
    }
    element(
        svg,
        format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">connections</text>",
            left + WIDTH / 2.0,
            TOP + HEIGHT + 40.0
        ),
    );
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
        let line: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        element(
            svg,
            format_args!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/>",
                line.join(" ")
            ),
        );
        for (x, y) in points {
            element(
                svg,
                format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>"),
            );
        }
    }
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
