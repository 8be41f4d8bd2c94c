//! Figures over time, and whether they grow.

use serde::Serialize;

pub(super) const MIB: f64 = (1 << 20) as f64;

/// What may become of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Promise {
    /// Over the second half of the run it rises by no more than this share of itself, or by no more
    /// than this many of its unit.
    Flat { share: f64, slack: f64 },
    /// What is remembered for a day or more: it grows, by as many bytes for each turn at the end as
    /// before, or by no more than this share of them more; or by no more than this many of its unit
    /// in the last quarter of the run. As before is as in the quarter before the last one; of an index
    /// the second half may also be as the first: its pages, where keys come at random, are filled and
    /// split in waves, and a quarter may be the crest of one.
    Linear { share: f64, slack: f64 },
}

/// One figure at each look.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Series {
    /// What it is of.
    pub(crate) group: Group,
    pub(crate) name: String,
    pub(crate) promise: Promise,
    pub(crate) values: Vec<f64>,
}

/// Those that are drawn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Group {
    Memory,
    Files,
    Connections,
    Load,
    Latency,
    Tables,
    Indexes,
    Dead,
}

impl Group {
    pub(crate) const ALL: [Self; 8] = [
        Self::Memory,
        Self::Files,
        Self::Connections,
        Self::Load,
        Self::Latency,
        Self::Tables,
        Self::Indexes,
        Self::Dead,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Memory => "memory of the server, MiB",
            Self::Files => "open files of the server",
            Self::Connections => "connections and streams",
            Self::Load => "turns a second",
            Self::Latency => "p99 of a turn, ms",
            Self::Tables => "tables, MiB",
            Self::Indexes => "indexes, MiB",
            Self::Dead => "dead rows",
        }
    }
}

/// Whether it does what it promised.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// With what it comes to.
    Keeps(String),
    Grows(String),
}

impl Series {
    /// `turns`: how many there had been at each look.
    pub(crate) fn verdict(&self, turns: &[f64]) -> Verdict {
        let half = self.values.len() / 2;
        let ((early_values, values), (early_turns, turns)) =
            (self.values.split_at(half), turns.split_at(half.min(turns.len())));
        let (keeps, what) = match self.promise {
            Promise::Flat { share, slack } => {
                // Looks are as far apart as the turns between them.
                let rise = slope(turns, values)
                    * (turns.last().unwrap_or(&0.0) - turns.first().unwrap_or(&0.0));
                let middle = crate::sample::median(values.iter().copied());
                let relative = if middle > 0.0 { rise / middle * 100.0 } else { 0.0 };
                (rise <= (middle * share).max(slack), format!("{relative:+.1} %"))
            }
            Promise::Linear { share, slack } => {
                let middle = values.len() / 2;
                let ((third, last), (third_turns, last_turns)) =
                    (values.split_at(middle), turns.split_at(middle.min(turns.len())));
                let quarters = [slope(third_turns, third), slope(last_turns, last)];
                let halves = [slope(early_turns, early_values), slope(turns, values)];
                let in_waves = self.group == Group::Indexes;
                let as_before = |[before, after]: [f64; 2]| after <= before * (1.0 + share);
                let rise = last.last().unwrap_or(&0.0) - last.first().unwrap_or(&0.0);
                let [before, after] = quarters.map(|mib| mib * MIB);
                (
                    as_before(quarters) || (in_waves && as_before(halves)) || rise <= slack,
                    format!("{before:.0}, then {after:.0} B/turn"),
                )
            }
        };
        if keeps { Verdict::Keeps(what) } else { Verdict::Grows(what) }
    }
}

/// The median of the slopes between all pairs of points (Theil and Sen): what a vacuum gives back
/// now and then, and what one look happened to see, moves it little.
fn slope(x: &[f64], y: &[f64]) -> f64 {
    let points: Vec<_> = x.iter().zip(y).collect();
    let slopes = points.iter().enumerate().flat_map(|(n, (x, y))| {
        let later = points[n + 1..].iter();
        later.filter(|(later, _)| later > x).map(move |(x2, y2)| (*y2 - *y) / (*x2 - *x))
    });
    crate::sample::median(slopes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A figure at 240 looks, 1000 turns apart.
    fn judge(promise: Promise, value: impl Fn(f64) -> f64) -> bool {
        judge_of(Group::Memory, promise, value)
    }

    fn judge_of(group: Group, promise: Promise, value: impl Fn(f64) -> f64) -> bool {
        let turns: Vec<f64> = (0..240).map(|n| f64::from(n) * 1000.0).collect();
        let values = (0..240).map(|n| value(f64::from(n))).collect();
        let series = Series { group, name: "it".into(), promise, values };
        matches!(series.verdict(&turns), Verdict::Keeps(_))
    }

    const FLAT: Promise = Promise::Flat { share: 0.05, slack: 2.0 };
    const LINEAR: Promise = Promise::Linear { share: 0.25, slack: 1.0 };

    #[test]
    fn what_is_flat_at_last_is_flat() {
        assert!(judge(FLAT, |_| 100.0));
        // It warms up, and stays.
        assert!(judge(FLAT, |n| 100.0 * (1.0 - (-n / 15.0).exp())));
        // A saw, and an outlier at the end.
        assert!(judge(FLAT, |n| 100.0 + n % 17.0));
        assert!(judge(FLAT, |n| if n > 235.0 { 500.0 } else { 100.0 }));
        // It falls.
        assert!(judge(FLAT, |n| 1000.0 - n));
        // By one or two in an hour.
        assert!(judge(FLAT, |n| if n > 180.0 { 12.0 } else { 11.0 }));
        assert!(judge(FLAT, |_| 0.0));
    }

    #[test]
    fn what_leaks_grows() {
        // By a tenth in the second half, steadily, in steps and under a saw.
        assert!(!judge(FLAT, |n| 100.0 + n / 12.0));
        assert!(!judge(FLAT, |n| 100.0 + (n / 20.0).floor() * 2.0));
        assert!(!judge(FLAT, |n| 100.0 + n / 6.0 + n % 17.0));
        // From nothing.
        assert!(!judge(FLAT, |n| n));
    }

    #[test]
    fn what_grows_by_design_grows_by_as_much_for_each_turn() {
        assert!(judge(LINEAR, |n| 10.0 + n));
        assert!(judge(LINEAR, |_| 10.0));
        assert!(judge(LINEAR, |n| 10.0 + n.sqrt()));
        // It took a while until it grew as it does.
        assert!(judge(LINEAR, |n| n + 0.4 * (n - 100.0).max(0.0)));
        // Twice as much for each turn in the last quarter as in the one before.
        assert!(!judge(LINEAR, |n| n + (n - 180.0).max(0.0)));
        assert!(!judge(LINEAR, |n| n * n / 100.0));
        assert!(!judge(LINEAR, |n| n * n * n / 10_000.0));
    }

    #[test]
    fn an_index_may_grow_in_waves_and_a_table_may_not() {
        // The last quarter is a crest.
        let wave = |n: f64| n + 8.0 * (n * std::f64::consts::TAU / 120.0).cos();
        assert!(judge_of(Group::Indexes, LINEAR, wave));
        assert!(!judge_of(Group::Tables, LINEAR, wave));
        assert!(!judge_of(Group::Indexes, LINEAR, |n| n + (n - 180.0).max(0.0)));
        assert!(!judge_of(Group::Indexes, LINEAR, |n| n * n / 100.0));
        assert!(!judge_of(Group::Indexes, LINEAR, |n| n * n * n / 10_000.0));
    }
}
