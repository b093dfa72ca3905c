//! What a benchmark tells: a table for people, JSON for programs; the page with plots is drawn from it too.

use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use super::{
    Stage,
    measure::{Curve, Figure, Series, bare_syncs},
};

/// What became of the messages of one scenario: `sent = delivered + waiting`, or the scenario has failed.
#[derive(Debug, Clone, Serialize)]
pub struct Closing {
    /// The scenario.
    pub scenario: String,
    /// Accepted.
    pub sent: u64,
    /// Seen by a phone and acknowledged.
    pub delivered: u64,
    /// Not delivered when the scenario ended: their recipients were away, or they waited in a lane.
    pub waiting: u64,
    /// On their way to connected phones at the moment the load ended.
    pub backlog: u64,
}

/// Everything that was measured.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// What it ran on.
    pub machine: String,
    /// Seconds of each load.
    pub seconds: u64,
    /// Limits that each scenario lifted, and settings it was tried with.
    pub lifted: Vec<(String, Vec<String>)>,
    /// The figures.
    pub figures: Vec<Figure>,
    /// What the plots show.
    pub series: Vec<Series>,
    /// How costs go with sizes.
    pub curves: Vec<Curve>,
    /// What became of the messages.
    pub closings: Vec<Closing>,
    /// Peak of the singles, where it was measured: later loads are a share of it.
    #[serde(skip)]
    pub(crate) singles_peak: Option<f64>,
}

impl Report {
    /// Measures the bare disk first.
    pub(crate) fn begin(stage: &Stage) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpu.lines().find_map(|l| l.strip_prefix("model name\t: ")).unwrap_or("unknown CPU").to_owned();
        let (machine, seconds) = (format!("{cores} cores, {model}"), stage.bench.seconds);
        let mut report = Self { machine, seconds, ..Self::default() };
        let sync = bare_syncs(&stage.bench.folder, stage.clock, Duration::from_secs(1), Duration::ZERO)?;
        let ms = |q| sync.value_at_quantile(q) as f64 / 1e3;
        report.add(Figure::new("disk", "bare 4 KiB append and sync, p50", ms(0.5), "ms"));
        report.add(Figure::new("disk", "bare 4 KiB append and sync, p99", ms(0.99), "ms"));
        Ok(report)
    }

    pub(crate) fn add(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    /// A curve, and how flat it is.
    pub(crate) fn curve(&mut self, curve: Curve) {
        let name = format!("{}: most ÷ least of {} sizes", curve.what, curve.points.len());
        self.add(Figure::new(curve.scenario, name, curve.spread(), "×"));
        self.curves.push(curve);
    }

    /// The table.
    pub fn table(&self) -> String {
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["scenario", "what", "measured", "first", "aim", "beside"]);
        for f in &self.figures {
            table.add_row(row(f));
        }
        let mut text = format!("{}, {} s each\n{table}\n", self.machine, self.seconds);
        for curve in &self.curves {
            let points = curve.points.iter().map(|(x, y)| format!("{}: {}", number(*x, ""), number(*y, "")));
            text += &format!("{} by {}   {}\n", curve.what, curve.size, points.collect::<Vec<_>>().join("   "));
        }
        for closing in &self.closings {
            text += &format!("{}\n", sentence(closing));
        }
        for (scenario, lifted) in &self.lifted {
            text += &format!("{scenario} lifted: {}\n", lifted.join(" "));
        }
        text
    }
}

/// A closing count in words.
pub(super) fn sentence(closing: &Closing) -> String {
    let Closing { scenario, sent, delivered, waiting, backlog } = closing;
    format!(
        "{scenario}: {sent} sent = {delivered} delivered + {waiting} still waiting; {backlog} on their way when the load ended"
    )
}

/// One figure's cells.
pub(super) fn row(f: &Figure) -> [String; 6] {
    let target = |t: Option<f64>| t.map(|t| number(t, f.unit)).unwrap_or_default();
    let beside = |(what, v): &(String, f64)| format!("{what}: {} ({:.2}×)", number(*v, ""), f.value / v);
    let beside = f.baseline.as_ref().map(beside).unwrap_or_default();
    [f.scenario.to_owned(), f.name.clone(), number(f.value, f.unit), target(f.first), target(f.aim), beside]
}

/// A number as people write it, with its unit.
pub(super) fn number(value: f64, unit: &str) -> String {
    let text = if value >= 1_000.0 {
        let whole = format!("{value:.0}");
        let groups: Vec<_> =
            whole.as_bytes().rchunks(3).rev().map(|g| String::from_utf8_lossy(g).into_owned()).collect();
        groups.join(",")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    };
    if unit.is_empty() { text } else { format!("{text} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_read_them() {
        let table = [
            (1_234_567.0, "/s", "1,234,567 /s"),
            (1_000.0, "", "1,000"),
            (56.04, "µs", "56.0 µs"),
            (0.174, "", "0.17"),
        ];
        for (value, unit, text) in table {
            assert_eq!(number(value, unit), text);
        }
    }
}
