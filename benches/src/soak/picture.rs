//! The figures over time, as lines of text and as SVG.

use std::fmt::Write as _;

use super::series::{Group, Series, Verdict};
use crate::plot::{Panel, document};

/// How many characters wide a line is.
const COLUMNS: usize = 48;
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const COLORS: [&str; 12] = [
    "#1f5fa8", "#b3441f", "#2c7a4b", "#7a3f98", "#b8860b", "#3d8f9e", "#8fb8e3", "#eab396",
    "#9bd0ae", "#c9a3da", "#d9c27a", "#777777",
];
const COLUMNS_OF_PANELS: usize = 2;

/// A line for each series: how it went from zero to its most, where it began, was in the middle and
/// ended, and what the second half of it is called.
pub(super) fn text(series: &[Series], turns: &[f64], judged: bool) -> String {
    let mut text = String::new();
    for group in Group::ALL {
        let mut first = true;
        for series in series.iter().filter(|series| series.group == group) {
            if std::mem::take(&mut first) {
                // Writing to a String cannot fail.
                let _ = writeln!(
                    text,
                    "{:<46} {:<COLUMNS$} {:>9} {:>9} {:>9}  second half",
                    group.title(),
                    "",
                    "begin",
                    "middle",
                    "end"
                );
            }
            let at = |at: usize| figure(series.values.get(at).copied().unwrap_or_default());
            let last = series.values.len().saturating_sub(1);
            let verdict = match series.verdict(turns) {
                Verdict::Grows(what) if judged => format!("{what} GROWS"),
                Verdict::Keeps(what) | Verdict::Grows(what) => what,
            };
            let _ = writeln!(
                text,
                "  {:<44} {:<COLUMNS$} {:>9} {:>9} {:>9}  {verdict}",
                series.name,
                line(&series.values),
                at(0),
                at(last / 2),
                at(last)
            );
        }
    }
    text
}

/// Of some values each column shows the mean of its share.
fn line(values: &[f64]) -> String {
    let most = values.iter().copied().fold(0.0, f64::max);
    let columns = COLUMNS.min(values.len());
    let column = |n: usize| {
        let (from, to) = (n * values.len() / columns, (n + 1) * values.len() / columns);
        let part = values.get(from..to.max(from + 1)).unwrap_or_default();
        let mean = part.iter().sum::<f64>() / part.len().max(1) as f64;
        let level = if most > 0.0 { mean / most * 7.0 } else { 0.0 };
        LEVELS.get(level.round() as usize).copied().unwrap_or('?')
    };
    (0..columns).map(column).collect()
}

/// With no more digits than say something.
fn figure(value: f64) -> String {
    if value < 100.0 && value.fract() != 0.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// A panel for each group.
pub(super) fn svg(series: &[Series], at_minutes: &[f64]) -> String {
    let panels = Group::ALL.map(|group| {
        let lines = series.iter().filter(|series| series.group == group).zip(COLORS.iter().cycle());
        Panel {
            title: group.title().to_owned(),
            x_title: "minutes",
            x: at_minutes.to_vec(),
            lines: lines
                .map(|(series, color)| (series.name.clone(), *color, series.values.clone()))
                .collect(),
        }
    });
    document(&panels, COLUMNS_OF_PANELS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soak::series::Promise;

    #[test]
    fn a_line_goes_from_nothing_to_its_most() {
        assert_eq!(line(&[0.0, 7.0, 3.5]), "▁█▅");
        assert_eq!(line(&[]), "");
        assert_eq!(line(&[0.0, 0.0]), "▁▁");
        let many: Vec<f64> = (0..240).map(f64::from).collect();
        let line = line(&many);
        assert_eq!(line.chars().count(), COLUMNS);
        assert!(line.starts_with('▁') && line.ends_with('█'), "{line}");
    }

    #[test]
    fn every_group_is_drawn_and_what_grows_is_called_so() {
        let series = |group, name: &str, by: f64| Series {
            group,
            name: name.into(),
            promise: Promise::Flat { share: 0.05, slack: 0.0 },
            values: (0..40).map(|n| 10.0 + by * f64::from(n)).collect(),
        };
        let all: Vec<_> = Group::ALL.map(|group| series(group, "calm", 0.0)).into();
        let grows = [&all[..], &[series(Group::Tables, "leak", 1.0)]].concat();
        let turns: Vec<f64> = (0..40).map(f64::from).collect();
        assert!(!text(&all, &turns, true).contains("GROWS"));
        let told = text(&grows, &turns, true);
        let line = told.lines().find(|line| line.contains("leak")).unwrap();
        assert!(line.ends_with("GROWS"), "{told}");
        let svg = svg(&grows, &turns);
        assert_eq!(svg.matches("<polyline ").count(), 9);
        assert_eq!(svg.matches(">minutes<").count(), 8);
        assert!(svg.contains(">leak<") && svg.trim_end().ends_with("</svg>"));
    }
}
