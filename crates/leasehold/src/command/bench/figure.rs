//! What a bench found: samples, their spread, and the bar that they are held to.

use crate::command::show;
use crate::size::rough;
use serde_json::{Value, json};
use std::time::Duration;

/// The samples of one figure, sorted, never empty.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Spread(Vec<f64>);

impl Spread {
    pub(super) fn new(mut samples: Vec<f64>) -> Spread {
        assert!(!samples.is_empty(), "a figure has at least one sample");
        samples.sort_by(f64::total_cmp);
        Spread(samples)
    }

    pub(super) fn quantile(&self, part: f64) -> f64 {
        let at = part * (self.0.len() - 1) as f64;
        let (below, above) = (self.0[at.floor() as usize], self.0[at.ceil() as usize]);
        below + (above - below) * at.fract()
    }

    pub(super) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    fn json(&self) -> Value {
        let rounded = |part| (self.quantile(part) * 1e9).round() / 1e9;
        json!({
            "samples": self.0.len(),
            "min": rounded(0.0),
            "q1": rounded(0.25),
            "median": rounded(0.5),
            "q3": rounded(0.75),
            "p99": rounded(0.99),
            "max": rounded(1.0),
        })
    }
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    GibPerSecond,
    /// Calls.
    PerSecond,
    /// Processor time of the server.
    CpuPerGib,
    Seconds,
    Bytes,
    Plain,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::GibPerSecond => "GiB/s",
            Unit::PerSecond => "/s",
            Unit::CpuPerGib => "s/GiB",
            Unit::Seconds => "s",
            Unit::Bytes => "bytes",
            Unit::Plain => "",
        }
    }

    pub(super) fn text(self, value: f64) -> String {
        match self {
            Unit::PerSecond => format!("{value:.0} {}", self.name()),
            Unit::GibPerSecond | Unit::CpuPerGib => format!("{value:.2} {}", self.name()),
            Unit::Seconds if value < 1e-6 => format!("{:.0} ns", value * 1e9),
            Unit::Seconds if value < 1e-5 => format!("{:.2} us", value * 1e6),
            Unit::Seconds => show::duration(Duration::from_secs_f64(value)),
            Unit::Bytes if value < 1024.0 => format!("{value:.1} B"),
            Unit::Bytes => rough(value as u64),
            Unit::Plain => format!("{value:.2}"),
        }
    }
}

/// What a row is held to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Bar {
    /// The median of the ratio, ours to the baseline's.
    RatioAtLeast(f64),
    RatioAtMost(f64),
    /// The median of ours, without a baseline.
    Under(f64),
    AtLeast(f64),
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) name: &'static str,
    /// What is measured, for people.
    pub(super) what: &'static str,
    pub(super) unit: Unit,
    pub(super) found: Found,
    pub(super) bar: Option<Bar>,
    /// How it was measured, where that was decided on this machine.
    pub(super) note: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) enum Found {
    /// Taken in turn, with the ratio pair by pair.
    Pairs { ours: Spread, baseline: Spread, against: &'static str, ratio: Spread },
    /// A figure by itself.
    Ours(Spread),
    /// Why there is none.
    Absent(String),
}

impl Found {
    /// From pairs of ours and the baseline's.
    pub(super) fn pairs(against: &'static str, pairs: &[(f64, f64)]) -> Found {
        Found::Pairs {
            ours: Spread::new(pairs.iter().map(|pair| pair.0).collect()),
            baseline: Spread::new(pairs.iter().map(|pair| pair.1).collect()),
            against,
            ratio: Spread::new(pairs.iter().map(|pair| pair.0 / pair.1).collect()),
        }
    }
}

impl Row {
    /// `None`: there is no bar, or nothing to hold against it.
    pub(super) fn met(&self) -> Option<bool> {
        let (ours, ratio) = match &self.found {
            Found::Absent(_) => return None,
            Found::Ours(ours) => (ours.median(), None),
            Found::Pairs { ours, ratio, .. } => (ours.median(), Some(ratio.median())),
        };
        Some(match self.bar? {
            Bar::RatioAtLeast(bar) => ratio? >= bar,
            Bar::RatioAtMost(bar) => ratio? <= bar,
            Bar::Under(bar) => ours <= bar,
            Bar::AtLeast(bar) => ours >= bar,
        })
    }

    fn bar_text(&self) -> String {
        match self.bar {
            None => "report".to_owned(),
            Some(Bar::RatioAtLeast(bar)) => format!(">= {bar:.2}"),
            Some(Bar::RatioAtMost(bar)) => format!("<= {bar:.2}"),
            Some(Bar::Under(bar)) => format!("< {}", self.unit.text(bar)),
            Some(Bar::AtLeast(bar)) => format!(">= {}", self.unit.text(bar)),
        }
    }

    fn verdict(&self) -> &'static str {
        match self.met() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        }
    }

    /// The cells of the table.
    pub(super) fn cells(&self) -> [String; 6] {
        let range = |spread: &Spread, digits: usize| {
            let (min, max) = (spread.quantile(0.0), spread.quantile(1.0));
            format!("{:.digits$} ({min:.digits$}-{max:.digits$})", spread.median())
        };
        let (ours, baseline, ratio) = match &self.found {
            Found::Absent(why) => (why.clone(), String::new(), String::new()),
            Found::Ours(ours) => {
                let tail = format!("p99 {}", self.unit.text(ours.quantile(0.99)));
                let median = self.unit.text(ours.median());
                (median, String::new(), if ours.0.len() > 1 { tail } else { String::new() })
            }
            Found::Pairs { ours, baseline, against, ratio } => {
                let baseline = format!("{} {against}", self.unit.text(baseline.median()));
                (self.unit.text(ours.median()), baseline, range(ratio, 2))
            }
        };
        [self.what.to_owned(), ours, baseline, ratio, self.bar_text(), self.verdict().to_owned()]
    }

    pub(super) fn json(&self) -> Value {
        let bar = match self.bar {
            None => Value::Null,
            Some(Bar::RatioAtLeast(bar)) => json!({ "of": "ratio", "at_least": bar }),
            Some(Bar::RatioAtMost(bar)) => json!({ "of": "ratio", "at_most": bar }),
            Some(Bar::Under(bar)) => json!({ "of": "ours", "at_most": bar }),
            Some(Bar::AtLeast(bar)) => json!({ "of": "ours", "at_least": bar }),
        };
        let mut row = json!({
            "row": self.name,
            "what": self.what,
            "unit": self.unit.name(),
            "bar": bar,
            "met": self.met(),
            "note": self.note,
        });
        match &self.found {
            Found::Absent(why) => row["absent"] = json!(why),
            Found::Ours(ours) => row["ours"] = ours.json(),
            Found::Pairs { ours, baseline, against, ratio } => {
                row["ours"] = ours.json();
                row["baseline"] = baseline.json();
                row["against"] = json!(against);
                row["ratio"] = ratio.json();
            }
        }
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(found: Found, bar: Bar) -> Row {
        Row { name: "put", what: "a put", unit: Unit::GibPerSecond, found, bar: Some(bar), note: None }
    }

    #[test]
    fn the_ratio_is_taken_pair_by_pair_and_its_median_decides() {
        let found = Found::pairs("TCP", &[(1.0, 2.0), (3.0, 3.0), (8.0, 10.0)]);
        let row = row(found, Bar::RatioAtLeast(0.8));
        assert_eq!(row.met(), Some(true));
        assert_eq!(row.cells()[3], "0.80 (0.50-1.00)");
        assert_eq!(row.json()["ratio"]["median"], 0.8);
    }

    #[test]
    fn a_bar_that_is_missed_says_so_and_nothing_measured_is_neither() {
        let slow = row(Found::Ours(Spread::new(vec![3.0, 1.0, 2.0])), Bar::Under(1.5));
        assert_eq!((slow.met(), slow.cells()[5].as_str()), (Some(false), "MISSED"));
        let none = row(Found::Absent("not installed".to_owned()), Bar::Under(1.5));
        assert_eq!((none.met(), none.cells()[1].as_str()), (None, "not installed"));
    }

    #[test]
    fn quantiles_lie_between_samples() {
        let spread = Spread::new(vec![4.0, 1.0, 2.0, 3.0]);
        assert_eq!((spread.quantile(0.0), spread.median(), spread.quantile(1.0)), (1.0, 2.5, 4.0));
    }
}
